"""Where adapters lie: one folder each, placed whole and never written again but for its signed manifest."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from kala.common.v1.adapter_pb2 import SignedAdapterManifest
from kala.common.v1.reference_pb2 import ContentReference
from kala.errors import AlreadyExistsError, FailedPreconditionError, VerificationError
from services.common.adapter_manifest import MANIFEST_FILE, MAX_ADAPTER_BYTES, read_signed_manifest
from services.common.adapter_weights import CONFIG_FILE, WEIGHTS_FILE
from services.trainer.registry.buffers import open_plain, read_buffer

CARD_FILE: Final = "README.md"
TEMPLATE_FILE: Final = "chat_template.jinja"
FOLDER_FILES: Final = frozenset({WEIGHTS_FILE, CONFIG_FILE, CARD_FILE, TEMPLATE_FILE})
"""All that an adapter's folder may hold besides its manifest. Anything else, such as a pickle, is no part of one."""

_PREFIX: Final = "adapters/"
_STAGE_BYTES: Final = 8
_LOCATION: Final = re.compile(r"[a-z0-9-]{1,64}@[1-9][0-9]{0,9}")


@dataclass(frozen=True, slots=True)
class Folder:
    """An adapter's folder."""

    path: Path

    def names(self) -> list[str]:
        """The names of all that is in it, whatever it is."""
        return sorted(path.relative_to(self.path).as_posix() for path in self.path.rglob("*"))

    def read(self, name: str, limit: int) -> bytes:
        """At most `limit` bytes of a file; never through a link."""
        return read_buffer(self.path / name, limit)

    def references(self) -> list[ContentReference]:
        """Every file but the manifest, by name, with digest and size."""
        return [_reference(self.path / name, name) for name in self.names() if name != MANIFEST_FILE]


class Shelf:
    """The directory that inference loads adapters from; a folder's name in it is its adapter's name and version."""

    def __init__(self, root: Path, *, random: Callable[[int], bytes] = secrets.token_bytes) -> None:
        self.root = root
        self._random = random
        # Beside the shelf's folders and on the same file system: nothing half written ever has an adapter's name.
        self._stages = root / ".staging"

    def open(self) -> None:
        """Makes the directory and removes what an earlier life left half written."""
        shutil.rmtree(self._stages, ignore_errors=True)
        self._stages.mkdir(parents=True)

    def folder(self, name: str) -> Folder:
        """The folder of "adapters/<name>@<version>"; raises FailedPreconditionError when its files are gone."""
        folder = Folder(self.root / location_of(name))
        if not folder.path.is_dir():
            raise FailedPreconditionError(
                f"the files of {name} are not in {self.root}; restore them from a backup",
                reason="ADAPTER_FILES_MISSING",
            )
        return folder

    @contextmanager
    def staged(self, source: Path) -> Iterator[Folder]:
        """A private copy of what training left in `source`, refused when it holds anything that an adapter does not.

        What is described and signed is this copy: nobody else can still write to it.
        """
        _require_plain(source)
        stage = Folder(self._stages / self._random(_STAGE_BYTES).hex())
        stage.path.mkdir(parents=True)
        try:
            for name in sorted(FOLDER_FILES):
                if (source / name).exists():
                    _copy(source / name, stage.path / name)
            yield stage
        finally:
            shutil.rmtree(stage.path, ignore_errors=True)

    def place(self, stage: Folder, name: str, manifest: SignedAdapterManifest) -> Folder:
        """Makes the staged folder that of "adapters/<name>@<version>"; AlreadyExistsError when there is one already."""
        final = self.root / location_of(name)
        _write_durably(stage.path / MANIFEST_FILE, manifest.SerializeToString(deterministic=True))
        try:
            # A rename onto a folder that holds something fails on every file system: nothing is ever replaced.
            stage.path.rename(final)
        except OSError as error:
            if final.exists():
                raise AlreadyExistsError(f"{final} is there already") from error
            raise
        _sync_directory(self.root)
        return Folder(final)

    def replace_manifest(self, name: str, manifest: SignedAdapterManifest) -> None:
        """Puts a new manifest in the old one's place; a reader meets either, never a part."""
        folder = self.folder(name)
        # Written outside the folder, where a reader would wonder about an unlisted file.
        draft = self._stages / self._random(_STAGE_BYTES).hex()
        _write_durably(draft, manifest.SerializeToString(deterministic=True))
        draft.replace(folder.path / MANIFEST_FILE)
        _sync_directory(folder.path)

    def read_manifest(self, name: str) -> SignedAdapterManifest:
        """The manifest as it lies there; nothing in it is verified."""
        return read_signed_manifest((self.folder(name).path / MANIFEST_FILE).read_bytes())


def location_of(name: str) -> str:
    """Where "adapters/<name>@<version>" lies below the shelf, as LoadAdapter's location has it."""
    location = name.removeprefix(_PREFIX)
    if not _LOCATION.fullmatch(location):
        raise VerificationError(f"{name!r} is not adapters/<name>@<version>")
    return location


def _require_plain(source: Path) -> None:
    """Refuses links, folders and every name that no adapter has, before a byte of it is read."""
    if not source.is_dir():
        raise VerificationError(f"{source.name}: training left no adapter there")
    total = 0
    for path in sorted(source.rglob("*")):
        name = path.relative_to(source).as_posix()
        if name not in FOLDER_FILES or path.is_symlink() or not path.is_file():
            raise VerificationError(
                f"file {name!r}: has no place in an adapter, which holds only {', '.join(sorted(FOLDER_FILES))}"
            )
        total += path.stat().st_size
    if total > MAX_ADAPTER_BYTES:
        raise VerificationError(
            f"{source.name}: has {total} bytes, at most {MAX_ADAPTER_BYTES} are an adapter"
        )


def _reference(path: Path, name: str) -> ContentReference:
    with open_plain(path) as file:
        digest = hashlib.file_digest(file, "sha256").digest()
        return ContentReference(name=name, sha256=digest, bytes=file.tell())


def _copy(source: Path, target: Path) -> None:
    with open_plain(source) as reading, target.open("xb") as writing:
        shutil.copyfileobj(reading, writing, 1 << 20)
        writing.flush()
        os.fsync(writing.fileno())


def _write_durably(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
