"""Looking through the log in windows, so that no single look takes long, however rare what is looked for.

An index answers most filters at once; for a rare combination of common values there is none, and a database would read
on to the end of the log. A scan stops instead when its time is up and says how far it came.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from services.audit.reading.query import Condition
from services.audit.storage.store import LogReader, StoredEntry

# Half of the 50 ms that a page may take at the 99th percentile: the window that runs at that moment still ends.
BUDGET_SECONDS: Final = 0.025
FIRST_WINDOW: Final = 4_096
# A window that took less than this share of the budget is followed by one of twice its width.
_QUICK_SHARE: Final = 0.1


@dataclass(frozen=True, slots=True)
class Found:
    """What a scan found, and where the next one starts: the next index, or descending the first index already seen."""

    rows: Sequence[StoredEntry]
    position: int
    is_done: bool


class Scanner:
    """Scans with one reader; blocking, for one thread at a time."""

    def __init__(
        self,
        reader: LogReader,
        *,
        budget_seconds: float = BUDGET_SECONDS,
        first_window: int = FIRST_WINDOW,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._reader = reader
        self._budget_seconds = budget_seconds
        self._first_window = first_window
        self._monotonic = monotonic

    def scan(
        self, conditions: Sequence[Condition], *, first: int, last: int, limit: int, descending: bool = False
    ) -> Found:
        """The next entries of [first, last) that meet all conditions, at most `limit`, fewer when the time is up.

        `is_done` says that there are no more. At least one window is looked through, so repeated scans end.
        """
        rows: list[StoredEntry] = []
        width = self._first_window if conditions else max(last - first, 1)
        started = self._monotonic()
        while first < last:
            low, high = (max(first, last - width), last) if descending else (first, min(first + width, last))
            begun = self._monotonic()
            rows += self._reader.query(
                conditions, first=low, last=high, limit=limit - len(rows), descending=descending
            )
            if len(rows) == limit:
                index = rows[-1].index
                first, last = (first, index) if descending else (index + 1, last)
                break
            first, last = (first, low) if descending else (high, last)
            now = self._monotonic()
            if now - started > self._budget_seconds:
                break
            if now - begun < self._budget_seconds * _QUICK_SHARE:
                width *= 2
        return Found(rows, last if descending else first, first >= last)
