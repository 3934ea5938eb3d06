"""What a stored file is, and how OpenAI's clients read it.  Pure."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from kala.common.v1 import options_pb2
from kala.errors import InvalidArgumentError, NotFoundError

BATCH: Final = "batch"
FINE_TUNE: Final = "fine-tune"
USER_DATA: Final = "user_data"
BATCH_OUTPUT: Final = "batch_output"

SCOPES: Final = {
    BATCH: options_pb2.SCOPE_CHAT,
    USER_DATA: options_pb2.SCOPE_CHAT,
    BATCH_OUTPUT: options_pb2.SCOPE_CHAT,
    FINE_TUNE: options_pb2.SCOPE_TRAIN,
}
"""What a key needs to put, see or delete files of a purpose."""

UPLOADED: Final = (BATCH, FINE_TUNE, USER_DATA)
"""The purposes that a client may name; output is written by batches alone."""

MAX_NAME_CHARS: Final = 255
MIN_LIFE: Final = timedelta(hours=1)
MAX_LIFE: Final = timedelta(days=30)
"""OpenAI's bounds."""

BATCH_LIFE: Final = timedelta(days=30)
"""OpenAI's default for what batches read and write; other files stay until they are deleted."""

PART_BYTES: Final = 1024 * 1024
"""What is sealed, stored and read at a time."""


@dataclass(frozen=True, slots=True)
class StoredFile:
    """One whole file."""

    id: str
    tenant: str
    owner: str
    subject: str
    purpose: str
    name: str
    size: int
    parts: int
    sha256: bytes
    created_at: datetime
    expires_at: datetime | None = None

    def to_json(self) -> dict[str, Any]:  # Any: JSON
        """Write it as OpenAI's `file` object."""
        return {
            "id": self.id,
            "object": "file",
            "bytes": self.size,
            "created_at": int(self.created_at.timestamp()),
            "expires_at": None if self.expires_at is None else int(self.expires_at.timestamp()),
            "filename": self.name,
            "purpose": self.purpose,
            "status": "processed",
            "status_details": None,
            "kala": {"sha256": self.sha256.hex()},
        }


def new_file_id(randomness: Callable[[int], str] = secrets.token_hex) -> str:
    """Make an id that cannot be guessed."""
    return f"file-{randomness(16)}"


def no_such_file(file_id: str) -> NotFoundError:
    """Give the error for a file that is not there, or is another tenant's."""
    return NotFoundError(f"there is no file {file_id[:80]!r} in your tenant", reason="FILE_NOT_FOUND")


def checked_name(name: str) -> str:
    """Give a file's name back, or raise InvalidArgumentError; it names no place and is never used as a path."""
    if not 1 <= len(name) <= MAX_NAME_CHARS or not name.isprintable():
        raise InvalidArgumentError(
            "file", f"needs a file name of 1 to {MAX_NAME_CHARS} printable characters; rename the file"
        )
    return name


def checked_purpose(purpose: str | None) -> str:
    """Give a purpose back, or raise InvalidArgumentError that lists those that can be uploaded for."""
    if purpose not in UPLOADED:
        raise InvalidArgumentError("purpose", f"must be one of {', '.join(UPLOADED)}")
    return purpose


def checked_life(anchor: str | None, seconds: str | None, purpose: str) -> timedelta | None:
    """Read `expires_after`, or give the purpose's default; InvalidArgumentError names field and bounds."""
    if anchor is None and seconds is None:
        return BATCH_LIFE if purpose == BATCH else None
    if anchor != "created_at":
        raise InvalidArgumentError("expires_after.anchor", "must be 'created_at'")
    low, high = round(MIN_LIFE.total_seconds()), round(MAX_LIFE.total_seconds())
    if seconds is None or not (seconds.isascii() and seconds.isdigit() and len(seconds) <= len(str(high))):
        raise InvalidArgumentError("expires_after.seconds", f"must be an integer from {low} to {high}")
    if not low <= int(seconds) <= high:
        raise InvalidArgumentError("expires_after.seconds", f"must be from {low} to {high}")
    return timedelta(seconds=int(seconds))
