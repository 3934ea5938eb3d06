"""A circuit breaker: after failures nobody is sent to a backend until a probe has shown that it answers.  Pure.

    CLOSED ──failures──▶ OPEN ──its wait is over──▶ HALF_OPEN ──probe succeeds──▶ CLOSED
                           ▲                            │
                           └────────probe fails─────────┘

The time is a number that the caller brings from a monotonic clock, so setting the machine's clock changes nothing.
"""

from __future__ import annotations

import enum
from collections import deque
from dataclasses import dataclass, field
from typing import Final

FAILURES_IN_A_ROW: Final = 3
"""One failure may be chance and two bad luck; each more costs a user a failed attempt."""

RECENT_OUTCOMES: Final = 20
FEWEST_OUTCOMES: Final = 10
"""A backend that fails every other time never fails thrice in a row: half of the recent outcomes open it too, but only
once there are enough of them to mean anything."""

WAIT_SECONDS: Final = 5.0
"""How long an open breaker waits for its next probe: also the longest that a backend which is well again stays unused."""

MAX_RETRY_AFTER_SECONDS: Final = 600.0
"""Longest that a backend can shut itself out by Retry-After; a wrong date in it would do so for years."""


class BreakerState(enum.Enum):
    """Whether requests pass."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half open"


@dataclass(frozen=True, slots=True)
class Leave:
    """Leave to make one attempt; its outcome is told with it, once."""

    epoch: int
    is_probe: bool


@dataclass(slots=True)
class Breaker:
    """One breaker; an outcome of before it last closed or opened no longer counts."""

    failures_in_a_row: int = FAILURES_IN_A_ROW
    wait_seconds: float = WAIT_SECONDS
    state: BreakerState = BreakerState.CLOSED
    why: str = ""
    """What the last failure was, in words without content; empty while there was none."""
    due_at: float = 0.0
    """When the next probe may be made; means nothing while it is closed."""
    takes_trials: bool = False
    """Whether a user's request serves as the probe, because no other can be made; until it opens again."""
    _quick_from: float = float("-inf")
    _failures: int = 0
    _recent: deque[bool] = field(default_factory=lambda: deque(maxlen=RECENT_OUTCOMES))
    _epoch: int = 0

    @property
    def is_closed(self) -> bool:
        return self.state is BreakerState.CLOSED

    def admit(self, now: float) -> Leave | None:
        """Let a user's request pass, or not."""
        if self.state is BreakerState.CLOSED:
            return Leave(self._epoch, is_probe=False)
        return self.probe(now) if self.takes_trials else None

    def probe(self, now: float) -> Leave | None:
        """Let one probe pass once the wait is over; while it runs no other does."""
        if self.state is not BreakerState.OPEN or now < self.due_at:
            return None
        self.state = BreakerState.HALF_OPEN
        return Leave(self._epoch, is_probe=True)

    def succeeded(self, leave: Leave) -> None:
        """Note that the attempt went well; a probe's success closes."""
        if leave.epoch != self._epoch:
            return
        if leave.is_probe:
            self.close()
        elif self.state is BreakerState.CLOSED:
            self._failures = 0
            self._recent.append(True)

    def failed(self, leave: Leave, now: float, why: str, *, retry_after_seconds: float | None = None) -> None:
        """Note that the attempt failed by the backend's fault; `retry_after_seconds` is how long it asked to be left alone."""
        if leave.epoch != self._epoch:
            if retry_after_seconds is not None and self.state is not BreakerState.CLOSED:
                self.due_at = max(self.due_at, now + self._wait(retry_after_seconds))
            return
        self.why = why
        self._failures += 1
        self._recent.append(False)
        if leave.is_probe or retry_after_seconds is not None:
            self.open(now, why, retry_after_seconds=retry_after_seconds)
        elif self._is_too_much():
            self.open(now, why)
            self._hasten(now)

    def undecided(self, leave: Leave) -> None:
        """Note that the attempt says nothing about the backend; after a probe the next one may follow at once."""
        if leave.is_probe and leave.epoch == self._epoch:
            self.state = BreakerState.OPEN

    def open(self, now: float, why: str, *, retry_after_seconds: float | None = None) -> None:
        """Keep requests away from now on."""
        self.why = why
        self.due_at = now + self._wait(retry_after_seconds)
        self.state = BreakerState.OPEN
        self.takes_trials = False
        self._epoch += 1

    def close(self) -> None:
        """Let requests pass and forget what was."""
        self.state = BreakerState.CLOSED
        self.why = ""
        self.takes_trials = False
        self._failures = 0
        self._recent.clear()
        self._epoch += 1

    def _hasten(self, now: float) -> None:
        # It may have been the requests: a probe at once then ends what would be an outage for all others. Not each time,
        # or a backend that answers probes alone would hardly be shut.
        if now >= self._quick_from:
            self.due_at = now
            self._quick_from = now + self.wait_seconds

    def _is_too_much(self) -> bool:
        if self._failures >= self.failures_in_a_row:
            return True
        return len(self._recent) >= FEWEST_OUTCOMES and self._recent.count(False) * 2 >= len(self._recent)

    def _wait(self, retry_after_seconds: float | None) -> float:
        if retry_after_seconds is None:
            return self.wait_seconds
        return min(max(retry_after_seconds, 0.0), MAX_RETRY_AFTER_SECONDS)
