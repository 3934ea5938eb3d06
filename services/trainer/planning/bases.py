"""The bases on this machine: where they are, what shape they have, and the digest of their files."""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from kala.common.v1.reference_pb2 import ContentReference
from kala.errors import VerificationError
from services.common.file_set import file_set_digest
from services.trainer.planning.shapes import EMBEDDED, PRESETS, Shape, read_shape

MANIFEST: Final = "manifest.json"
CONFIG: Final = "config.json"
NEEDED_FILES: Final = (CONFIG, "tokenizer.json")
BASE_SUFFIXES: Final = frozenset({".safetensors", ".json"})
"""What makes up a base: weights, configuration and tokenizer; reports and templates beside them do not change it."""

_NAME: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
# What ExportAdapter names a merge; other exports are no bases, for nobody recorded what they are the merge of.
_MERGED: Final = re.compile(r".+-merged(-f32|-f16|-bf16)?(-[0-9a-f]{8})?")

Stamps = tuple[tuple[str, int, int], ...]
"""Name, size and time of change of each file."""


@dataclass(frozen=True, slots=True)
class Base:
    """A base whose files are here."""

    name: str
    directory: Path
    shape: Shape
    files: tuple[ContentReference, ...]

    @property
    def reference(self) -> ContentReference:
        """What a TrainingSpec names it by: the digest of its files and their total size."""
        return ContentReference(
            name=self.name,
            sha256=file_set_digest(self.files),
            bytes=sum(file.bytes for file in self.files),
        )


class Bases:
    """Finds bases by name: the embedded model, folders of `directory`, and merges among the exports in `exports`.

    Files are hashed once and again only when their size or time of change differ: 24 GB take minutes.
    """

    def __init__(self, directory: Path | None, embedded: Path | None, *, exports: Path | None = None) -> None:
        self._directory = directory
        self._exports = exports
        self._embedded = embedded
        self._hashed: dict[Path, tuple[Stamps, tuple[ContentReference, ...]]] = {}
        self._lock = asyncio.Lock()

    def folder(self, name: str) -> Path | None:
        """Where a base's files are, or None; says nothing of whether they are whole."""
        if not _NAME.fullmatch(name):
            return None
        folder = self._embedded if name == EMBEDDED else self._directory and self._directory / name
        if _is_whole(folder):
            return folder
        merged = self._exports / name if self._exports and _MERGED.fullmatch(name) else None
        return merged if _is_whole(merged) else None

    def names(self) -> list[str]:
        """The names of the bases that are here, sorted."""
        found = [EMBEDDED] if self.folder(EMBEDDED) else []
        if self._directory and self._directory.is_dir():
            entries = (path.name for path in self._directory.iterdir())
            found += [name for name in entries if name != EMBEDDED and self.folder(name)]
        return sorted(found)

    def shape(self, name: str) -> Shape | None:
        """The shape of a base that is here, else of the preset of that name, else None; raises VerificationError."""
        folder = self.folder(name)
        return read_shape(folder / CONFIG) if folder else PRESETS.get(name)

    async def find(self, name: str) -> Base | None:
        """A base with the digests of its files, or None when it is not here; raises VerificationError when it is broken."""
        folder = self.folder(name)
        if folder is None:
            return None
        async with self._lock:
            stamps = await asyncio.to_thread(_stamps, folder)
            if not any(file.endswith(".safetensors") for file, _, _ in stamps):
                return None
            held = self._hashed.get(folder)
            if held is None or held[0] != stamps:
                files = await asyncio.to_thread(_references, folder, [file for file, _, _ in stamps])
                if await asyncio.to_thread(_stamps, folder) != stamps:
                    raise VerificationError(f"{name}: its files change while they are read; ask again")
                held = self._hashed[folder] = (stamps, files)
        return Base(name, folder, read_shape(folder / CONFIG), held[1])


def _is_whole(folder: Path | None) -> bool:
    return folder is not None and all((folder / file).is_file() for file in NEEDED_FILES)


def _stamps(folder: Path) -> Stamps:
    found = sorted(
        path
        for path in folder.iterdir()
        if path.suffix in BASE_SUFFIXES and path.name != MANIFEST and path.is_file()
    )
    return tuple((path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in found)


def _references(folder: Path, names: Iterable[str]) -> tuple[ContentReference, ...]:
    references: list[ContentReference] = []
    for name in names:
        try:
            with (folder / name).open("rb") as file:
                digest, size = hashlib.file_digest(file, "sha256").digest(), file.tell()
        except OSError as error:
            raise VerificationError(f"{folder.name}/{name}: cannot be read") from error
        references.append(ContentReference(name=name, sha256=digest, bytes=size))
    return tuple(references)
