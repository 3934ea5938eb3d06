"""How long a server asked to be left alone, by the headers of its answer.  Pure.

RFC 9110 section 10.2.3; `retry-after-ms` is OpenAI's.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime


def retry_after_seconds(headers: Mapping[str, str], *, now: float) -> float | None:
    """Give the seconds, 0 or more, or None where nothing readable is said; `now` is Unix seconds.

    A date counts from the server's own `date` where it sends one, so that two clocks need not agree.
    """
    milliseconds = _number(headers.get("retry-after-ms"))
    if milliseconds is not None:
        return milliseconds / 1000
    said = headers.get("retry-after")
    seconds = _number(said)
    if seconds is not None or said is None:
        return seconds
    until, sent = _date(said), _date(headers.get("date"))
    if until is None:
        return None
    return max(0.0, (until - (sent or datetime.fromtimestamp(now, UTC))).total_seconds())


def _number(text: str | None) -> float | None:
    plain = (text or "").strip()
    # Digits alone: float() also reads "nan", "inf" and "-1".
    return float(plain) if plain.replace(".", "", 1).isdecimal() and plain.isascii() else None


def _date(text: str | None) -> datetime | None:
    if text is None:
        return None
    try:
        date = parsedate_to_datetime(text)
    except ValueError:
        return None
    return date if date.tzinfo is not None else date.replace(tzinfo=UTC)
