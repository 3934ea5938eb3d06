"""What the kernel says of a path, in words for whoever asked."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from kala.errors import (
    FailedPreconditionError,
    InvalidArgumentError,
    KalaError,
    NotFoundError,
    PermissionDeniedError,
    ResourceExhaustedError,
)
from services.tools.files.beneath import NotRegularError

NOT_REGULAR = "NOT_A_REGULAR_FILE"
LEAVES_WORKSPACE = "PATH_LEAVES_WORKSPACE"


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
    match error.errno:
        case errno.ENOENT:
            return NotFoundError(f"there is no {path!r} in the workspace", reason="FILE_NOT_FOUND")
        case errno.ELOOP:
            return FailedPreconditionError(
                f"{path!r} leads through a link; links are never followed", reason=NOT_REGULAR
            )
        case errno.EXDEV:
            return FailedPreconditionError(f"{path!r} leads out of the workspace", reason=LEAVES_WORKSPACE)
        case errno.ENOTDIR:
            return FailedPreconditionError(
                f"a part of {path!r} is no directory", reason="NOT_A_DIRECTORY"
            )
        case errno.EISDIR:
            return FailedPreconditionError(f"{path!r} is a directory", reason="IS_A_DIRECTORY")
        case errno.ENOTEMPTY:
            return FailedPreconditionError(
                f"{path!r} is not empty; set `recursive` to delete what is in it", reason="NOT_EMPTY"
            )
        case errno.ENXIO | errno.ENODEV:
            return not_regular(path)
        case errno.EACCES | errno.EPERM:
            return PermissionDeniedError(f"the operating system does not let the service use {path!r}")
        case errno.ENAMETOOLONG:
            return InvalidArgumentError("path", f"{path!r} is longer than the file system takes")
        case errno.ENOSPC | errno.EDQUOT:
            return ResourceExhaustedError(
                "the disk that holds the workspaces is full; free space on it and try again", reason="DISK_FULL"
            )
        case _:
            return error
