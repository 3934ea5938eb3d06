"""Building: the same input gives the same bytes, parts do not overlap, the card tells what happened."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
from pathlib import Path

import pytest

from kala.common.v1.reference_pb2 import ContentReference
from kala.errors import FailedPreconditionError, InvalidArgumentError, NotFoundError, VerificationError
from kala.trainer.v1 import dataset_pb2 as pb
from services.trainer.datasets import files
from services.trainer.datasets.build import MAX_CATEGORIES, OTHER, Built, Tools, build
from services.trainer.datasets.card import MAX_CARD_BYTES
from services.trainer.datasets.files import Access, local_path, opened
from services.trainer.datasets.manifest import MANIFEST, open_dataset, verify_files
from services.trainer.datasets.problems import FileError


def spec(**fields: object) -> pb.DatasetSpec:
    made = pb.DatasetSpec(name="datasets/mix", validation_share=0.2, seed=5)
    for category in ("LAW_0", "TEMPLATE_TASK"):
        number = pb.GeneratorCategory.Value(f"GENERATOR_CATEGORY_{category}")
        made.sources.add(
            name=category.lower(), generator=pb.GeneratorSource(category=number, rows=50, seed=1)
        )
    made.MergeFrom(pb.DatasetSpec(**fields))
    return made


def made(folder: Path, given: pb.DatasetSpec | None = None, access: Access | None = None) -> Built:
    return build("datasets/mix@1", given or spec(), Tools(access or Access()), folder)


def manifest_digest(built: Built) -> bytes:
    return next(file.sha256 for file in built.files if file.name == MANIFEST)


def test_the_same_spec_gives_the_same_bytes(tmp_path: Path) -> None:
    first, second = made(tmp_path / "a"), made(tmp_path / "b")
    other = made(tmp_path / "c", spec(seed=6))

    assert first.digest == second.digest
    assert first.digest != other.digest


def test_validation_and_training_share_no_row(tmp_path: Path) -> None:
    dataset = open_dataset(tmp_path, manifest_digest(made(tmp_path)))
    train = {row["id"] for row in dataset.rows()}
    validation = {row["id"] for row in dataset.rows("validation.jsonl")}

    assert (len(train), len(validation)) == (80, 20)
    assert not train & validation


def test_a_source_gives_at_most_what_was_asked_of_it_chosen_by_the_seed(tmp_path: Path) -> None:
    given = spec()
    given.sources[0].max_rows = 10
    report = made(tmp_path, given).report

    assert [count.kept for count in report.sources] == [10, 50]
    assert {each.category: each.rows for each in report.categories} == {"law_0": 10, "template_task": 50}


def test_a_changed_row_is_found(tmp_path: Path) -> None:
    digest = manifest_digest(made(tmp_path))
    path = tmp_path / "train.jsonl"
    path.write_bytes(path.read_bytes().replace(b"Law 0", b"Law 1", 1))
    dataset = open_dataset(tmp_path, digest)

    with pytest.raises(VerificationError, match=r"train.jsonl is not the file"):
        verify_files(dataset)
    with pytest.raises(VerificationError, match=r"train.jsonl is not the file"):
        list(dataset.rows())


def test_another_manifest_is_no_dataset(tmp_path: Path) -> None:
    made(tmp_path)

    with pytest.raises(VerificationError, match="is not the one that was cleared"):
        open_dataset(tmp_path, bytes(32))


@pytest.mark.parametrize("text", ["[]", "{}", "no json", '{"format": "x", "name": "y", "files": []}'])
def test_a_manifest_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / MANIFEST).write_text(text)

    with pytest.raises(VerificationError, match="manifest"):
        open_dataset(tmp_path, hashlib.sha256(text.encode()).digest())


def test_the_card_names_sources_licences_and_what_was_dropped(tmp_path: Path) -> None:
    card = made(tmp_path, spec(summary="For a test.")).card

    assert card.startswith("# datasets/mix@1\n\nFor a test.")
    assert "| law_0 | templates: law_0, seed 1 | Apache-2.0 |" in card
    assert "| train | 80 |" in card
    assert "No evaluation file was at hand" in card


def filed(data: Path, rows: int, **source: object) -> pb.DatasetSpec:
    text = "".join(
        json.dumps({"prompt": f"Question {n} of {n * n}?", "completion": f"Answer {n}."}) + "\n"
        for n in range(rows)
    )
    (data / "rows.jsonl").write_text(text + "wrong\n" * 3_000)
    given = pb.DatasetSpec(name="datasets/mix")
    reference = ContentReference(name="rows.jsonl")
    form = pb.SOURCE_FORMAT_PROMPT_COMPLETION
    given.sources.add(
        name="rows", files=pb.FileSource(files=[reference], format=form, licence="MIT", **source)
    )
    return given


def test_problems_are_counted_beyond_those_that_are_told_and_the_card_keeps_its_bound(tmp_path: Path) -> None:
    given = filed(tmp_path, 5, attribution="The | <b>author</b>")
    built = made(tmp_path / "out", given, Access(tmp_path))

    assert (len(built.report.problems), built.report.problem_count) == (1_000, 3_000)
    assert len(built.card.encode()) <= MAX_CARD_BYTES
    assert "The \\| &lt;b>author" in built.card


def test_a_damaged_file_fails_the_build_even_after_right_rows(tmp_path: Path) -> None:
    given = filed(tmp_path, 500)
    data = gzip.compress((tmp_path / "rows.jsonl").read_bytes())
    (tmp_path / "rows.jsonl").write_bytes(data[: len(data) // 2])

    with pytest.raises(FailedPreconditionError, match="cannot be unpacked"):
        made(tmp_path / "out", given, Access(tmp_path))


# Files


def test_a_file_is_read_as_it_was_cleared_or_not_at_all(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"content")
    right = ContentReference(name="a.txt", sha256=hashlib.sha256(b"content").digest(), bytes=7)
    with opened(right, Access(tmp_path)) as (stream, finish):
        assert stream.read(3) == b"con"
        assert finish() == right
    wrong = ContentReference(name="a.txt", sha256=bytes(32), bytes=7)
    with opened(wrong, Access(tmp_path)) as (_, finish), pytest.raises(FileError, match="not the one"):
        finish()


def test_a_compressed_file_that_unpacks_to_too_much_is_a_bomb(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "MAX_UNPACKED_BYTES", 1000)
    (tmp_path / "a.gz").write_bytes(gzip.compress(bytes(5000)))

    with (
        opened(ContentReference(name="a.gz"), Access(tmp_path)) as (stream, _),
        pytest.raises(FileError, match="unpacks to more than"),
    ):
        stream.read()


@pytest.mark.parametrize("name", ["../a", "/a", "a/../../b", "", "a\\b", "a\0b", "x" * 2000])
def test_a_name_that_leads_elsewhere_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidArgumentError, match="not a file name relative"):
        local_path(name, Access(tmp_path))


def test_a_link_out_of_the_data_directory_is_refused(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (tmp_path / "secret").write_text("x")
    (data / "link").symlink_to(tmp_path / "secret")

    with pytest.raises(InvalidArgumentError, match="leads out"):
        local_path("link", Access(data))
    with pytest.raises(NotFoundError):
        local_path("none", Access(data))


def with_rows(folder: Path, rows: list[dict[str, object]]) -> tuple[pb.DatasetSpec, Access]:
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = pb.FileSource(format=pb.SOURCE_FORMAT_MESSAGES, licence="MIT")
    source.files.add(name="rows.jsonl")
    given = pb.DatasetSpec(name="datasets/mix", duplicate_similarity=1.0)
    given.sources.add(name="rows", files=source)
    return given, Access(folder)


def said(number: int, category: str) -> dict[str, object]:
    messages = [{"role": "user", "content": f"{number}?"}, {"role": "assistant", "content": f"{number}!"}]
    return {"messages": messages, "category": category}


def test_a_category_for_every_row_makes_no_report_that_nothing_holds(tmp_path: Path) -> None:
    rows = [said(number, f"c{number}") for number in range(1_500)]
    rows += [said(2_000 + number, "large") for number in range(3)]
    rows += [said(3_000, "other")]
    report = made(tmp_path / "out", *with_rows(tmp_path, rows)).report
    counts = {each.category: each.rows for each in report.categories}

    assert len(counts) == MAX_CATEGORIES
    assert sum(counts.values()) == len(rows)
    assert (counts["large"], counts[OTHER]) == (3, len(rows) - 3 - (MAX_CATEGORIES - 2))


def test_what_is_built_is_private_from_its_first_byte(tmp_path: Path) -> None:
    made(tmp_path / "out")

    assert (tmp_path / "out").stat().st_mode & 0o077 == 0


def test_a_file_that_is_gone_is_no_file_that_the_manifest_names(tmp_path: Path) -> None:
    dataset = open_dataset(tmp_path, manifest_digest(made(tmp_path)))
    (tmp_path / "train.jsonl").unlink()

    with pytest.raises(VerificationError, match=r"train\.jsonl cannot be read"):
        verify_files(dataset)


@pytest.mark.parametrize("swapped", ["file", "folder", "pipe"])
def test_what_is_swapped_after_its_path_was_checked_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, swapped: str
) -> None:
    data, secret = tmp_path / "data", tmp_path / "secret"
    for folder in (data / "sub", secret):
        folder.mkdir(parents=True)
        (folder / "a.jsonl").write_text(folder.name)

    def swap(name: str, access: Access) -> Path:
        path = local_path(name, access)
        (data / "sub" / "a.jsonl").unlink()
        if swapped == "folder":
            (data / "sub").rmdir()
            (data / "sub").symlink_to(secret)
        elif swapped == "file":
            (data / "sub" / "a.jsonl").symlink_to(secret / "a.jsonl")
        else:
            os.mkfifo(data / "sub" / "a.jsonl")
        return path

    monkeypatch.setattr(files, "local_path", swap)

    with (
        pytest.raises((OSError, NotFoundError)),
        opened(ContentReference(name="sub/a.jsonl"), Access(data)) as (stream, _),
    ):
        stream.read()


def test_a_file_in_a_folder_is_read(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.jsonl").write_text("text")
    (tmp_path / "link.jsonl").symlink_to("sub/a.jsonl")

    for name in ("sub/a.jsonl", "link.jsonl"):
        with opened(ContentReference(name=name), Access(tmp_path)) as (stream, _):
            assert stream.read() == b"text"


@pytest.mark.parametrize("name", ["loop", "x" * 300], ids=["loop", "long"])
def test_a_name_that_no_file_can_have_is_not_found(tmp_path: Path, name: str) -> None:
    (tmp_path / "loop").symlink_to("loop")

    with pytest.raises(NotFoundError, match="cannot be found"):
        local_path(name, Access(tmp_path))
