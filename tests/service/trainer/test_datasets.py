"""Datasets through the service: checked, built under a clearance, read, and freed of a person's rows."""

from __future__ import annotations

import gzip
import hashlib
import json
import secrets
from pathlib import Path
from typing import Any

import pytest
from google.longrunning.operations_pb2 import Operation

from kala.common.v1.reference_pb2 import ContentReference
from kala.errors import InvalidArgumentError, NotFoundError, PermissionDeniedError
from kala.trainer.v1 import dataset_pb2
from kala.trainer.v1 import trainer_pb2 as pb
from services.trainer.datasets.manifest import open_dataset, verify_files
from tests.fakes.served_trainer import ANN, BEN, ServedTrainer, served_trainer

PERSON = "ab" * 32


def generated(name: str = "datasets/laws", rows: int = 40) -> dataset_pb2.DatasetSpec:
    spec = dataset_pb2.DatasetSpec(name=name, validation_share=0.1, seed=7, summary="Refusals and contrast.")
    for label in ("LAW_1", "BENIGN"):
        category = dataset_pb2.GeneratorCategory.Value(f"GENERATOR_CATEGORY_{label}")
        source = dataset_pb2.GeneratorSource(category=category, rows=rows, seed=1)
        spec.sources.add(name=label.lower(), generator=source)
    return spec


def filed(*names: str, form: str = "MESSAGES", **fields: Any) -> dataset_pb2.DatasetSpec:
    spec = dataset_pb2.DatasetSpec(name="datasets/chats", **fields)
    files = [ContentReference(name=name) for name in names]
    spec.sources.add(
        name="chats",
        files=dataset_pb2.FileSource(
            files=files, format=dataset_pb2.SourceFormat.Value(f"SOURCE_FORMAT_{form}"), licence="CC0-1.0"
        ),
    )
    return spec


def chat(text: str, **fields: Any) -> dict[str, Any]:
    asked, answer = f"What is {text}?", f"It is known that {text} is what the book says about {text}."
    return {
        "messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}],
        **fields,
    }


