"""How long a server asked to be left alone, by the headers of its answer.  Pure.

RFC 9110 section 10.2.3; `retry-after-ms` is OpenAI's.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final

LONGEST_SECONDS: Final = 86_400.0
"""A day: whoever says more means never, and no message can carry what some numbers come to."""


def retry_after_seconds(headers: Mapping[str, str], *, now: float) -> float | None:
    """Give the seconds, 0 to a day, or None where nothing readable is said; `now` is Unix seconds.

    A date counts from the server's own `date` where it sends one, so that two clocks need not agree.
    """
    milliseconds = _number(headers.get("retry-after-ms"))
    if milliseconds is not None:
        return min(milliseconds / 1000, LONGEST_SECONDS)
    said = headers.get("retry-after")
    seconds = _number(said)
    if seconds is not None:
        return min(seconds, LONGEST_SECONDS)
    until, sent = _date(said), _date(headers.get("date"))
    if until is None:
        return None
    seconds = (until - (sent or datetime.fromtimestamp(now, UTC))).total_seconds()
    return min(max(0.0, seconds), LONGEST_SECONDS)


def _number(text: str | None) -> float | None:
    plain = (text or "").strip()
    # Digits alone: float() also reads "nan", "inf" and "-1".
    return float(plain) if plain.replace(".", "", 1).isdecimal() and plain.isascii() else None


def _date(text: str | None) -> datetime | None:
    if text is None:
        return None
    try:
        date = parsedate_to_datetime(text)
    except (ValueError, OverflowError):
        return None
    return date if date.tzinfo is not None else date.replace(tzinfo=UTC)
