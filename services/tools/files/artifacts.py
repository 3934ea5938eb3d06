"""Collecting what a run left for its caller: plain files only, bounded in number and size, with their digests."""

from __future__ import annotations

import hashlib
import mimetypes
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Final

from services.tools.files.beneath import closing, open_regular
from services.tools.files.content import pieces, write_all
from services.tools.files.copying import SkippedList, refusal_of
from services.tools.files.model import Artifact, Collected, FileKind
from services.tools.files.paths import DEFAULT_PATTERN_DIRECTORY, Pattern, readable_path
from services.tools.files.tree import Entry, walk
from services.tools.files.volume import HOST_DIRECTORY

UNKNOWN_MEDIA_TYPE: Final = "application/octet-stream"
# A file of holes costs the run nothing and its caller everything: beyond 1 MiB at most 100 times what is really stored.
MAX_SPARSE_RATIO: Final = 100
_SPARSE_FROM_BYTES: Final = 1024 * 1024
_BLOCK_BYTES: Final = 512

# The table of the standard library alone, so that no machine's own files change an answer.
_types: Final = mimetypes.MimeTypes(filenames=())


@dataclass(frozen=True, slots=True)
class Caps:
    """How much one run may leave."""

    artifacts: int
    artifact_bytes: int


def collect(
    source: int,
    store: int,
    *,
    run: str,
    patterns: Sequence[Pattern],
    known: Mapping[str, bytes],
    caps: Caps,
) -> Collected:
    """Copy the chosen files out of a run's workspace into the directory `store`, as "0", "1" and so on; blocking.

    Without patterns: every file under "out/" that is new or not as it was given (`known`: path to SHA-256). Only after the
    run has ended.
    """
    skipped = SkippedList()
    artifacts: list[Artifact] = []
    left = caps.artifact_bytes
    for path, entry in _chosen(source, patterns, skipped):
        reason = _refusal(entry, len(artifacts), left, caps)
        if reason is not None:
            skipped.add(path, reason)
            continue
        try:
            size, sha256 = _copy(source, path, store, str(len(artifacts)), entry.size)
        except OSError as error:
            skipped.add(path, error.strerror or "cannot be read")
            _forget(store, str(len(artifacts)))
            continue
        if not patterns and known.get(path) == sha256:
            _forget(store, str(len(artifacts)))
            continue
        left -= size
        name = f"{run}/artifacts/{len(artifacts)}"
        artifacts.append(Artifact(name, path, sha256, size, media_type_of(path)))
    return Collected(tuple(artifacts), skipped.done())


def media_type_of(path: str) -> str:
    """The type that the name's ending says."""
    ending = PurePosixPath(path).suffix.lower()
    return _types.types_map[True].get(ending, UNKNOWN_MEDIA_TYPE)


def _chosen(source: int, patterns: Sequence[Pattern], skipped: SkippedList) -> list[tuple[str, Entry]]:
    """What is asked for and has a name, by path."""
    chosen = []
    for entry in walk(source):
        if entry.kind is FileKind.DIRECTORY:
            continue
        path = readable_path(entry.path)
        if path is None:
            if not patterns and entry.path.startswith(DEFAULT_PATTERN_DIRECTORY.encode() + b"/"):
                skipped.add(entry.path, "its name is not one that could be asked for")
        elif _is_meant(path, patterns):
            chosen.append((path, entry))
    return sorted(chosen, key=lambda item: item[0].encode())


def _is_meant(path: str, patterns: Sequence[Pattern]) -> bool:
    if path.startswith(HOST_DIRECTORY + "/"):
        return False
    if not patterns:
        return path.startswith(DEFAULT_PATTERN_DIRECTORY + "/")
    return any(pattern.matches(path) for pattern in patterns)


def _refusal(entry: Entry, count: int, left: int, caps: Caps) -> str | None:
    reason = refusal_of(entry)
    if reason is not None:
        return reason
    stored = entry.status.st_blocks * _BLOCK_BYTES
    if entry.size > _SPARSE_FROM_BYTES and entry.size > stored * MAX_SPARSE_RATIO:
        return f"{entry.size} bytes of which only {stored} are stored: a file of holes"
    if count >= caps.artifacts:
        return f"more than {caps.artifacts} artifacts"
    if entry.size > left:
        return f"{entry.size} bytes do not fit into the {caps.artifact_bytes} bytes for all artifacts"
    return None


def _copy(source: int, path: str, store: int, name: str, most: int) -> tuple[int, bytes]:
    digest = hashlib.sha256()
    size = 0
    descriptor, _ = open_regular(source, path.encode())
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    with closing(descriptor), closing(os.open(name, flags, 0o600, dir_fd=store)) as target:
        for piece in pieces(descriptor, most=most):
            write_all(target, piece)
            digest.update(piece)
            size += len(piece)
    return size, digest.digest()


def _forget(store: int, name: str) -> None:
    try:
        os.unlink(name, dir_fd=store)
    except FileNotFoundError:
        return