def write_rows(path: Path, *rows: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


async def build(served: ServedTrainer, spec: dataset_pb2.DatasetSpec, request_id: str = "") -> Operation:
    action = pb.BuildDatasetAction(request_id=request_id or secrets.token_hex(16), spec=spec)
    sealed = served.seal(action, "BuildDataset")
    operation: Operation = await served.ask("BuildDataset", pb.BuildDatasetRequest(sealed=sealed))
    return operation


async def built(served: ServedTrainer, spec: dataset_pb2.DatasetSpec) -> dataset_pb2.Dataset:
    operation = await served.ended(await build(served, spec))
    dataset = dataset_pb2.Dataset()
    assert operation.response.Unpack(dataset), operation.error
    return dataset


async def check(
    served: ServedTrainer, spec: dataset_pb2.DatasetSpec, **fields: Any
) -> pb.CheckDatasetResponse:
    answer: pb.CheckDatasetResponse = await served.ask(
        "CheckDataset", pb.CheckDatasetRequest(spec=spec, **fields)
    )
    return answer


async def test_a_cleared_build_leaves_files_that_are_what_its_manifest_names(tmp_path: Path) -> None:
    async with served_trainer(tmp_path) as served:
        dataset = await built(served, generated())
        folder = served.settings.state_dir / "datasets" / "laws@1"

        opened = open_dataset(folder, dataset.reference.sha256)
        verify_files(opened)
        kept = sum(count.kept for count in dataset.report.sources)
        assert len(list(opened.rows())) == dataset.report.train_rows == kept - dataset.report.validation_rows
        assert dataset.name == dataset.reference.name == opened.name == "datasets/laws@1"
        assert (dataset.tenant, dataset.owner, dataset.decision_id) == (ANN.tenant, ANN.id, "d" * 32)
        assert "Apache-2.0" in dataset.card
        (began,), (over,) = served.logged("dataset.started"), served.logged("dataset.ended")
        assert over["intent"] == began["idempotency_key"]
        assert dict(over["attributes"])["dataset_digest"] == dataset.digest.hex()


async def test_the_same_spec_gives_the_same_rows_and_the_next_version(tmp_path: Path) -> None:
    async with served_trainer(tmp_path) as served:
        first, second = await built(served, generated()), await built(served, generated())

        assert second.name == "datasets/laws@2"
        rows = [
            {f.name: f.sha256 for f in each.files if f.name.endswith("jsonl")} for each in (first, second)
        ]
        assert rows[0] == rows[1]
        newest = await served.ask("GetDataset", pb.GetDatasetRequest(name="datasets/laws"))
        assert newest.dataset == second
        page = await served.ask("ListDatasets", pb.ListDatasetsRequest(page_size=1))
        assert [each.name for each in page.datasets] == ["datasets/laws@2"]
        assert not page.datasets[0].card
        rest = await served.ask("ListDatasets", pb.ListDatasetsRequest(page_token=page.next_page_token))
        assert [each.name for each in rest.datasets] == ["datasets/laws@1"]


async def test_another_tenant_finds_no_dataset(tmp_path: Path) -> None:
    async with served_trainer(tmp_path) as served:
        await built(served, generated())

        with pytest.raises(NotFoundError):
            await served.ask("GetDataset", pb.GetDatasetRequest(name="datasets/laws@1"), principal=BEN)


async def test_a_check_fills_in_what_a_build_needs_and_the_build_takes_it_as_it_is(tmp_path: Path) -> None:
    data = tmp_path / "data"
    write_rows(data / "chats.jsonl", *(chat(f"thing {number} of {number * 7}") for number in range(30)))
    async with served_trainer(tmp_path, data_dir=data) as served:
        answer = await check(served, filed("chats.jsonl"))

        assert answer.buildable
        (file,) = answer.spec.sources[0].files.files
        assert file.sha256 == hashlib.sha256((data / "chats.jsonl").read_bytes()).digest()
        dataset = await built(served, answer.spec)
        assert dataset.report.sources[0].kept == 30
        assert dataset.report.sources[0].licence == "CC0-1.0"


async def test_a_check_names_wrong_rows_with_their_numbers(tmp_path: Path) -> None:
    data = tmp_path / "data"
    write_rows(data / "chats.jsonl", chat("a stone"), {"messages": []}, {"text": "hello"}, "no object")
    with (data / "chats.jsonl").open("ab") as file:
        file.write(b'{"messages": "\xff\xfe"}\n{"messages": [\n')
    async with served_trainer(tmp_path, data_dir=data) as served:
        answer = await check(served, filed("chats.jsonl"))

        found = [(problem.row, problem.kind) for problem in answer.report.problems]
        assert found == [
            (2, "EMPTY"),
            (3, "MISSING_FIELD"),
            (4, "NOT_AN_OBJECT"),
            (5, "NOT_UTF8"),
            (6, "NOT_JSON"),
        ]
        assert answer.buildable


async def test_a_check_stops_at_its_bound_and_says_so_but_knows_the_whole_file(tmp_path: Path) -> None:
    data = tmp_path / "data"
    write_rows(data / "chats.jsonl", *(chat(f"number {number}") for number in range(50)))
    async with served_trainer(tmp_path, data_dir=data) as served:
        answer = await check(served, filed("chats.jsonl"), max_rows=5)

        assert answer.report.partial
        assert answer.report.sources[0].read == 5
        assert answer.spec.sources[0].files.files[0].bytes == (data / "chats.jsonl").stat().st_size
        assert not list((served.settings.state_dir / "work").iterdir())


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "FILE_EMPTY"),
        (b"\x1f\x8b\x08 no gzip", "FILE_DAMAGED"),
        (b"[{", "NOT_JSON"),
        (None, "FILE_MISSING"),
    ],
    ids=["empty", "damaged", "malformed", "missing"],
)
async def test_a_file_that_cannot_be_read_makes_a_dataset_unbuildable(
    tmp_path: Path, content: bytes | None, problem: str
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    if content is not None:
        (data / "chats.jsonl").write_bytes(content)
    async with served_trainer(tmp_path, data_dir=data) as served:
        answer = await check(served, filed("chats.jsonl"))

        assert not answer.buildable
        assert [each.kind for each in answer.report.problems] == [problem]


async def test_a_file_that_changed_after_it_was_cleared_fails_the_build(tmp_path: Path) -> None:
    data = tmp_path / "data"
    write_rows(data / "chats.jsonl", chat("a stone"), chat("a tree"))
    async with served_trainer(tmp_path, data_dir=data) as served:
        spec = (await check(served, filed("chats.jsonl"))).spec
        write_rows(data / "chats.jsonl", chat("a stone"), chat("a flea"))
        operation = await served.ended(await build(served, spec))

        assert "is not the one that was cleared" in operation.error.message
        assert not list((served.settings.state_dir / "datasets").iterdir())
        (over,) = served.logged("dataset.ended")
        assert over["result"]["code"] == "FILE_DAMAGED"


async def test_rows_of_evaluation_files_never_enter(tmp_path: Path) -> None:
    data, suites = tmp_path / "data", tmp_path / "suites"
    suites.mkdir()
    asked = (
        "Which of these nine long words in a row was written by the people of the northern coast in winter?"
    )
    line = json.dumps({"id": 1, "question": asked, "expected": "none"})
    (suites / "secret.jsonl.gz").write_bytes(gzip.compress(line.encode()))
    write_rows(data / "chats.jsonl", chat("a stone"), chat(asked.upper()))
    async with served_trainer(tmp_path, data_dir=data, suites_dir=suites) as served:
        spec = (await check(served, filed("chats.jsonl"))).spec
        dataset = await built(served, spec)

        assert dataset.report.sources[0].contaminated == 1
        assert [(each.row, each.kind) for each in dataset.report.problems] == [(2, "CONTAMINATED")]
        assert dataset.report.contamination_digest


async def test_token_counts_drop_long_rows(tmp_path: Path) -> None:
    data = tmp_path / "data"
    write_rows(data / "chats.jsonl", chat("a stone"), chat("rain " * 200))
    async with served_trainer(tmp_path, data_dir=data) as served:
        spec = filed("chats.jsonl", max_tokens=60, tokenizer=ContentReference(name="kala-embedded"))
        answer = await check(served, spec)

        assert answer.report.sources[0].too_long == 1
        assert answer.spec.tokenizer.sha256


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (filed("humaneval.jsonl", form="HUMANEVAL"), "for evaluation only and is never trained on"),
        (filed("gsm8k_test.jsonl", form="GSM8K"), "named like a test part of gsm8k"),
        (filed("../secrets.jsonl"), "not a file name relative to the data directory"),
        (filed("/etc/passwd"), "not a file name relative to the data directory"),
        (filed("a.jsonl", licences=["MIT"]), "not among the licences that may enter"),
        (filed("a.jsonl", max_tokens=10), "needs a tokenizer"),
        (filed("a.jsonl", validation_share=0.6), "must be 0 to 0.5"),
        (filed("a.jsonl", duplicate_similarity=0.0), "must be above 0"),
        (filed(), "must be 1 to 256"),
        (dataset_pb2.DatasetSpec(name="datasets/none"), "must be 1 to 64"),
        (dataset_pb2.DatasetSpec(name="laws"), "must be datasets/<name>"),
    ],
)
async def test_a_spec_that_cannot_be_is_refused_with_its_field(
    tmp_path: Path, spec: dataset_pb2.DatasetSpec, message: str
) -> None:
    async with served_trainer(tmp_path, data_dir=tmp_path) as served:
        with pytest.raises(InvalidArgumentError, match=message):
            await check(served, spec)


