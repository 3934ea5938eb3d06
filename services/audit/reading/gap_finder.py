"""What is missing in the log, found in one pass over its entries and kept up to date as it grows. Pure.

An intent is open until an outcome names it; a producer numbers its records from 1 at each boot, so a number that is
not there is a record whose delivery nobody acknowledged. What is remembered is bounded; what is forgotten stays counted.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final, NamedTuple

INTENT: Final = ".intent"
OUTCOME: Final = ".outcome"
# Of an intent 150 bytes: some 15 MiB at most, and acts that run at once are far fewer.
MAX_OPEN: Final = 100_000
# Starts of producers whose numbers are followed; one that wrote longest ago is let go first.
MAX_STREAMS: Final = 10_000
# Outcomes that came before their intent: two producers may cross.
MAX_EARLY: Final = 10_000


class Mark(NamedTuple):
    """Of an entry, what gaps are found by; `time` is the earlier of its two, in microseconds since 1970."""

    entry: int
    type: str
    key: bytes
    intent: bytes | None
    producer: str
    boot: bytes
    sequence: int
    time: int


class Hole(NamedTuple):
    """Numbers of a producer's start that are missing, both included."""

    producer: str
    boot: bytes
    first: int
    last: int


@dataclass(slots=True)
class _Stream:
    """The numbers of one start of a producer: all up to `top`, but for `missing`."""

    top: int = 0
    missing: list[tuple[int, int]] = field(default_factory=list)

    def see(self, sequence: int) -> int:
        """Notes a number; tells by how many the holes have become more."""
        before = len(self.missing)
        if sequence > self.top:
            if sequence > self.top + 1:
                self.missing.append((self.top + 1, sequence - 1))
            self.top = sequence
        else:
            self.missing = [part for first, last in self.missing for part in _without(first, last, sequence)]
        return len(self.missing) - before


def _without(first: int, last: int, number: int) -> Iterable[tuple[int, int]]:
    """What is left of [first, last] without a number."""
    if not first <= number <= last:
        return ((first, last),)
    return ((a, b) for a, b in ((first, number - 1), (number + 1, last)) if a <= b)


class GapFinder:
    """Sees every entry once, in order of index."""

    def __init__(
        self, *, max_open: int = MAX_OPEN, max_streams: int = MAX_STREAMS, max_early: int = MAX_EARLY
    ) -> None:
        self._max_open = max_open
        self._max_streams = max_streams
        self._max_early = max_early
        self._open: dict[bytes, tuple[int, int]] = {}
        self._early: dict[bytes, None] = {}
        self._streams: dict[tuple[str, bytes], _Stream] = {}
        self._forgotten = 0
        self._holes = 0
        self.next_index = 0

    def see(self, mark: Mark) -> None:
        """Takes the next entry into account."""
        self.next_index = mark.entry + 1
        if mark.type.endswith(INTENT):
            if mark.key in self._early:
                del self._early[mark.key]
            else:
                self._open[mark.key] = (mark.entry, mark.time)
                if len(self._open) > self._max_open:
                    del self._open[next(iter(self._open))]
                    self._forgotten += 1
        elif mark.intent is not None and mark.type.endswith(OUTCOME):
            self._close(mark.intent)
        self._follow(mark)

    def _close(self, intent: bytes) -> None:
        if self._open.pop(intent, None) is None:
            self._early[intent] = None
            if len(self._early) > self._max_early:
                del self._early[next(iter(self._early))]

    def _follow(self, mark: Mark) -> None:
        name = (mark.producer, mark.boot)
        stream = self._streams.pop(name, None) or _Stream()
        self._streams[name] = stream  # last again: it wrote last
        self._holes += stream.see(mark.sequence)
        if len(self._streams) > self._max_streams:
            del self._streams[next(iter(self._streams))]

    def unmatched(self, before: int) -> tuple[int, list[int]]:
        """How many intents older than a time have no outcome, and the indexes of those that are remembered."""
        indexes = [index for index, time in self._open.values() if time < before]
        return len(indexes) + self._forgotten, indexes

    def holes(self) -> tuple[int, list[Hole]]:
        """How many holes there are, and those that are remembered."""
        found = [
            Hole(*name, first, last)
            for name, stream in self._streams.items()
            for first, last in stream.missing
        ]
        return self._holes, found
