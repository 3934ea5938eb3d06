"""The rules for a socket in the file system: a private directory, no stale file, no file that is somebody else's."""

from __future__ import annotations

import errno
import os
import socket
import stat
from pathlib import Path
from typing import Final

from kala.errors import FailedPreconditionError

SOCKET_MODE: Final = 0o600
OTHERS: Final = 0o077
"""Bits by which anybody but the owner could enter the directory."""


def prepare(path: str) -> None:
    """Make `path` free to bind; raises FailedPreconditionError when it is unsafe or another process serves there."""
    directory = Path(path).parent
    try:
        found = directory.stat()
    except OSError as error:
        raise FailedPreconditionError(
            f"{directory}: the socket's directory cannot be used: {error.strerror}"
        ) from error
    if found.st_uid != os.geteuid() or found.st_mode & OTHERS:
        raise FailedPreconditionError(
            f"{directory}: the socket's directory must be private to its owner; run chmod 700 on it"
        )
    _remove_stale(Path(path))


def protect(path: str) -> None:
    """Let only the owner connect, should the directory ever be opened."""
    Path(path).chmod(SOCKET_MODE)


def _remove_stale(path: Path) -> None:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise FailedPreconditionError(f"{path}: is in the way and is not a socket")
    with socket.socket(socket.AF_UNIX) as probe:
        refused = probe.connect_ex(str(path))
    if refused == 0 or refused not in {errno.ECONNREFUSED, errno.ENOENT}:
        raise FailedPreconditionError(f"{path}: another process already serves here")
    path.unlink(missing_ok=True)
