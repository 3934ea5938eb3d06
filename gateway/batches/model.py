"""What a batch is, and how OpenAI's clients read it.  Pure."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final

from kala.errors import NotFoundError

VALIDATING: Final = "validating"
IN_PROGRESS: Final = "in_progress"
FINALIZING: Final = "finalizing"
CANCELLING: Final = "cancelling"
COMPLETED: Final = "completed"
FAILED: Final = "failed"
EXPIRED: Final = "expired"
CANCELLED: Final = "cancelled"

AT_WORK: Final = (VALIDATING, IN_PROGRESS, FINALIZING, CANCELLING)
"""While a worker has something to do for it."""

ENDPOINTS: Final = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses")
WINDOW: Final = "24h"
WINDOW_TIME: Final = timedelta(hours=24)

STAMPS: Final = (
    "in_progress_at",
    "finalizing_at",
    "completed_at",
    "failed_at",
    "expired_at",
    "cancelling_at",
    "cancelled_at",
)


@dataclass(frozen=True, slots=True)
class LineProblem:
    """Why a line of an input file, or the file, is no request."""

    code: str
    message: str
    param: str | None = None
    line: int | None = None

    def to_json(self) -> dict[str, Any]:  # Any: JSON
        """Write it as one of a batch's errors."""
        return {"code": self.code, "message": self.message, "param": self.param, "line": self.line}


@dataclass(frozen=True, slots=True)
class Batch:
    """A batch as it stands."""

    id: str
    tenant: str
    owner: str
    subject: str
    endpoint: str
    input_file_id: str
    status: str
    created_at: datetime
    expires_at: datetime
    metadata: Mapping[str, str] | None = None
    errors: Sequence[Mapping[str, Any]] = ()  # Any: JSON
    stamps: Mapping[str, datetime] = field(default_factory=dict)
    """By the names in `STAMPS`, those that are set."""
    output_file_id: str | None = None
    error_file_id: str | None = None
    output_life: timedelta | None = None
    total: int = 0
    completed: int = 0
    failed: int = 0
    input_tokens: int = 0
    output_tokens: int = 0

    def to_json(self) -> dict[str, Any]:  # Any: JSON
        """Write it as OpenAI's `batch` object."""
        return {
            "id": self.id,
            "object": "batch",
            "endpoint": self.endpoint,
            "errors": {"object": "list", "data": list(self.errors)} if self.errors else None,
            "input_file_id": self.input_file_id,
            "completion_window": WINDOW,
            "status": self.status,
            "output_file_id": self.output_file_id,
            "error_file_id": self.error_file_id,
            "created_at": int(self.created_at.timestamp()),
            "expires_at": int(self.expires_at.timestamp()),
            **{name: int(self.stamps[name].timestamp()) if name in self.stamps else None for name in STAMPS},
            "request_counts": {"total": self.total, "completed": self.completed, "failed": self.failed},
            "usage": {
                "input_tokens": self.input_tokens,
                "input_tokens_details": {"cached_tokens": 0},
                "output_tokens": self.output_tokens,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": self.input_tokens + self.output_tokens,
            },
            "metadata": None if self.metadata is None else dict(self.metadata),
        }


@dataclass(frozen=True, slots=True)
class LinePlace:
    """Where a request lies in its input file."""

    number: int
    start: int
    length: int
    attempts: int = 0


@dataclass(frozen=True, slots=True)
class LineResult:
    """What a request came to: a line of the output file, or of the error file."""

    number: int
    succeeded: bool
    line: bytes
    input_tokens: int = 0
    output_tokens: int = 0


def new_batch_id(randomness: Callable[[int], str] = secrets.token_hex) -> str:
    """Make an id that cannot be guessed."""
    return f"batch_{randomness(16)}"


def no_such_batch(batch_id: str) -> NotFoundError:
    """Give the error for a batch that is not there, or is another tenant's."""
    return NotFoundError(f"there is no batch {batch_id[:80]!r} in your tenant", reason="BATCH_NOT_FOUND")
