"""Which directory of the host a private suite may show to its runs."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from kala.errors import FailedPreconditionError, InvalidArgumentError
from services.tools.files.model import WorkspaceRules

FIELD = "host_directory"
MAX_BYTES = 4096


def checked_host_directory(path: str, rules: WorkspaceRules) -> str:
    """The directory without links on its way; raises when it may not be shown.

    Neither the root, nor anything that holds one of the protected places or lies in one.
    """
    if not rules.allow_host_directory:
        raise FailedPreconditionError(
            "host directories are shown only by a private suite (the policy's allow_host_directory); "
            "write the files into the workspace instead",
            reason="HOST_DIRECTORY_NOT_ALLOWED",
        )
    if not path.startswith("/") or "\0" in path or len(os.fsencode(path)) > MAX_BYTES:
        raise InvalidArgumentError(FIELD, f"must be an absolute path of at most {MAX_BYTES} bytes")
    try:
        real = Path(path).resolve(strict=True)
        is_directory = stat.S_ISDIR(real.stat().st_mode)
    except (OSError, RuntimeError) as error:
        raise FailedPreconditionError(
            f"the host directory {path!r} is not there, or user {os.geteuid()} may not see it",
            reason="HOST_DIRECTORY_MISSING",
        ) from error
    if not is_directory:
        raise FailedPreconditionError(f"{path!r} is no directory", reason="HOST_DIRECTORY_MISSING")
    for place in (Path("/"), *(Path(protected).resolve() for protected in rules.protected)):
        if place.is_relative_to(real) or (place != Path("/") and real.is_relative_to(place)):
            raise FailedPreconditionError(
                f"the host directory {path!r} holds or lies in {str(place)!r}, which no sandbox may see; "
                "choose a directory of your own work",
                reason="HOST_DIRECTORY_PROTECTED",
            )
    return str(real)
