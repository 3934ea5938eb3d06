"""What the processes of one sandbox use, read from the outside, and what its workspace holds."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_TICK_SECONDS: Final = 1 / os.sysconf("SC_CLK_TCK")
_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")
_STAT_BYTES: Final = 1024
_STATUS_BYTES: Final = 4096
_KIB: Final = 1024


@dataclass(frozen=True, slots=True)
class Seen:
    """One look at all processes of a sandbox, its first one's own memory and threads left out."""

    cpu_seconds: float
    memory_bytes: int
    tasks: int


class Spent:
    """CPU time by process, of the dead ones as much as was last seen of them.

    A parent that ignores SIGCHLD, or lives longer than those that it never waits for, is not told what they used. What one
    uses between two looks and its end stays unseen.
    """

    def __init__(self) -> None:
        self._living: Mapping[tuple[str, bytes], int] = {}
        # Not there at the last look; one that changes its parent meanwhile is missed once.
        self._missed: dict[tuple[str, bytes], int] = {}
        self._gone = 0

    def all_with(self, living: Mapping[tuple[str, bytes], int]) -> int:
        """Give what all used until now, given the time of each that lives, by its number and its start."""
        self._gone += sum(used for process, used in self._missed.items() if process not in living)
        self._missed = {process: used for process, used in self._living.items() if process not in living}
        self._living = living
        return self._gone + sum(self._missed.values()) + sum(living.values())


class Processes:
    """The processes that a sandbox's private /proc shows, or of a /proc those that `find` names. Owns the descriptor."""

    def __init__(self, proc: int, find: Callable[[], Iterable[int]] | None = None) -> None:
        self._proc = proc
        self._find = find
        self._spent = Spent()

    def look(self, enough_bytes: int) -> Seen:
        """Add up what they use.

        Memory is what is resident; above `enough_bytes` it is counted again without what is backed by files.
        """
        reckoned, pages, tasks = 0, 0, 0
        alive: list[str] = []
        own: dict[tuple[str, bytes], int] = {}
        for name in self._names():
            if name.isdigit() and (fields := self._stat(name)):
                # utime, stime and those of reaped children: proc(5), fields 14 to 17; 22 is the start.
                reckoned += sum(map(int, fields[11:15]))
                own[name, fields[19]] = sum(map(int, fields[11:13]))
                if name != "1":
                    tasks += int(fields[17])
                    pages += int(fields[21])
                    alive.append(name)
        memory = pages * _PAGE_BYTES
        if memory > enough_bytes:
            memory = sum(map(self._own_bytes, alive))
        cpu = max(reckoned, self._spent.all_with(own))
        return Seen(cpu * _TICK_SECONDS, memory, tasks)

    def _names(self) -> list[str]:
        if self._find is not None:
            return [str(pid) for pid in self._find()]
        return os.listdir(self._proc)  # noqa: PTH208 - by descriptor

    def _stat(self, name: str) -> list[bytes]:
        """Give the fields of /proc/N/stat from the third on; empty when it is gone."""
        data = self._read(f"{name}/stat", _STAT_BYTES)
        return data[data.rindex(b")") + 2 :].split() if b")" in data else []

    def _own_bytes(self, name: str) -> int:
        """Give the memory that no file backs: anonymous, shared and swapped."""
        total = 0
        for line in self._read(f"{name}/status", _STATUS_BYTES).splitlines():
            if line.startswith((b"RssAnon:", b"RssShmem:", b"VmSwap:")):
                total += int(line.split()[1]) * _KIB
        return total

    def _read(self, path: str, size: int) -> bytes:
        # A process that ends between two looks is no error.
        with suppress(OSError):
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._proc)
            try:
                return os.read(descriptor, size)
            finally:
                os.close(descriptor)
        return b""

    def close(self) -> None:
        """Give the descriptor back."""
        os.close(self._proc)


@dataclass(frozen=True, slots=True)
class Stored:
    """What the writable file systems hold; `full` when one takes no more bytes."""

    disk_bytes: int
    inodes: int
    full: bool


def stored(directories: Iterable[int]) -> Stored:
    """Add up the file systems of which these are the roots; their own inodes do not count."""
    disk, inodes, full = 0, 0, False
    for directory in directories:
        system = os.fstatvfs(directory)
        disk += (system.f_blocks - system.f_bfree) * system.f_frsize
        inodes += max(0, system.f_files - system.f_ffree - 1)
        full = full or (system.f_blocks > 0 and system.f_bavail == 0)
    return Stored(disk, inodes, full)


def tasks_of_this_user(proc: Path = Path("/proc")) -> int:
    """Count the threads of this process's user, host-wide: what RLIMIT_NPROC compares with."""
    uid, count = os.getuid(), 0
    for entry in proc.iterdir():
        if not entry.name.isdecimal():
            continue
        try:
            if entry.stat().st_uid == uid:
                count += len(list((entry / "task").iterdir()))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return count
