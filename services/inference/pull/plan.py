"""What to fetch: which repository is meant, which of its files, and whether they fit.  Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Final

from kala.errors import FailedPreconditionError, InvalidArgumentError, NotFoundError

MAX_FILES: Final = 256
"""The largest published models have about a hundred shards."""

MAX_LISTED: Final = 12

MANIFEST: Final = "manifest.json"
"""Written here; one that a repository brings along is not taken."""

KEPT_SUFFIXES: Final = frozenset({".safetensors", ".json", ".txt", ".model", ".jinja", ".tiktoken", ".md"})
"""Weights that hold no code, configuration, tokenizers and the model's own words about itself. Never a pickle."""

_NAME: Final = r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}"
_SOURCE: Final = re.compile(
    rf"(?P<owner>{_NAME})/(?P<name>{_NAME})(?:/(?P<file>[A-Za-z0-9_][A-Za-z0-9._+-]{{0,127}}))?"
)
_REVISION: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,127}")
_PLAIN: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+-]{0,127}")
_MODEL_WEIGHTS: Final = re.compile(r"model(?:-\d+-of-\d+)?\.safetensors")
_PART: Final = re.compile(r"(?P<stem>.+)-\d{5}-of-(?P<count>\d{5})\.gguf")


@dataclass(frozen=True, slots=True)
class Source:
    """A repository, or one file of it."""

    owner: str
    name: str
    file: str | None = None
    revision: str | None = None

    @property
    def repository(self) -> str:
        return f"{self.owner}/{self.name}"

    def __str__(self) -> str:
        return self.repository if self.file is None else f"{self.repository}/{self.file}"


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file as the hub lists it: its SHA-256 where it is a large one, else git's digest of it."""

    name: str
    size: int
    sha256: bytes | None
    git_sha1: str


def parse_source(text: str, revision: str = "") -> Source:
    """Read `owner/name` or `owner/name/file`; raises InvalidArgumentError that names the field."""
    match = _SOURCE.fullmatch(text.removeprefix("https://huggingface.co/").rstrip("/"))
    if match is None or ".." in text:
        raise InvalidArgumentError(
            "source",
            "must be <owner>/<repository> or <owner>/<repository>/<file>, e.g. EleutherAI/pythia-70m",
        )
    if revision and (_REVISION.fullmatch(revision) is None or ".." in revision):
        raise InvalidArgumentError("revision", "must be a commit, branch or tag of at most 128 characters")
    return Source(match["owner"], match["name"], match["file"], revision or None)


def choose(source: Source, files: Sequence[RemoteFile]) -> list[RemoteFile]:
    """Give the files to fetch, by name; raises the KalaError that says why there is nothing to."""
    plain = sorted((file for file in files if _PLAIN.fullmatch(file.name)), key=lambda file: file.name)
    if source.file is not None:
        return _named(source, plain)
    weights = [file for file in plain if file.name.endswith(".safetensors")]
    if weights:
        return _model(plain, weights)
    quantized = [file for file in plain if file.name.endswith(".gguf")]
    whole = {_whole(file.name) for file in quantized}
    if len(whole) == 1:
        return quantized
    if quantized:
        raise InvalidArgumentError(
            "source", f"{source} holds several models; name one of {_listed(source, quantized)}"
        )
    raise FailedPreconditionError(
        f"{source} holds neither *.safetensors nor *.gguf; pickled weights are never fetched, for they may hold code",
        reason="NO_USABLE_WEIGHTS",
    )


def require_room(source: Source, files: Sequence[RemoteFile], *, max_bytes: int) -> int:
    """Give the size of all files; raises InvalidArgumentError over a limit, with both numbers and the cure."""
    total = sum(file.size for file in files)
    if len(files) > MAX_FILES:
        raise InvalidArgumentError(
            "source", f"{source} has {len(files)} files to fetch, more than {MAX_FILES}; name one of them"
        )
    if total > max_bytes:
        raise InvalidArgumentError(
            "source",
            f"{source} is {gigabytes(total)} GB, more than the {gigabytes(max_bytes)} GB that may be fetched; "
            "raise KALA_INFERENCE_MAX_PULL_GIGABYTES",
            reason="MODEL_TOO_LARGE",
        )
    return total


def gigabytes(size: int) -> str:
    """Write a size for people."""
    return f"{size / 1e9:.2f}" if size < 1e10 else f"{size / 1e9:.1f}"  # noqa: PLR2004 - ten gigabytes


def _named(source: Source, plain: Sequence[RemoteFile]) -> list[RemoteFile]:
    wanted = source.file or ""
    suffix = PurePosixPath(wanted).suffix
    if suffix != ".gguf" and suffix not in KEPT_SUFFIXES:
        raise InvalidArgumentError(
            "source", f"{wanted} is no *.gguf or *.safetensors; other weights may hold code"
        )
    # A model in parts is one model.
    found = [file for file in plain if file.name == wanted or _whole(file.name) == _whole(wanted) != wanted]
    if not any(file.name == wanted for file in found):
        others = [file for file in plain if file.name.endswith((".gguf", ".safetensors"))]
        raise NotFoundError(
            f"{source.repository} has no file {wanted!r}; there are: {_listed(source, others) or 'no weights'}"
        )
    return found


def _model(plain: Sequence[RemoteFile], weights: Sequence[RemoteFile]) -> list[RemoteFile]:
    # Some repositories hold the same weights twice, once under a vendor's own name.
    usual = {file.name for file in weights if _MODEL_WEIGHTS.fullmatch(file.name)}
    wanted = usual or {file.name for file in weights}
    return [
        file
        for file in plain
        if file.name in wanted
        or (file.name != MANIFEST and PurePosixPath(file.name).suffix in KEPT_SUFFIXES - {".safetensors"})
        or file.name.startswith("LICENSE")
    ]


def _whole(name: str) -> str:
    """The name that all parts of one GGUF model share."""
    match = _PART.fullmatch(name)
    return name if match is None else f"{match['stem']}*{match['count']}"


def _listed(source: Source, files: Sequence[RemoteFile]) -> str:
    names = [f"{source.repository}/{file.name}" for file in files]
    more = f" and {len(names) - MAX_LISTED} more" if len(names) > MAX_LISTED else ""
    return ", ".join(names[:MAX_LISTED]) + more