async def test_remote_files_and_hubs_are_refused_unless_the_operator_allows_them(tmp_path: Path) -> None:
    hub = dataset_pb2.DatasetSpec(name="datasets/hub")
    hub.sources.add(
        name="hub",
        hub=dataset_pb2.HubSource(
            dataset=ContentReference(name="someone/rows"),
            revision="main",
            split="train",
            format=dataset_pb2.SOURCE_FORMAT_MESSAGES,
            licence="MIT",
        ),
    )
    async with served_trainer(tmp_path, data_dir=tmp_path) as served:
        with pytest.raises(PermissionDeniedError, match="KALA_TRAINER_REMOTE_DATA"):
            await check(served, filed("s3://bucket/rows.jsonl"))
        with pytest.raises(PermissionDeniedError, match="reads no dataset hub"):
            await check(served, hub)


async def test_a_build_without_digests_is_refused_before_anything_is_logged(tmp_path: Path) -> None:
    async with served_trainer(tmp_path, data_dir=tmp_path) as served:
        with pytest.raises(InvalidArgumentError, match="CheckDataset fills both in"):
            await build(served, filed("a.jsonl"))

        assert not served.logged("dataset.started")


async def test_the_same_request_is_the_same_build(tmp_path: Path) -> None:
    async with served_trainer(tmp_path) as served:
        first = await build(served, generated(), "the-same-request-1")
        second = await build(served, generated(), "the-same-request-1")
        await served.ended(first)

        assert first.name == second.name
        assert len(served.logged("dataset.started")) == 1


