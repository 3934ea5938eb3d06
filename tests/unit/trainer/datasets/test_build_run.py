"""The process that builds: what it makes of its order, of evaluation files and of a full disk."""

from __future__ import annotations

import errno
import gzip
import hashlib
import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format

from kala.common.v1.clearance_pb2 import Principal
from kala.common.v1.reference_pb2 import ContentReference
from kala.errors import FailedPreconditionError
from kala.trainer.v1 import dataset_pb2
from kala.trainer.v1.trainer_pb2 import BuildDatasetAction
from services.common.sealing import pack
from services.trainer.datasets import build_run
from services.trainer.datasets.desk import Site, evaluations_of
from services.trainer.datasets.rows import conversation
from services.trainer.work.events import EventReader, EventWriter
from services.trainer.work.order import BUILD, Order


@pytest.fixture(autouse=True)
def _own_temporary_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", tempfile.tempdir)


def order(folder: Path, rows: int = 5_000, **settings: Any) -> Order:
    spec = dataset_pb2.DatasetSpec(name="datasets/laws")
    category = dataset_pb2.GENERATOR_CATEGORY_LAW_3
    spec.sources.add(name="laws", generator=dataset_pb2.GeneratorSource(category=category, rows=rows, seed=1))
    action = pack(BuildDatasetAction(request_id="a" * 16, spec=spec))
    principal = Principal(id="keys/ann", tenant="acme")
    return Order(BUILD, "datasets/laws@4", folder, principal, 2e9, action=action, settings=settings)


def test_a_build_tells_how_far_it_is_and_what_came_of_it(tmp_path: Path) -> None:
    result = build_run.main(order(tmp_path), EventWriter(tmp_path))
    told = [event.message for event in EventReader(tmp_path).read()]

    assert [message.kept for message in told] == [0, 1_999, 3_999, 5_000]
    assert {each["name"] for each in result["files"]} == {
        "CARD.md",
        "manifest.json",
        "train.jsonl",
        "validation.jsonl",
    }
    assert json.loads(json.dumps(result)) == result
    report = json_format.ParseDict(result["report"], dataset_pb2.DatasetReport())
    assert report.train_rows == 5_000


def test_a_full_disk_is_said_with_its_cure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(build_run, "build", full)

    with pytest.raises(FailedPreconditionError, match="make room") as error:
        build_run.main(order(tmp_path), EventWriter(tmp_path))
    assert error.value.reason == "DISK_FULL"


@pytest.mark.parametrize(
    "content", [None, b"no json\n", b"\x1f\x8b broken"], ids=["missing", "malformed", "damaged"]
)
def test_an_evaluation_file_that_cannot_be_read_stops_the_build(
    tmp_path: Path, content: bytes | None
) -> None:
    path = tmp_path / "secret.jsonl"
    if content is not None:
        path.write_bytes(content)

    with pytest.raises(FailedPreconditionError, match=r"evaluation file secret\.jsonl cannot be read"):
        build_run.main(order(tmp_path, evaluation_files=[str(path)]), EventWriter(tmp_path))


def test_an_evaluation_file_that_changed_since_it_was_cleared_stops_the_build(tmp_path: Path) -> None:
    path = tmp_path / "secret.jsonl"
    path.write_text('{"text": "a text of five words"}\n')
    cleared = ContentReference(name="secret.jsonl", sha256=bytes(32), bytes=3)

    with pytest.raises(FailedPreconditionError, match="not the one that was cleared"):
        build_run.known_evaluations([path], 13, [cleared])


def test_an_evaluation_file_that_unpacks_to_a_flood_is_refused_and_never_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build_run, "MAX_EVALUATION_CHARACTERS", 100_000)
    path = tmp_path / "flood.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"text": "one two three four five"}\n' * 10_000))

    with pytest.raises(FailedPreconditionError, match="more than 100,000 characters"):
        build_run.known_evaluations([path], 13)


def test_an_empty_line_of_an_evaluation_file_stops_no_build(tmp_path: Path) -> None:
    path = tmp_path / "set.jsonl"
    path.write_text('{"text": "one two three four five"}\n\n')

    known, (reference,) = build_run.known_evaluations([path], 13)

    assert known is not None
    assert known.finds(conversation("chat", "Count!", "One, two, three, four: five."))
    assert reference.bytes == path.stat().st_size
    assert reference.sha256 == hashlib.sha256(path.read_bytes()).digest()


def test_evaluation_files_of_one_name_in_two_folders_are_both_compared_with(tmp_path: Path) -> None:
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        folder.mkdir()
        (folder / "set.jsonl").write_text(json.dumps({"text": folder.name}))
    site = Site(evaluation_dirs=folders)

    named = dataset_pb2.DatasetSpec(evaluation_files=[ContentReference(name="set.jsonl")])
    assert evaluations_of(dataset_pb2.DatasetSpec(), site) == [folder / "set.jsonl" for folder in folders]
    assert evaluations_of(named, site) == [folders[0] / "set.jsonl"]
