"""Checkpoints on disk, which are the truth: written whole or not at all, and believed only as far as their hashes hold."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from kala.errors import DataLossError

MANIFEST: Final = "manifest.json"
DIRECTORY: Final = "checkpoints"
_NAME: Final = re.compile(r"step-([0-9]{8,})")
_DRAFT: Final = ".draft-"
_DAMAGED: Final = "damaged-"

Write = Callable[[Path], None]
"""Writes one file."""

OnDamage = Callable[[int, str], None]
"""Told the step of a checkpoint that cannot be used, and what is wrong with it."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """One that was verified."""

    step: int
    directory: Path
    sha256: bytes
    """Of its manifest."""
    bytes: int


class Checkpoints:
    """Those of one piece of work; one worker writes, all may read."""

    def __init__(self, folder: Path, *, kept: int) -> None:
        self._root = folder / DIRECTORY
        self._kept = kept

    def save(self, step: int, files: Mapping[str, Write]) -> Checkpoint:
        """Write a checkpoint, verify it, and let the oldest go; raises OSError, e.g. for a full disk, and leaves no part."""
        self._root.mkdir(parents=True, exist_ok=True)
        draft, final = self._root / f"{_DRAFT}{step:08d}", self._root / f"step-{step:08d}"
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir()
        try:
            listed = {name: _written(draft / name, write) for name, write in files.items()}
            manifest = json.dumps({"step": step, "files": listed}, indent=1).encode()
            _written(draft / MANIFEST, lambda path: _put(path, manifest))
            _sync(draft)
            if final.exists():
                # An older one of this step that did not hold, or work that was done twice.
                shutil.rmtree(final)
            draft.rename(final)
            _sync(self._root)
        except OSError:
            shutil.rmtree(draft, ignore_errors=True)
            raise
        self._let_go()
        return Checkpoint(step, final, hashlib.sha256(manifest).digest(), _size(listed))

    def latest(self, on_damage: OnDamage) -> Checkpoint | None:
        """Give the newest that holds; one that does not is put aside and told."""
        for step, path in reversed(list(self._all())):
            try:
                return _verified(step, path)
            except DataLossError as error:
                on_damage(step, error.message)
                aside = path.with_name(f"{_DAMAGED}{path.name}")
                shutil.rmtree(aside, ignore_errors=True)
                path.rename(aside)
        return None

    def find(self, step: int) -> Checkpoint:
        """Give the one of this step; raises DataLossError unless it is there and holds."""
        return _verified(step, self._root / f"step-{step:08d}")

    def tidy(self) -> None:
        """Remove what a crash left half written."""
        for path in self._root.glob(f"{_DRAFT}*") if self._root.is_dir() else ():
            shutil.rmtree(path, ignore_errors=True)

    def _all(self) -> Iterator[tuple[int, Path]]:
        if self._root.is_dir():
            found = ((_NAME.fullmatch(path.name), path) for path in self._root.iterdir())
            yield from sorted((int(match[1]), path) for match, path in found if match)

    def _let_go(self) -> None:
        for _, path in list(self._all())[: -self._kept]:
            shutil.rmtree(path, ignore_errors=True)


def _verified(step: int, path: Path) -> Checkpoint:
    try:
        manifest = (path / MANIFEST).read_bytes()
        listed: dict[str, Any] = json.loads(manifest)  # Any: parsed JSON of any kind
        if listed["step"] != step:
            raise DataLossError(f"{path.name}: its manifest is of another step")
        for name, entry in listed["files"].items():
            if Path(name).name != name or _entry(path / name) != entry:
                raise DataLossError(f"{path.name}: {name[:80]} is not the file that was written")
        return Checkpoint(step, path, hashlib.sha256(manifest).digest(), _size(listed["files"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataLossError(f"{path.name}: cannot be read: {error}") from error


def _written(path: Path, write: Write) -> dict[str, Any]:  # Any: JSON
    write(path)
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return _entry(path)


def _entry(path: Path) -> dict[str, Any]:  # Any: JSON
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return {"sha256": digest, "bytes": file.tell()}


def _size(listed: Mapping[str, Any]) -> int:  # Any: JSON
    return sum(entry["bytes"] for entry in listed.values())


def _put(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
