"""How a work process says how it ended: `result.json` or `error.json`, each written whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from kala import errors
from kala.errors import FailedPreconditionError, InternalError, InvalidArgumentError, KalaError

RESULT: Final = "result.json"
ERROR: Final = "error.json"

EXIT_DONE: Final = 0
EXIT_REFUSED: Final = 2
"""A KalaError, told in `error.json`; any other status is a crash."""

_CLASSES: Final[Mapping[str, type[KalaError]]] = {
    kind.default_reason: kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, KalaError)
}


def write_atomically(path: Path, data: bytes) -> None:
    """Put the whole file into place, so that nobody ever finds half of it and a crash leaves the old one."""
    draft = path.with_name(f".{path.name}.{os.getpid()}.new")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_result(folder: Path, result: Mapping[str, Any]) -> None:  # Any: JSON of the kind's own
    """Say that the work is done, and with what."""
    write_atomically(folder / RESULT, json.dumps(dict(result), indent=1).encode())


def read_result(folder: Path) -> dict[str, Any]:  # Any: as above
    """What the work came to; raises InternalError where it left nothing that can be read."""
    try:
        result = json.loads((folder / RESULT).read_bytes())
    except (OSError, ValueError) as error:
        raise InternalError(
            "the work process ended without a result", reason="WORK_WITHOUT_RESULT"
        ) from error
    if not isinstance(result, dict):
        raise InternalError("the work process left a result that is none", reason="WORK_WITHOUT_RESULT")
    return result


def write_error(folder: Path, error: KalaError) -> None:
    """Say why the work cannot be done, in words for its owner."""
    document = {
        "kind": type(error).default_reason,
        "reason": error.reason,
        "message": error.problem if isinstance(error, InvalidArgumentError) else error.message,
        "field": error.field if isinstance(error, InvalidArgumentError) else "",
    }
    write_atomically(folder / ERROR, json.dumps(document).encode())


def read_error(folder: Path) -> KalaError | None:
    """The error that a work process told; None when it told none that can be read."""
    try:
        raw = json.loads((folder / ERROR).read_bytes())
        kind = _CLASSES.get(raw["kind"], FailedPreconditionError)
        if issubclass(kind, InvalidArgumentError):
            return kind(str(raw["field"]), str(raw["message"]), reason=str(raw["reason"]))
        return kind(str(raw["message"]), reason=str(raw["reason"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def clear_end(folder: Path) -> None:
    """Forget how an earlier run ended, before the work is begun again."""
    for name in (RESULT, ERROR):
        (folder / name).unlink(missing_ok=True)
