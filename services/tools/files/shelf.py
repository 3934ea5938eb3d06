"""The directory that holds the workspaces of one replica: private, and one process's at a time.

lock        held while the process lives
trash/      what is being deleted
<32 hex>/   a workspace: record.json, files/, staging/
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from services.tools.files.beneath import closing, open_directory
from services.tools.files.private_directory import PrivateDirectory
from services.tools.files.tree import empty, walk
from services.tools.files.workspace_records import Record, load, save

_FILES: Final = b"files"
_STAGING: Final = b"staging"


@dataclass(frozen=True, slots=True)
class Opened:
    """The descriptors of one workspace in use."""

    root: int
    staging: int
    host: int | None

    def close(self) -> None:
        """Give them back."""
        for descriptor in (self.root, self.staging, self.host):
            if descriptor is not None:
                os.close(descriptor)


@dataclass(frozen=True, slots=True)
class Found:
    """A workspace that was left by the process before."""

    record: Record
    used_bytes: int
    inodes: int


class Shelf:
    """The workspaces on disk."""

    def __init__(self, directory: PrivateDirectory) -> None:
        self._directory = directory

    @classmethod
    def open(cls, directory: Path) -> Self:
        """Take the directory; raises FailedPreconditionError when another process has it."""
        return cls(PrivateDirectory.open(directory))

    def close(self) -> None:
        """Give the directory up."""
        self._directory.close()

    def load(self, keep: Callable[[Record], bool]) -> dict[str, Found]:
        """What was left and is to be kept, measured anew; everything else is deleted, damaged ones too."""
        found = {}
        for number in self._directory.numbers():
            try:
                kept = self._load(number.encode(), keep)
            except (OSError, ValueError):
                kept = None
            if kept is None:
                self._directory.discard(number)
            else:
                found[number] = kept
        self._directory.empty_trash()
        return found

    def make(self, number: str, record: Record) -> None:
        """Make an empty workspace."""
        name = number.encode()
        self._directory.make(name)
        for below in (_FILES, _STAGING):
            self._directory.make(name + b"/" + below)
        self.save(number, record)

    def save(self, number: str, record: Record) -> None:
        """Keep what is known of a workspace."""
        with closing(open_directory(self._directory.descriptor, number.encode())) as directory:
            save(directory, record)

    def opened(self, number: str, host_directory: str | None) -> Opened:
        """Open a workspace for use, and the host directory with it."""
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
        host = os.open(host_directory, flags) if host_directory else None
        name = number.encode()
        root = open_directory(self._directory.descriptor, name + b"/" + _FILES)
        return Opened(root, open_directory(self._directory.descriptor, name + b"/" + _STAGING), host)

    def remove(self, number: str) -> tuple[int, int]:
        """Delete a workspace; how many files and directories went, and their bytes."""
        with closing(open_directory(self._directory.descriptor, number.encode() + b"/" + _FILES)) as files:
            entries = list(walk(files))
        self._directory.discard(number)
        self._directory.empty_trash()
        return len(entries), sum(entry.size for entry in entries)

    def _load(self, name: bytes, keep: Callable[[Record], bool]) -> Found | None:
        with closing(open_directory(self._directory.descriptor, name)) as directory:
            record = load(directory)
            if not keep(record):
                return None
            with closing(open_directory(directory, _STAGING)) as staging:
                empty(staging)
            with closing(open_directory(directory, _FILES)) as files:
                entries = list(walk(files))
        return Found(record, sum(entry.size for entry in entries), len(entries))
