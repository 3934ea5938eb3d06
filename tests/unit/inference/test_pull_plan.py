"""Which files of a repository are fetched, and which never are."""

from __future__ import annotations

import orjson
import pytest

from kala.errors import FailedPreconditionError, InvalidArgumentError, NotFoundError, VerificationError
from services.inference.backend import BackendFailure
from services.inference.pull.__main__ import Progress
from services.inference.pull.plan import RemoteFile, Source, choose, parse_source, require_room
from services.inference.pull.servers import MAX_LAYERS, _Layers

PYTHIA = (
    "config.json",
    "tokenizer.json",
    "model.safetensors",
    "pytorch_model.bin",
    "README.md",
    ".gitattributes",
)
GGUF = ("tiny.Q4_K_M.gguf", "tiny.Q8_0.gguf", "README.md")


def listed(*names: str, size: int = 1) -> list[RemoteFile]:
    return [RemoteFile(name, size, b"\0" * 32, "") for name in names]


def chosen(source: str, *names: str) -> list[str]:
    return [file.name for file in choose(parse_source(source), listed(*names))]


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("EleutherAI/pythia-6.9b", Source("EleutherAI", "pythia-6.9b")),
        ("https://huggingface.co/EleutherAI/pythia-6.9b/", Source("EleutherAI", "pythia-6.9b")),
        ("org/repo/model.Q4_K_M.gguf", Source("org", "repo", "model.Q4_K_M.gguf")),
    ],
    ids=["repository", "pasted address", "one file"],
)
def test_a_source_is_read(text: str, source: Source) -> None:
    assert parse_source(text) == source


@pytest.mark.parametrize(
    "text", ["", "pythia", "../x/y", "a/b/../c", "a/b/c/d", "-a/b", "a/-b", "a b/c", "a/b/.x"]
)
def test_what_is_no_source_is_refused_by_name(text: str) -> None:
    with pytest.raises(InvalidArgumentError, match="source: must be <owner>/<repository>"):
        parse_source(text)


@pytest.mark.parametrize("revision", ["../main", "-x", "a" * 129, "a b"])
def test_what_is_no_revision_is_refused(revision: str) -> None:
    with pytest.raises(InvalidArgumentError, match="revision"):
        parse_source("a/b", revision)


def test_weights_without_code_are_taken_with_what_belongs_to_them() -> None:
    names = ["README.md", "config.json", "model.safetensors", "tokenizer.json"]
    assert chosen("EleutherAI/pythia-70m", *PYTHIA) == names


def test_a_second_copy_of_the_weights_and_a_foreign_manifest_are_left() -> None:
    names = chosen(
        "a/b",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "consolidated.safetensors",
        "manifest.json",
    )
    assert names == ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]


def test_pickles_are_never_taken() -> None:
    with pytest.raises(FailedPreconditionError, match="may hold code"):
        chosen("a/b", "config.json", "pytorch_model.bin")
    with pytest.raises(InvalidArgumentError, match="may hold code"):
        chosen("a/b/pytorch_model.bin", "pytorch_model.bin")


def test_one_of_several_quantizations_must_be_named() -> None:
    with pytest.raises(
        InvalidArgumentError, match=r"name one of a/b/tiny\.Q4_K_M\.gguf, a/b/tiny\.Q8_0\.gguf"
    ):
        chosen("a/b", *GGUF)
    assert chosen("a/b/tiny.Q8_0.gguf", *GGUF) == ["tiny.Q8_0.gguf"]
    assert chosen("a/b", "only.gguf", "README.md") == ["only.gguf"]


def test_a_model_in_parts_is_fetched_whole() -> None:
    parts = ["big-00001-of-00002.gguf", "big-00002-of-00002.gguf"]
    assert chosen("a/b", *parts) == parts
    assert chosen("a/b/big-00001-of-00002.gguf", *parts, "other.gguf") == parts


def test_a_file_that_is_not_there_is_answered_with_those_that_are() -> None:
    with pytest.raises(NotFoundError, match=r"no file 'x\.gguf'; there are: a/b/tiny\.Q4_K_M\.gguf"):
        chosen("a/b/x.gguf", *GGUF)


def test_names_that_could_leave_the_folder_are_left() -> None:
    assert chosen("a/b", "model.safetensors", "../config.json", "sub/config.json", "..json", "c\n.json") == [
        "model.safetensors"
    ]


def test_a_model_over_the_bound_is_refused_with_both_numbers() -> None:
    source = parse_source("a/b")
    assert require_room(source, listed("x.gguf", size=5), max_bytes=5) == 5
    with pytest.raises(InvalidArgumentError, match=r"70\.0 GB, more than the 60\.0 GB .*MAX_PULL_GIGABYTES"):
        require_room(source, listed("x.gguf", size=70_000_000_000), max_bytes=60_000_000_000)
    with pytest.raises(InvalidArgumentError, match="300 files"):
        require_room(source, listed(*(f"{number}.json" for number in range(300))), max_bytes=1000)


def test_a_file_that_grows_beyond_its_listed_size_is_ended() -> None:
    progress = Progress(20, lambda _line: None)
    progress.begin("model.safetensors", 10)
    progress.add(10)
    # A hub that cannot resume sends it again from the start.
    progress.add(-10)
    progress.add(10)
    with pytest.raises(VerificationError, match=r"model\.safetensors did not arrive as the hub lists it"):
        progress.add(1)


@pytest.mark.parametrize("size", [1e300, 2**63, -1, True, "7"])
def test_a_size_that_no_model_has_is_not_believed(size: object) -> None:
    layers = _Layers()
    line = orjson.dumps({"status": "success", "digest": f"sha256:{'a' * 64}", "total": size})
    assert layers.read(line).total_bytes is None


def test_a_model_of_parts_without_an_end_is_given_up() -> None:
    layers = _Layers()
    for number in range(MAX_LAYERS):
        layers.read(orjson.dumps({"status": "pulling", "digest": f"{number}"}))
    with pytest.raises(BackendFailure, match="more than"):
        layers.read(b'{"status":"pulling","digest":"one more"}')
