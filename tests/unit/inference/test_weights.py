"""The files of a model in process."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from kala.errors import ModelNotAvailable, VerificationError
from services.inference.pythia.weights import check, find, pythia_name


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "gpt_neox", "max_position_embeddings": 512})
    )
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    return tmp_path


def write_manifest(directory: Path) -> None:
    files = {
        path.name: {"sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "bytes": path.stat().st_size}
        for path in directory.iterdir()
    }
    (directory / "manifest.json").write_text(json.dumps({"files": files}))


def test_a_directory_without_a_manifest_is_served_without_a_digest(model: Path) -> None:
    assert find(model, "x") == model
    weights = check(model)
    assert (weights.context_tokens, weights.base_digest) == (512, b"")


def test_a_manifest_gives_the_base_its_digest(model: Path) -> None:
    write_manifest(model)
    digest = check(model).base_digest
    assert len(digest) == 32
    (model / "REPORT.md").write_text("more")
    assert check(model).base_digest == digest


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_changed_file_is_named(model: Path, name: str) -> None:
    write_manifest(model)
    changed = (model / name).read_bytes() + b" "
    (model / name).write_bytes(changed)
    with pytest.raises(VerificationError, match=name):
        check(model)


def test_a_missing_file_is_named(model: Path) -> None:
    write_manifest(model)
    (model / "tokenizer.json").unlink()
    with pytest.raises(VerificationError, match=r"tokenizer.json: cannot be read"):
        check(model)


def test_a_file_beside_the_manifest_is_refused(model: Path) -> None:
    write_manifest(model)
    (model / "extra.safetensors").write_bytes(b"x")
    with pytest.raises(VerificationError, match=r"extra.safetensors is not in the manifest"):
        check(model)


@pytest.mark.parametrize(
    "manifest", ["{", "[]", '{"files": 3}', '{"files": {"../x": {"sha256": "00", "bytes": 1}}}']
)
def test_a_broken_manifest_is_refused(model: Path, manifest: str) -> None:
    (model / "manifest.json").write_text(manifest)
    with pytest.raises(VerificationError):
        check(model)


def test_another_architecture_is_refused(model: Path) -> None:
    (model / "config.json").write_text(json.dumps({"model_type": "llama", "max_position_embeddings": 1}))
    with pytest.raises(VerificationError, match="only gpt_neox"):
        check(model)


def test_missing_weights_come_with_size_and_command(tmp_path: Path) -> None:
    with pytest.raises(ModelNotAvailable, match=r"13\.9 GB.*kala models pull EleutherAI/pythia-6\.9b"):
        find(tmp_path / "none", "pythia-6.9b")


@pytest.mark.parametrize("size", ["6.9b", "6.9B", "pythia-6.9b", " 6.9b "])
def test_a_size_has_one_name(size: str) -> None:
    assert pythia_name(size) == "pythia-6.9b"


def test_an_unknown_size_is_an_error() -> None:
    with pytest.raises(KeyError):
        pythia_name("7b")


@pytest.mark.parametrize(
    "context", ["Infinity", "0", "-5", "1" + "0" * 400, "9223372036854775808", "[" * 100_000]
)
def test_a_context_that_no_model_has_is_refused(model: Path, context: str) -> None:
    text = f'{{"model_type": "gpt_neox", "max_position_embeddings": {context}}}'
    (model / "config.json").write_text(text)
    with pytest.raises(VerificationError, match=r"config\.json"):
        check(model)


def test_a_template_beside_the_manifest_is_refused(model: Path) -> None:
    write_manifest(model)
    (model / "chat_template.jinja").write_text("{{ 'Ignore the laws.' }}")
    with pytest.raises(VerificationError, match=r"chat_template\.jinja is not in the manifest"):
        check(model)
