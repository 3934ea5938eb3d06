"""Opening names beneath a directory that a hostile program may have filled, and may be changing meanwhile.

The kernel resolves the whole path in one step (openat2: beneath, no links, no other mounts); where it has no openat2 the
path is walked one segment at a time from descriptor to descriptor, which follows the same rules.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

# The same number on every architecture that Linux added since 2011, and on x86-64.
_OPENAT2: Final = 437
_NO_XDEV: Final = 0x01
_NO_MAGICLINKS: Final = 0x02
_NO_SYMLINKS: Final = 0x04
_BENEATH: Final = 0x08
_RESOLVE: Final = _NO_XDEV | _NO_MAGICLINKS | _NO_SYMLINKS | _BENEATH
# The kernel asks for another try when something was renamed while it looked.
_TRIES: Final = 16
# An old container runtime answers EPERM, not ENOSYS, to calls it does not know.
_NOT_SERVED: Final = frozenset({errno.ENOSYS, errno.EPERM})
# Never follow the last segment, never wait for a pipe's other end, never make a terminal ours, never hand it to a child.
_ALWAYS: Final = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC

_libc: Final = ctypes.CDLL(None, use_errno=True)


class _OpenHow(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


class NotRegularError(OSError):
    """The name is no regular file with exactly one link."""


def open_beneath(root: int, path: bytes, flags: int) -> int:
    """Open an existing name beneath `root` and give its descriptor; `path` is relative, b"" is `root` itself.

    Raises OSError: ELOOP for a link on the way, EXDEV for a way out, and the usual ones. Makes nothing: O_CREAT is refused.
    """
    _require_plain(path, flags)
    try:
        return open_at_once(root, path, flags)
    except OSError as error:
        if error.errno not in _NOT_SERVED:
            raise
    return open_by_steps(root, path, flags)


def open_at_once(root: int, path: bytes, flags: int) -> int:
    """As `open_beneath`, by openat2 only."""
    how = _OpenHow(_guarded(flags), 0, _RESOLVE)
    for _ in range(_TRIES):
        descriptor = _libc.syscall(
            ctypes.c_long(_OPENAT2),
            ctypes.c_int(root),
            ctypes.c_char_p(path or b"."),
            ctypes.byref(how),
            ctypes.c_size_t(ctypes.sizeof(how)),
        )
        if descriptor >= 0:
            return int(descriptor)
        if ctypes.get_errno() not in {errno.EAGAIN, errno.EINTR}:
            break
    raise _error(ctypes.get_errno(), path)


def open_by_steps(root: int, path: bytes, flags: int) -> int:
    """As `open_beneath`, one segment at a time."""
    _require_plain(path, flags)
    device = os.fstat(root).st_dev
    *directories, last = path.split(b"/")
    with _owned(os.open(b".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=root)) as holder:
        for segment in directories:
            holder.replace(_step(holder.descriptor, segment, device))
        descriptor = os.open(last or b".", _guarded(flags), dir_fd=holder.descriptor)
    if stat.S_ISDIR(os.fstat(descriptor).st_mode) and os.fstat(descriptor).st_dev != device:
        os.close(descriptor)
        raise _error(errno.EXDEV, path)
    return descriptor


def open_directory(root: int, path: bytes) -> int:
    """A directory beneath `root`, for listing and for names in it."""
    return open_beneath(root, path, os.O_RDONLY | os.O_DIRECTORY)


def open_regular(root: int, path: bytes) -> tuple[int, os.stat_result]:
    """A regular file with one link beneath `root`, for reading, with its status.

    Raises NotRegularError for anything else: a second link could be a file from outside.
    """
    descriptor = open_beneath(root, path, os.O_RDONLY)
    status = os.fstat(descriptor)
    if not is_plain_file(status):
        os.close(descriptor)
        raise NotRegularError(errno.EINVAL, "not a regular file with one link", os.fsdecode(path))
    return descriptor, status


def status_beneath(root: int, path: bytes) -> os.stat_result | None:
    """The status of a name itself, links not followed; None when there is none. Opens nothing for reading."""
    try:
        descriptor = open_beneath(root, path, os.O_PATH)
    except FileNotFoundError:
        return None
    with closing(descriptor):
        return os.fstat(descriptor)


def is_plain_file(status: os.stat_result) -> bool:
    """Whether it is a regular file that has no second name; one that was replaced meanwhile has none at all."""
    return stat.S_ISREG(status.st_mode) and status.st_nlink <= 1


@contextmanager
def closing(descriptor: int) -> Iterator[int]:
    """Close the descriptor at the end, whatever happens."""
    try:
        yield descriptor
    finally:
        os.close(descriptor)


class _Holder:
    """One open descriptor that is exchanged for the next."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def replace(self, descriptor: int) -> None:
        os.close(self.descriptor)
        self.descriptor = descriptor


@contextmanager
def _owned(descriptor: int) -> Iterator[_Holder]:
    holder = _Holder(descriptor)
    try:
        yield holder
    finally:
        os.close(holder.descriptor)


def _step(directory: int, segment: bytes, device: int) -> int:
    flags = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(segment, flags, dir_fd=directory)
    if os.fstat(descriptor).st_dev != device:
        os.close(descriptor)
        raise _error(errno.EXDEV, segment)
    return descriptor


def _guarded(flags: int) -> int:
    """The flags with the ones that every opening has; a mere path is opened with none that concern reading."""
    return flags | (os.O_NOFOLLOW | os.O_CLOEXEC if flags & os.O_PATH else _ALWAYS)


def _require_plain(path: bytes, flags: int) -> None:
    """The rule of the way in does not depend on which kernel answers."""
    if flags & os.O_CREAT or b"\0" in path:
        raise _error(errno.EINVAL, path)
    if path and any(segment in {b"", b".", b".."} for segment in path.split(b"/")):
        raise _error(errno.EXDEV, path)


def _error(number: int, path: bytes) -> OSError:
    return OSError(number, os.strerror(number), os.fsdecode(path))
