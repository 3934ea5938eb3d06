"""Whole trees, without recursion: a program in the sandbox makes them thousands of directories deep."""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from kala.errors import ResourceExhaustedError
from services.tools.files.beneath import closing, open_directory
from services.tools.files.model import FileKind
from services.tools.files.paths import MAX_PATH_BYTES

# More names than a workspace or a sandbox may hold; a host directory may have more.
MAX_NAMES: Final = 200_000


@dataclass(frozen=True, slots=True)
class Entry:
    """A name beneath a directory; `status` is its own, no link was followed."""

    path: bytes
    status: os.stat_result

    @property
    def kind(self) -> FileKind:
        """What it is."""
        if stat.S_ISDIR(self.status.st_mode):
            return FileKind.DIRECTORY
        if stat.S_ISREG(self.status.st_mode) and self.status.st_nlink == 1:
            return FileKind.REGULAR
        return FileKind.OTHER

    @property
    def size(self) -> int:
        """Bytes in it; 0 for directories."""
        return 0 if stat.S_ISDIR(self.status.st_mode) else self.status.st_size


def walk(
    root: int, top: bytes = b"", *, max_depth: int | None = None, max_names: int = MAX_NAMES
) -> Iterator[Entry]:
    """Every name beneath `top`, in no order; one open directory at a time.

    A directory whose path is longer than any path that could be asked for is given but not entered, and so is one that
    cannot be read or went away. Raises ResourceExhaustedError beyond `max_names`, OSError when `top` is no directory.
    """
    pending = [(top, 1)]
    seen = 0
    first = True
    while pending:
        path, depth = pending.pop()
        try:
            entries = _names(root, path)
        except OSError:
            if first:
                raise
            continue
        first = False
        for entry in entries:
            seen += 1
            if seen > max_names:
                raise ResourceExhaustedError(
                    f"there are more than {max_names} names; list a directory further down"
                )
            yield entry
            deep_enough = max_depth is not None and depth >= max_depth
            if entry.kind is FileKind.DIRECTORY and not deep_enough and len(entry.path) <= MAX_PATH_BYTES:
                pending.append((entry.path, depth + 1))


def _names(root: int, path: bytes) -> list[Entry]:
    found = []
    with closing(open_directory(root, path)) as directory, os.scandir(directory) as names:
        for name in names:
            raw = os.fsencode(name.name)
            try:
                status = name.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue
            found.append(Entry(path + b"/" + raw if path else raw, status))
    return found


def empty(directory: int) -> tuple[int, int]:
    """Delete everything in a directory of our own, however deep; gives how many names and bytes went.

    Directories are moved to the top before their turn comes, so no path grows and two descriptors are enough.
    """
    cleaner = _Cleaner(directory)
    cleaner.strip(directory)
    while cleaner.pending:
        name = cleaner.pending.pop()
        with closing(open_directory(directory, name)) as below:
            cleaner.strip(below)
        os.rmdir(name, dir_fd=directory)
    return cleaner.inodes, cleaner.freed_bytes


class _Cleaner:
    """Unlinks files where they lie and lifts directories to the top."""

    def __init__(self, top: int) -> None:
        self._top = top
        self._unique = secrets.token_hex(16)
        self.pending: list[bytes] = []
        self.inodes = 0
        self.freed_bytes = 0

    def strip(self, directory: int) -> None:
        with os.scandir(directory) as scan:
            names = [os.fsencode(name.name) for name in scan]
        for name in names:
            status = os.stat(name, dir_fd=directory, follow_symlinks=False)
            if stat.S_ISDIR(status.st_mode):
                lifted = f"{self._unique}-{self.inodes}".encode()
                os.rename(name, lifted, src_dir_fd=directory, dst_dir_fd=self._top)
                self.pending.append(lifted)
            else:
                os.unlink(name, dir_fd=directory)
                self.freed_bytes += status.st_size
            self.inodes += 1
