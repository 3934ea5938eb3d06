"""Rows from elsewhere: a dataset hub at one commit, and other file systems where the operator allows them."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator

import fsspec
import pytest

from kala.common.v1.reference_pb2 import ContentReference
from kala.errors import InvalidArgumentError, KalaError, NotFoundError, PermissionDeniedError
from kala.trainer.v1 import dataset_pb2 as pb
from services.trainer.datasets.build import Reading, Tools
from services.trainer.datasets.files import Access, opened
from services.trainer.datasets.spec_checks import require_spec
from tests.fakes.dataset_hub import COMMIT, FakeDatasetHub, fake_dataset_hub


@pytest.fixture
def hub() -> Iterator[FakeDatasetHub]:
    with fake_dataset_hub() as served:
        row = {"prompt": "What is rain?", "completion": "Water that falls."}
        line = json.dumps(row).encode() + b"\n"
        served.repositories["people/rain"] = {
            "README.md": b"# rain",
            "data/train-1.jsonl": line,
            "data/train-2.jsonl.gz": gzip.compress(line.replace(b"rain", b"snow"), mtime=0),
            "data/train.parquet": b"PAR1",
            "data/test-1.jsonl": line.replace(b"rain", b"fog"),
        }
        served.gated.add("people/secret")
        yield served


def spec(name: str = "people/rain", revision: str = COMMIT, split: str = "train") -> pb.DatasetSpec:
    made = pb.DatasetSpec(name="datasets/rain")
    made.sources.add(
        name="rain",
        hub=pb.HubSource(
            dataset=ContentReference(name=name),
            revision=revision,
            split=split,
            format=pb.SOURCE_FORMAT_PROMPT_COMPLETION,
            licence="CC0-1.0",
        ),
    )
    return made


def access(hub: FakeDatasetHub) -> Access:
    return Access(schemes=frozenset({"hub"}), hub_url=hub.url)


def read(given: pb.DatasetSpec, hub: FakeDatasetHub) -> tuple[Reading, list[str]]:
    rows: list[str] = []
    reading = Reading(given, Tools(access(hub)), lambda _, row, __: rows.append(row.messages[0].content))
    reading.run()
    return reading, rows


def test_a_splits_files_are_read_at_their_commit_and_the_test_part_is_not(hub: FakeDatasetHub) -> None:
    reading, rows = read(spec(), hub)

    assert rows == ["What is rain?", "What is snow?"]
    assert reading.resolved["people/rain"].sha256


def test_a_snapshot_that_differs_from_what_was_cleared_cannot_be_built(hub: FakeDatasetHub) -> None:
    given = spec()
    reading, _ = read(given, hub)
    given.sources[0].hub.dataset.CopyFrom(reading.resolved["people/rain"])
    assert not read(given, hub)[0].damaged

    hub.repositories["people/rain"]["data/train-1.jsonl"] += b'{"prompt": "x", "completion": "y"}\n'
    assert "not the one that was cleared" in read(given, hub)[0].damaged[0]


@pytest.mark.parametrize(
    ("given", "error"),
    [
        (spec("people/secret"), PermissionDeniedError),
        (spec("people/none"), NotFoundError),
        (spec(revision="f" * 40), NotFoundError),
        (spec(split="other"), NotFoundError),
    ],
    ids=["gated", "unknown", "another commit", "no such split"],
)
def test_what_a_hub_does_not_give_is_said(
    hub: FakeDatasetHub, given: pb.DatasetSpec, error: type[KalaError]
) -> None:
    with pytest.raises(error):
        read(given, hub)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (spec(revision="main"), "must be a commit"),
        (spec(split="test"), "no test or evaluation part"),
        (spec("rain"), "must be owner/name"),
        (spec("people/../x"), "must be owner/name"),
    ],
)
def test_a_hub_source_that_may_move_or_is_a_test_part_is_refused(given: pb.DatasetSpec, message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        require_spec(given, Access(schemes=frozenset({"hub"})), digests=False)


def test_another_file_system_is_read_where_its_scheme_is_allowed() -> None:
    with fsspec.open("memory://rows/a.jsonl", "wb") as file:
        file.write(b"content")

    with opened(ContentReference(name="memory://rows/a.jsonl"), Access(schemes=frozenset({"memory"}))) as (
        stream,
        end,
    ):
        assert stream.read() == b"content"
        assert end().bytes == 7


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("s3://bucket/a.jsonl", PermissionDeniedError),
        ("file:///etc/passwd", PermissionDeniedError),
        ("memory://a::file:///etc/passwd", InvalidArgumentError),
    ],
)
def test_other_schemes_and_wrapped_urls_are_refused(name: str, error: type[KalaError]) -> None:
    given = pb.DatasetSpec(name="datasets/x")
    reference = ContentReference(name=name)
    form = pb.SOURCE_FORMAT_MESSAGES
    given.sources.add(name="x", files=pb.FileSource(files=[reference], format=form, licence="MIT"))
    allowed = Access(schemes=frozenset({"memory"}))

    with pytest.raises(error):
        require_spec(given, allowed, digests=False)
    with pytest.raises(error), opened(reference, allowed):
        pass
