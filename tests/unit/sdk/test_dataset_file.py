"""Datasets as people write them: words for enumerations, names for references, mistakes with their key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format

from kala import dataset_file
from kala.dataset_file import dataset_spec, datasets_in, read_yaml
from kala.errors import KalaError
from kala.trainer.v1 import dataset_pb2

WHOLE: dict[str, Any] = {
    "name": "mine",
    "seed": 3,
    "summary": "for a test",
    "validation_share": 0.1,
    "tokenizer": "kala-embedded",
    "evaluation_files": ["human_eval.jsonl"],
    "sources": [
        {"generator": {"category": "template_task", "rows": 10, "seed": 1}},
        {
            "name": "pages",
            "files": {"files": ["a.jsonl"], "format": "bug-fix", "licence": "MIT"},
            "max_rows": 5,
        },
        {
            "name": "hub",
            "hub": {"dataset": "o/n", "revision": "c", "split": "train", "format": "GSM8K", "licence": "MIT"},
        },
    ],
}


def test_a_whole_dataset_becomes_the_contracts_spec() -> None:
    spec = json_format.ParseDict(dataset_spec(WHOLE), dataset_pb2.DatasetSpec())
    assert spec.name == "datasets/mine"
    generator, files, hub = spec.sources
    assert (generator.name, generator.generator.category) == (
        "template_task",
        dataset_pb2.GENERATOR_CATEGORY_TEMPLATE_TASK,
    )
    assert (files.files.files[0].name, files.files.format, files.max_rows) == (
        "a.jsonl",
        dataset_pb2.SOURCE_FORMAT_BUG_FIX,
        5,
    )
    assert (hub.hub.dataset.name, hub.hub.format) == ("o/n", dataset_pb2.SOURCE_FORMAT_GSM8K)
    assert (spec.tokenizer.name, spec.evaluation_files[0].name) == ("kala-embedded", "human_eval.jsonl")


def test_every_word_is_one_of_the_contracts() -> None:
    for words, enum, prefix in (
        (dataset_file.CATEGORIES, dataset_pb2.GeneratorCategory, "GENERATOR_CATEGORY_"),
        (dataset_file.FORMATS, dataset_pb2.SourceFormat, "SOURCE_FORMAT_"),
    ):
        assert {prefix + word.upper() for word in words} | {f"{prefix}UNSPECIFIED"} == set(enum.keys())


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"sorces": []}, "sorces: is no key here; did you mean sources?"),
        ({"sources": []}, "sources: must list"),
        ({"name": 3}, "name: must name"),
        ({"sources": [{"name": "x"}]}, r"sources\[0\]: must have exactly one of"),
        ({"sources": [{"generator": {"category": "law_7"}}]}, r"category: is 'law_7'; did you mean law_"),
        ({"sources": [{"name": "x", "files": {"files": "a", "format": "math"}}]}, "files: must be a list"),
        ({"sources": ["x"]}, r"sources\[0\]: must be a mapping"),
    ],
)
def test_a_mistake_is_named_by_its_key(change: dict[str, Any], says: str) -> None:
    with pytest.raises(KalaError, match=says):
        dataset_spec({**WHOLE, **change})


def test_a_job_names_the_datasets_that_it_needs() -> None:
    assert [spec["name"] for spec in datasets_in({"adapter": "a", "build": [WHOLE]})] == ["datasets/mine"]
    assert datasets_in({"adapter": "a"}) == []
    with pytest.raises(KalaError, match=r"build\[0\]\.name"):
        datasets_in({"build": [{"sources": [1]}]})


@pytest.mark.parametrize(
    ("content", "says"),
    [(b"a: [", "line 1"), (b"\xff\xfe", "not UTF-8"), (b"x" * 300_000, "at most")],
    ids=["no yaml", "no utf-8", "too long"],
)
def test_a_file_that_cannot_be_read_says_where(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "a.yaml"
    path.write_bytes(content)
    with pytest.raises(KalaError, match=says):
        read_yaml(path)
    with pytest.raises(KalaError, match="cannot be read"):
        read_yaml(tmp_path / "none.yaml")
