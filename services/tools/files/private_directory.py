"""A directory of the service's own: private, one process's at a time, with a trash for what is being deleted.

lock        held while the process lives
trash/      what is being deleted
<32 hex>/   what it is for
"""

from __future__ import annotations

import fcntl
import os
import re
import secrets
import stat
import threading
from pathlib import Path
from typing import Final, Self

from kala.errors import FailedPreconditionError
from services.tools.files.beneath import closing, open_directory
from services.tools.files.tree import empty

_NUMBER: Final = re.compile(r"[0-9a-f]{32}")
_TRASH: Final = b"trash"
_LOCK: Final = b"lock"
_PRIVATE: Final = 0o700


class PrivateDirectory:
    """Made by `open`; safe for several threads that use different numbers."""

    def __init__(self, descriptor: int, lock: int) -> None:
        self.descriptor = descriptor
        self._lock = lock
        self._emptying = threading.Lock()
        self._closed = False

    @classmethod
    def open(cls, directory: Path) -> Self:
        """Make it, private, and take it; raises FailedPreconditionError when another process has it."""
        try:
            directory.mkdir(mode=_PRIVATE, parents=True, exist_ok=True)
            descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise _unusable(directory, error) from error
        try:
            self = cls(descriptor, _locked(descriptor))
        except OSError as error:
            os.close(descriptor)
            raise _unusable(directory, error) from error
        if not self.has(_TRASH):
            self.make(_TRASH)
        self.empty_trash()
        return self

    def close(self) -> None:
        """Give it up; a second time does nothing."""
        if not self._closed:
            self._closed = True
            os.close(self._lock)
            os.close(self.descriptor)

    def make(self, name: bytes) -> None:
        """Make a directory in it."""
        os.mkdir(name, _PRIVATE, dir_fd=self.descriptor)

    def has(self, name: bytes) -> bool:
        """Whether there is a directory of this name."""
        try:
            status = os.stat(name, dir_fd=self.descriptor, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return stat.S_ISDIR(status.st_mode)

    def numbers(self) -> list[str]:
        """The names of 32 hexadecimal digits in it."""
        with os.scandir(self.descriptor) as scan:
            return [name.name for name in scan if _NUMBER.fullmatch(name.name)]

    def discard(self, number: str) -> None:
        """Take a directory away at once, however much is in it; `empty_trash` frees the space."""
        name = f"{_TRASH.decode()}/{number}-{secrets.token_hex(4)}"
        os.rename(number, name, src_dir_fd=self.descriptor, dst_dir_fd=self.descriptor)

    def empty_trash(self) -> None:
        """Delete what was discarded."""
        with self._emptying, closing(open_directory(self.descriptor, _TRASH)) as trash:
            empty(trash)


def _locked(directory: int) -> int:
    """Make the directory private and lock it; gives the descriptor that holds the lock, or raises OSError."""
    os.fchmod(directory, _PRIVATE)
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    lock = os.open(_LOCK, flags, 0o600, dir_fd=directory)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        raise
    return lock


def _unusable(directory: Path, error: OSError) -> FailedPreconditionError:
    if isinstance(error, BlockingIOError):
        return FailedPreconditionError(
            f"{directory} is used by another process; give each replica a directory of its own",
            reason="STATE_IN_USE",
        )
    return FailedPreconditionError(
        f"{directory} cannot hold this service's state ({error.strerror}); it must be a directory that user "
        f"{os.geteuid()} owns",
        reason="STATE_UNUSABLE",
    )
