"""Times as leaves spell them: RFC 3339, UTC, microseconds, always 27 characters."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Final

from kala.errors import VerificationError

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)


def format_time(microseconds: int) -> str:
    """A time in microseconds since 1970 as the leaf spells it."""
    return (_EPOCH + timedelta(microseconds=microseconds)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def parse_time(text: str) -> int:
    """The microseconds since 1970 that the leaf's spelling stands for."""
    try:
        return (datetime.fromisoformat(text) - _EPOCH) // _MICROSECOND
    except (ValueError, TypeError) as error:
        raise VerificationError(f"{text!r} is not a time of a leaf") from error
