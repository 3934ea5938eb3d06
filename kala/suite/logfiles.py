"""Log files of the parts: bounded by rotation at each start, and read back when something fails."""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO, Final

MAX_LOG_BYTES: Final = 5 * 1024 * 1024
"""A day of a busy suite; four files per part stay below 20 MiB."""

KEPT_LOGS: Final = 3
_TAIL_BYTES: Final = 16 * 1024


def open_log(path: Path) -> BinaryIO:
    """Open a log for appending, private to this user, after moving a large one aside."""
    if path.exists() and path.stat().st_size > MAX_LOG_BYTES:
        _rotate(path)
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab")


def last_lines(path: Path, *, count: int = 5, since: int = 0, max_bytes: int = _TAIL_BYTES) -> list[str]:
    """The last lines that are not empty, from byte `since` on and within `max_bytes` of the end; none when there is no such file."""
    try:
        with path.open("rb") as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(since, end - max(max_bytes, _TAIL_BYTES)))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return []
    return [line.rstrip() for line in text.splitlines() if line.strip()][-count:]


def size_of(path: Path) -> int:
    """The size in bytes, 0 when there is no file."""
    return path.stat().st_size if path.exists() else 0


def _rotate(path: Path) -> None:
    for number in range(KEPT_LOGS, 0, -1):
        source = path if number == 1 else path.with_name(f"{path.name}.{number - 1}")
        if source.exists():
            source.replace(path.with_name(f"{path.name}.{number}"))
