"""The files of a model in process: where they are, whether they are what their manifest says, and how to get them."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from kala.common.v1.reference_pb2 import ContentReference
from kala.errors import ModelNotAvailable, VerificationError
from services.common.file_set import file_set_digest

MANIFEST: Final = "manifest.json"
CONFIG: Final = "config.json"
NEEDED_FILES: Final = (CONFIG, "tokenizer.json")

BASE_SUFFIXES: Final = frozenset({".safetensors", ".json"})
"""What makes up the base: weights, configuration and tokenizer; a report beside them does not change the model."""

_READ_SUFFIXES: Final = BASE_SUFFIXES | {".jinja"}
"""What is read when a model is loaded: a template beside the manifest would write other prompts than were judged."""

DOWNLOAD_GIGABYTES: Final = {
    "70m": 0.2,
    "160m": 0.4,
    "410m": 0.9,
    "1b": 2.1,
    "1.4b": 2.9,
    "2.8b": 5.7,
    "6.9b": 13.9,
    "12b": 23.8,
}
"""Size of each published Pythia in half precision, for a person who decides on a download."""

MAX_CONTEXT_TOKENS: Final = 2**31 - 1
"""More than any model has, and what every message can hold."""


@dataclass(frozen=True, slots=True)
class Weights:
    """A model's directory, checked; `base_digest` is empty where no manifest vouches for the files."""

    directory: Path
    context_tokens: int
    base_digest: bytes
    stamps: tuple[tuple[str, int, int], ...] = ()
    """Name, size and time of change of the files, as they were when they were looked at."""


def pythia_name(size: str) -> str:
    """Give the model's name for a size as users write it: `6.9b`, `6.9B` or `pythia-6.9b`; KeyError for no such size."""
    plain = size.strip().lower().removeprefix("pythia-")
    if plain not in DOWNLOAD_GIGABYTES:
        raise KeyError(size)
    return f"pythia-{plain}"


def find(directory: Path, name: str) -> Path:
    """Give the directory if a model's files are in it; raises ModelNotAvailable with the size and the pull command."""
    has_files = all((directory / file).is_file() for file in NEEDED_FILES)
    if has_files and any(directory.glob("*.safetensors")):
        return directory
    size = DOWNLOAD_GIGABYTES.get(name.removeprefix("pythia-"))
    if size is None:
        raise ModelNotAvailable(
            f"{directory} holds no GPT-NeoX model: it needs {', '.join(NEEDED_FILES)} and *.safetensors"
        )
    raise ModelNotAvailable(
        f"the weights of {name} (about {size:g} GB) are not on this machine; "
        f"get them with `kala models pull EleutherAI/{name}`"
    )


def check(directory: Path) -> Weights:
    """Read the configuration and hold every file against the manifest, if there is one; raises VerificationError.

    Reads all files once: milliseconds for the demo.  A directory without a manifest is the operator's own.
    """
    try:
        config = json.loads((directory / CONFIG).read_bytes())
        context_tokens = int(config["max_position_embeddings"])
        architecture = config["model_type"]
    except (OSError, ValueError, OverflowError, RecursionError, KeyError, TypeError) as error:
        raise VerificationError(f"{directory / CONFIG}: is not the configuration of a model") from error
    if not 0 < context_tokens <= MAX_CONTEXT_TOKENS:
        raise VerificationError(f"{directory / CONFIG}: names a context that no model has")
    if architecture != "gpt_neox":
        raise VerificationError(
            f"{directory / CONFIG}: is a {architecture} model; only gpt_neox is served in process"
        )
    manifest = directory / MANIFEST
    # Before the files are read, so that a change meanwhile shows.
    stamps = _stamps(directory)
    base_digest = _checked_against(manifest) if manifest.is_file() else b""
    return Weights(directory, context_tokens, base_digest, stamps)


def unlisted_digest(weights: Weights) -> bytes:
    """Give the file set digest of a base that no manifest vouches for; reads all of it.

    Raises VerificationError where the files are no longer those that were looked at before loading.
    """
    files = [_reference(weights.directory, name) for name, _, _ in weights.stamps]
    if _stamps(weights.directory) != weights.stamps:
        raise VerificationError(
            f"{weights.directory}: its files changed since the model was loaded; load it again"
        )
    return file_set_digest(files)


def _stamps(directory: Path) -> tuple[tuple[str, int, int], ...]:
    found = [
        (path.name, path.stat())
        for path in sorted(directory.iterdir())
        if path.suffix in BASE_SUFFIXES and path.name != MANIFEST
    ]
    return tuple((name, status.st_size, status.st_mtime_ns) for name, status in found)


def _reference(directory: Path, name: str) -> ContentReference:
    try:
        with (directory / name).open("rb") as file:
            digest, size = hashlib.file_digest(file, "sha256").digest(), file.tell()
    except OSError as error:
        raise VerificationError(f"{directory / name}: cannot be read") from error
    return ContentReference(name=name, sha256=digest, bytes=size)


def _checked_against(manifest: Path) -> bytes:
    try:
        listed = json.loads(manifest.read_bytes())["files"]
        files = {
            str(name): (bytes.fromhex(entry["sha256"]), int(entry["bytes"])) for name, entry in listed.items()
        }
    except (
        OSError,
        ValueError,
        OverflowError,
        RecursionError,
        KeyError,
        TypeError,
        AttributeError,
    ) as error:
        raise VerificationError(f"{manifest}: is not a manifest of files") from error
    directory = manifest.parent
    unlisted = (
        {path.name for path in directory.glob("*") if path.suffix in _READ_SUFFIXES} - set(files) - {MANIFEST}
    )
    if unlisted:
        raise VerificationError(f"{directory}: {', '.join(sorted(unlisted))} is not in the manifest")
    for name, (digest, size) in files.items():
        _require_file(directory, name, digest, size)
    base = [name for name in files if Path(name).suffix in BASE_SUFFIXES]
    return file_set_digest(
        [ContentReference(name=name, sha256=files[name][0], bytes=files[name][1]) for name in sorted(base)]
    )


def _require_file(directory: Path, name: str, digest: bytes, size: int) -> None:
    path = directory / name
    if Path(name).name != name:
        raise VerificationError(f"{directory / MANIFEST}: {name!r} is not a plain file name")
    try:
        with path.open("rb") as file:
            actual = hashlib.file_digest(file, "sha256").digest()
    except OSError as error:
        raise VerificationError(f"{path}: cannot be read") from error
    if actual != digest or path.stat().st_size != size:
        raise VerificationError(f"{path}: is not the file that its manifest names")
