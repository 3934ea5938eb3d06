"""What the kernel says of a path, in words for whoever asked."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from kala.errors import (
    FailedPreconditionError,
    InvalidArgumentError,
    KalaError,
    NotFoundError,
    PermissionDeniedError,
    ResourceExhaustedError,
)
from services.tools.files.beneath import NotRegularError

NOT_REGULAR: Final = "NOT_A_REGULAR_FILE"

# What opening a socket or a device without a driver says.
_NO_REGULAR: Final = frozenset({errno.ENXIO, errno.ENODEV})
_STATES: Final = {
    errno.ELOOP: ("{path} leads through a link; links are never followed", NOT_REGULAR),
    errno.EXDEV: ("{path} leads out of the workspace", "PATH_LEAVES_WORKSPACE"),
    errno.ENOTDIR: ("a part of {path} is no directory", "NOT_A_DIRECTORY"),
    errno.EISDIR: ("{path} is a directory", "IS_A_DIRECTORY"),
    errno.ENOTEMPTY: ("{path} is not empty; set `recursive` to delete what is in it", "NOT_EMPTY"),
}


@contextmanager
def explained(path: str) -> Iterator[None]:
    """Turn an OSError about `path` into the error of the tree that names it; an unknown one passes as it is."""
    try:
        yield
    except NotRegularError:
        raise not_regular(path) from None
    except OSError as error:
        raise _explain(path, error) from error


def not_regular(path: str) -> FailedPreconditionError:
    """The refusal of everything but regular files with one link."""
    return FailedPreconditionError(
        f"{path!r} is not a regular file with exactly one link; links, pipes, sockets and devices are never opened",
        reason=NOT_REGULAR,
    )


def _explain(path: str, error: OSError) -> KalaError | OSError:
    if error.errno in _NO_REGULAR:
        return not_regular(path)
    state = _STATES.get(error.errno or 0)
    if state is not None:
        sentence, reason = state
        return FailedPreconditionError(sentence.format(path=repr(path)), reason=reason)
    known: dict[int, KalaError] = {
        errno.ENOENT: no_such_file(path),
        errno.EACCES: PermissionDeniedError(f"the operating system does not let the service use {path!r}"),
        errno.EPERM: PermissionDeniedError(f"the operating system does not let the service use {path!r}"),
        errno.ENAMETOOLONG: InvalidArgumentError("path", f"{path!r} is longer than the file system takes"),
        errno.ENOSPC: _disk_full(),
        errno.EDQUOT: _disk_full(),
    }
    return known.get(error.errno or 0, error)


def no_such_file(path: str) -> NotFoundError:
    """What is said of a name that is not there."""
    return NotFoundError(f"there is no {path!r} in the workspace", reason="FILE_NOT_FOUND")


def _disk_full() -> ResourceExhaustedError:
    return ResourceExhaustedError(
        "the disk that holds the workspaces is full; free space on it and try again", reason="DISK_FULL"
    )