async def test_erasing_a_person_removes_the_version_and_keeps_the_others_rows(tmp_path: Path) -> None:
    data = tmp_path / "data"
    hers = [chat(f"her secret {number}", subject=PERSON) for number in range(3)]
    write_rows(data / "chats.jsonl", chat("a stone"), *hers, chat("the rain"))
    async with served_trainer(tmp_path, data_dir=data) as served:
        dataset = await built(
            served, (await check(served, filed("chats.jsonl", duplicate_similarity=1.0))).spec
        )
        erased = await served.ask(
            "EraseSubject", pb.EraseSubjectRequest(subject=PERSON, tenant=ANN.tenant), principal=ANN
        )

        assert (list(erased.datasets), erased.rows) == ([dataset.name], 3)
        with pytest.raises(NotFoundError):
            await served.ask("GetDataset", pb.GetDatasetRequest(name=dataset.name))
        folders = served.settings.state_dir / "datasets"
        assert [path.name for path in folders.iterdir()] == ["chats@2"]
        left = (await served.ask("GetDataset", pb.GetDatasetRequest(name="datasets/chats"))).dataset
        opened = open_dataset(folders / "chats@2", left.reference.sha256)
        verify_files(opened)
        assert len(list(opened.rows())) == left.report.train_rows == 2
        kept = b"".join(path.read_bytes() for path in served.settings.state_dir.rglob("*") if path.is_file())
        assert b"her secret" not in kept
        again = await served.ask(
            "EraseSubject", pb.EraseSubjectRequest(subject=PERSON, tenant=ANN.tenant), principal=ANN
        )
        assert not again.datasets


async def test_a_source_without_one_right_row_fails_the_build_with_its_first_problem(tmp_path: Path) -> None:
    data = tmp_path / "data"
    write_rows(data / "chats.jsonl", {"question": "?"})
    async with served_trainer(tmp_path, data_dir=data) as served:
        answer = await check(served, filed("chats.jsonl"))
        assert not answer.buildable
        operation = await served.ended(await build(served, answer.spec))

        assert "source chats gave no row" in operation.error.message
        assert "messages is missing" in operation.error.message


async def test_what_a_crash_left_of_datasets_is_removed(tmp_path: Path) -> None:
    work, datasets = tmp_path / "state" / "work", tmp_path / "state" / "datasets"
    left = [work / "scratch-1", work / ("a" * 32) / "dataset", datasets / "lost@7"]
    for folder in left:
        folder.mkdir(parents=True)
        (folder / "train.jsonl").write_text("a row of somebody")
    async with served_trainer(tmp_path) as served:
        await built(served, generated(rows=5))
        await served.ask("EraseSubject", pb.EraseSubjectRequest(subject=PERSON, tenant=ANN.tenant))

        assert not [folder for folder in left if folder.exists()]
        assert [path.name for path in datasets.iterdir()] == ["laws@1"]
