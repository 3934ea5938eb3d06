"""A workspace that is a plain directory of the host: what it holds, and how it is emptied, whatever a program made in it.

Nothing here recurses, keeps more than two descriptors, or leaves the directory: every step is one name, no link is followed.
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

_LOOK: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_HANDLE: Final = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_BLOCK_BYTES: Final = 512


@dataclass(frozen=True, slots=True)
class Held:
    """What lies beneath a directory, itself not counted."""

    disk_bytes: int
    inodes: int


@dataclass(slots=True)
class _Level:
    """One directory on the way down: who it is, by what name it was entered, and which of its own are still to be."""

    identity: tuple[int, int]
    name: str = ""
    names: list[str] = field(default_factory=list)


class _Count:
    def __init__(self, most_inodes: int) -> None:
        self._most_inodes = most_inodes
        self.disk_bytes = 0
        self.inodes = 0

    @property
    def is_enough(self) -> bool:
        return self.inodes > self._most_inodes

    def enter(self, directory: int, name: str = "") -> _Level:
        """Count what lies directly in it."""
        level = _Level(_identity(directory), name)
        with os.scandir(directory) as entries:
            for entry in entries:
                # A file that goes away meanwhile is not counted.
                with suppress(FileNotFoundError):
                    found = _status(entry, directory)
                    self.inodes += 1
                    self.disk_bytes += found.st_blocks * _BLOCK_BYTES
                    if stat.S_ISDIR(found.st_mode):
                        level.names.append(entry.name)
                if self.is_enough:
                    break
        return level


def held_below(root: int, *, most_inodes: int) -> Held:
    """Count what lies beneath a directory; beyond `most_inodes` it is not counted on.

    What is moved while this looks may be missed, and is seen by the next look.
    """
    count = _Count(most_inodes)
    current = os.open(".", _LOOK, dir_fd=root)
    steps = most_inodes
    try:
        trail = [count.enter(current)]
        while not count.is_enough:
            if trail[-1].names:
                name = trail[-1].names.pop()
                following = _open(name, current)
                if following < 0:
                    continue
                os.close(current)
                current = following
                trail.append(count.enter(current, name))
                continue
            trail.pop()
            if not trail:
                break
            following = _open_known("..", current, trail[-1].identity)
            if following < 0:
                # It was moved: on from where the way down still is what it was, while that does not cost more than the look.
                steps -= len(trail)
                if steps < 0:
                    break
                following = _again(root, trail)
            os.close(current)
            current = following
    finally:
        os.close(current)
    return Held(count.disk_bytes, count.inodes)


def _again(root: int, trail: list[_Level]) -> int:
    """Go the way down anew, as far as it is the same; the trail ends there."""
    current = os.open(".", _LOOK, dir_fd=root)
    for depth, level in enumerate(trail[1:], start=1):
        following = _open_known(level.name, current, level.identity)
        if following < 0:
            del trail[depth:]
            break
        os.close(current)
        current = following
    return current


def _open_known(name: str, parent: int, identity: tuple[int, int]) -> int:
    """Open a directory for looking; -1 when it is another one by now."""
    found = _open(name, parent)
    if found >= 0 and _identity(found) != identity:
        os.close(found)
        return -1
    return found


def _status(entry: os.DirEntry[str], directory: int) -> os.stat_result:
    """Give an entry's own status, also where the directory's modes forbid it."""
    try:
        return entry.stat(follow_symlinks=False)
    except PermissionError:
        os.fchmod(directory, stat.S_IRWXU)
        return entry.stat(follow_symlinks=False)


def _identity(directory: int) -> tuple[int, int]:
    status = os.fstat(directory)
    return status.st_dev, status.st_ino


def _open(name: str, parent: int) -> int:
    """Open a directory for looking, also where its modes forbid it; -1 when it is none any more."""
    try:
        return os.open(name, _LOOK, dir_fd=parent)
    except PermissionError:
        pass
    except OSError:
        return -1
    try:
        handle = os.open(name, _HANDLE, dir_fd=parent)
    except OSError:
        return -1
    try:
        Path(f"/proc/self/fd/{handle}").chmod(stat.S_IRWXU)
        return os.open(".", _LOOK, dir_fd=handle)
    except OSError:
        return -1
    finally:
        os.close(handle)


def clear(root: int) -> None:
    """Delete everything beneath a directory in which no process works any more.

    Raises:
        OSError: something could not be deleted.
    """
    os.fchmod(root, stat.S_IRWXU)
    current = os.open(".", _LOOK, dir_fd=root)
    try:
        # For every level on the way down its directories that are still there; the last one is the one entered.
        trail = [_strip(current)]
        while True:
            if trail[-1]:
                name = trail[-1][-1]
                # Whatever modes it had.
                os.chmod(name, stat.S_IRWXU, dir_fd=current)
                current = _move(current, name)
                trail.append(_strip(current))
            elif len(trail) > 1:
                current = _move(current, "..")
                trail.pop()
                os.rmdir(trail[-1].pop(), dir_fd=current)
            else:
                return
    finally:
        os.close(current)


def _move(current: int, name: str) -> int:
    """Open a directory from where this is, and close that."""
    following = os.open(name, _LOOK, dir_fd=current)
    os.close(current)
    return following


def _strip(directory: int) -> list[str]:
    """Unlink the files of a directory; give its directories."""
    with os.scandir(directory) as entries:
        found = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
    for name, is_directory in found:
        if not is_directory:
            os.unlink(name, dir_fd=directory)
    return [name for name, is_directory in found if is_directory]


def remove(path: str | Path) -> None:
    """Delete a directory in which no process works any more, with everything beneath it.

    Raises:
        OSError: something could not be deleted.
    """
    descriptor = os.open(path, _LOOK)
    try:
        clear(descriptor)
    finally:
        os.close(descriptor)
    Path(path).rmdir()
