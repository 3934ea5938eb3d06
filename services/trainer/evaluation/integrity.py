"""Whether a candidate is what was signed and does what adapters do; each check is one item of the suite `integrity`."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from kala.common.v1.adapter_pb2 import AdapterDescription, AdapterManifest
from kala.common.v1.reference_pb2 import ContentReference
from kala.errors import VerificationError
from services.common.adapter_manifest import MANIFEST_FILE, read_signed_manifest
from services.common.file_set import file_set_digest
from services.trainer.evaluation.candidate import Candidate, adapter_tensors
from services.trainer.evaluation.suites import Turn
from services.trainer.registry.bases import base_files

FIXTURE: Final = (Turn("user", "Hello, what can you do?"),)
SIZE_RATIO: Final = 1.02
"""Bytes of the weights' file over those of r x (inputs + outputs): whole embeddings in it would show."""

HEADER_BYTES: Final = 16_384
"""The names of the tensors, which weigh in small adapters."""


@dataclass(frozen=True, slots=True)
class Checked:
    """A private copy of the candidate whose bytes are the signed ones."""

    folder: Path
    description: AdapterDescription


def copy_checked(source: Path, digest: bytes, folder: Path) -> Checked:
    """Copy an adapter's files while they are held against its manifest; raises VerificationError for any other byte.

    `digest` is of the serialised signed manifest, as the cleared action names it. What is loaded later is the copy.
    """
    try:
        signed_bytes = (source / MANIFEST_FILE).read_bytes()
    except OSError as error:
        raise VerificationError(f"{source.name}: has no {MANIFEST_FILE}: {error.strerror}") from error
    if hashlib.sha256(signed_bytes).digest() != digest:
        raise VerificationError(
            f"{source.name}: its manifest is not the one that the evaluation was cleared for"
        )
    manifest = AdapterManifest.FromString(read_signed_manifest(signed_bytes).manifest)
    description = AdapterDescription.FromString(manifest.adapter)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700, parents=True)
    for file in description.files:
        _copy(source / file.name, folder / Path(file.name).name, file)
    return Checked(folder, description)


def require_base(directory: Path, description: AdapterDescription, digest: bytes) -> None:
    """Raises VerificationError unless the base's files are those that the adapter was trained on."""
    found = file_set_digest(base_files(directory))
    if found != digest or digest != description.base.digest:
        raise VerificationError(
            f"base {description.base.name}: the files in {directory.name} have digest {found.hex()[:16]}, "
            f"the adapter was trained on {description.base.digest.hex()[:16]}"
        )


def checks(candidate: Candidate, checked: Checked) -> Mapping[str, Callable[[], bool]]:
    """The checks by name; the suite's items name those that count."""
    tensors = adapter_tensors(checked.folder)
    return {
        "finite_weights": lambda: all(bool(tensor.isfinite().all()) for tensor in tensors.values()),
        "every_target_trained": lambda: _every_target_trained(tensors, checked.description),
        "no_whole_embeddings": lambda: _is_lean(checked),
        "finite_scores": lambda: bool(candidate.logits(FIXTURE, bare=False).isfinite().all()),
        "has_effect": lambda: _differs(candidate),
        "same_twice": lambda: bool(
            candidate.logits(FIXTURE, bare=False).equal(candidate.logits(FIXTURE, bare=False))
        ),
    }


def _differs(candidate: Candidate) -> bool:
    with_it = candidate.logits(FIXTURE, bare=False)
    without = candidate.logits(FIXTURE, bare=True)
    return with_it.shape == without.shape and not bool(with_it.equal(without))


def _every_target_trained(
    tensors: Mapping[str, Any], description: AdapterDescription
) -> bool:  # Any: tensors
    """In every module that was to be trained some B is no longer nought, where it began."""
    moved = {
        name.rpartition(".lora_")[0].rpartition(".")[2]
        for name, tensor in tensors.items()
        if ".lora_" in name and _is_b(name) and bool(tensor.any())
    }
    return {target.module for target in description.lora.targets} <= moved


def _is_b(name: str) -> bool:
    return name.rpartition(".lora_")[2].removeprefix("embedding_").startswith("B")


def _is_lean(checked: Checked) -> bool:
    lora = checked.description.lora
    if lora.full_modules:
        return True
    numbers = sum(
        lora.rank * (target.in_features + target.out_features) * target.matched for target in lora.targets
    )
    size = next((file.bytes for file in checked.description.files if file.name.endswith(".safetensors")), 0)
    width = 4 if size > numbers * 3 else 2
    return 0 < size <= numbers * width * SIZE_RATIO + HEADER_BYTES


def _copy(source: Path, target: Path, file: ContentReference) -> None:
    if source.is_symlink() or not source.is_file():
        raise VerificationError(f"file {file.name}: is missing or no plain file")
    digest, size = hashlib.sha256(), 0
    with source.open("rb") as reading, target.open("xb") as writing:
        while block := reading.read(1 << 20):
            digest.update(block)
            size += len(block)
            writing.write(block)
    if digest.digest() != file.sha256 or size != file.bytes:
        raise VerificationError(f"file {file.name}: is not the one that the manifest names")
