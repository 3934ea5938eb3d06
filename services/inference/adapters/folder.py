"""Reads an adapter's folder; only below the one directory that the operator named for adapters."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from kala.errors import FailedPreconditionError, InvalidArgumentError, VerificationError

MAX_FILES: Final = 256
"""More than an adapter's 64 and its manifest; a folder of more is not walked to its end."""


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder that lies where it may."""

    root: Path

    @classmethod
    def at(cls, location: str, *, below: Path) -> Folder:
        """Find it; a relative location is below the adapters' directory, any other must lie there."""
        if "://" in location:
            raise InvalidArgumentError(
                "location", "must be a directory of this machine; URLs are not fetched"
            )
        if not location:
            raise InvalidArgumentError("location", "is empty")
        top = below.expanduser().resolve()
        root = (top / location).resolve()
        if not root.is_relative_to(top):
            raise InvalidArgumentError(
                "location", f"must lie in {top}; move the adapter there or set KALA_INFERENCE_ADAPTERS_DIR"
            )
        if not root.is_dir():
            raise FailedPreconditionError(f"there is no directory {root}", reason="ADAPTER_FILES_MISSING")
        return cls(root)

    def names(self) -> list[str]:
        """Give the names of all files in it."""
        names: list[str] = []
        for path in self.root.rglob("*"):
            if path.is_dir() and not path.is_symlink():
                continue
            names.append(path.relative_to(self.root).as_posix())
            if len(names) > MAX_FILES:
                raise VerificationError(f"{self.root}: holds more than {MAX_FILES} files")
        return names

    def read(self, name: str, limit: int) -> bytes:
        """Read a file, at most `limit` bytes; a link that leads out of the folder is not followed."""
        path = (self.root / name).resolve()
        if not path.is_relative_to(self.root):
            raise VerificationError(f"file {name}: is a link out of the folder")
        try:
            with path.open("rb") as file:
                return file.read(limit)
        except OSError as error:
            raise VerificationError(f"file {name}: cannot be read") from error
