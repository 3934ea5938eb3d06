"""A dataset on disk: its files, the manifest that names them by digest, and reading rows that are what it says."""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from kala.common.v1.reference_pb2 import ContentReference
from kala.errors import VerificationError
from services.common.file_set import file_set_digest

FORMAT: Final = "kala-dataset-v1"
MANIFEST: Final = "manifest.json"
CARD: Final = "CARD.md"
TRAIN: Final = "train.jsonl"
VALIDATION: Final = "validation.jsonl"
NAMED_FILES: Final = (CARD, TRAIN, VALIDATION)
# A manifest holds a spec and a report of at most 1,000 problems.
MAX_MANIFEST_BYTES: Final = 16 * 1024 * 1024
_CHUNK: Final = 1024 * 1024


@dataclass(frozen=True, slots=True)
class DatasetFiles:
    """A dataset's folder after its manifest's digest held."""

    directory: Path
    name: str
    manifest: Mapping[str, Any]  # Any: checked JSON
    files: Mapping[str, ContentReference]

    def rows(self, file: str = TRAIN) -> Iterator[dict[str, Any]]:  # Any: rows are JSON
        """Yields the file's rows; raises VerificationError at its end when it is not what the manifest names.

        A caller must have read to the end before it relies on a row: what was changed is known only then.
        """
        expected = self.files[file]
        digest, size = hashlib.sha256(), 0
        with (self.directory / file).open("rb") as lines:
            for line in lines:
                digest.update(line)
                size += len(line)
                yield json.loads(line)
        if size != expected.bytes or not secrets.compare_digest(digest.digest(), expected.sha256):
            raise VerificationError(f"{self.name}: {file} is not the file that its manifest names")


def open_dataset(directory: Path, digest: bytes) -> DatasetFiles:
    """Returns the dataset whose manifest has this SHA-256; raises VerificationError for anything else."""
    try:
        with (directory / MANIFEST).open("rb") as file:
            data = file.read(MAX_MANIFEST_BYTES + 1)
    except OSError as error:
        raise VerificationError(f"{directory}: its manifest cannot be read: {error.strerror}") from error
    if not secrets.compare_digest(hashlib.sha256(data).digest(), digest):
        raise VerificationError(f"{directory}: its manifest is not the one that was cleared")
    try:
        manifest = json.loads(data)
        files = {
            each["name"]: ContentReference(
                name=each["name"], sha256=bytes.fromhex(each["sha256"]), bytes=each["bytes"]
            )
            for each in manifest["files"]
        }
        dataset = DatasetFiles(directory, manifest["name"], manifest, files)
        known = manifest["format"] == FORMAT and set(files) == set(NAMED_FILES)
    except (ValueError, KeyError, TypeError) as error:
        raise VerificationError(f"{directory}: its manifest cannot be read") from error
    if not known:
        raise VerificationError(f"{directory}: its manifest is none of {FORMAT}")
    return dataset


def verify_files(dataset: DatasetFiles) -> None:
    """Raises VerificationError unless every file is what the manifest names."""
    for name, expected in dataset.files.items():
        try:
            found = reference_of(dataset.directory / name)
        except OSError as error:
            raise VerificationError(f"{dataset.name}: {name} cannot be read: {error.strerror}") from error
        if found.sha256 != expected.sha256 or found.bytes != expected.bytes:
            raise VerificationError(f"{dataset.name}: {name} is not the file that its manifest names")


def reference_of(path: Path) -> ContentReference:
    """Returns the name, digest and size of a file."""
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            size += len(chunk)
    return ContentReference(name=path.name, sha256=digest.digest(), bytes=size)


def write_manifest(
    directory: Path,
    name: str,
    spec: Mapping[str, Any],  # Any: the spec and the report in protobuf's JSON
    report: Mapping[str, Any],
    generators: str,
) -> tuple[list[ContentReference], bytes]:
    """Writes the manifest; returns all files with it, and the digest of their set."""
    named = [reference_of(directory / file) for file in NAMED_FILES]
    document = {
        "format": FORMAT,
        "name": name,
        "generators": generators,
        "files": [{"name": each.name, "sha256": each.sha256.hex(), "bytes": each.bytes} for each in named],
        "spec": spec,
        "report": report,
    }
    text = json.dumps(document, ensure_ascii=False, indent=1, sort_keys=True) + "\n"
    (directory / MANIFEST).write_text(text, encoding="utf-8")
    files = sorted([*named, reference_of(directory / MANIFEST)], key=lambda each: each.name)
    return files, file_set_digest(files)
