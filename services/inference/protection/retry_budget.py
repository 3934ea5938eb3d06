"""A budget for second attempts, so that failures do not multiply the load on what still works.  Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

RETRIES_PER_REQUEST: Final = 0.2
"""At most every fifth request makes its trouble known to a second backend, once the reserve is used up."""

RESERVE: Final = 20.0
"""Second attempts that are always there after a quiet time: a small suite never notices the budget."""

RESERVE_PER_SECOND: Final = 2.0
"""How fast the reserve comes back."""


@dataclass(slots=True)
class RetryBudget:
    """A bucket that requests fill a little and second attempts empty; times come from a monotonic clock."""

    per_request: float = RETRIES_PER_REQUEST
    reserve: float = RESERVE
    per_second: float = RESERVE_PER_SECOND
    _left: float = RESERVE
    _at: float | None = None

    def __post_init__(self) -> None:
        self._left = self.reserve

    def request(self, now: float) -> None:
        """Note a request's first attempt."""
        self._refill(now)
        self._left = min(self.reserve, self._left + self.per_request)

    def may_retry(self, now: float) -> bool:
        """Take leave for one more attempt of a request; False where too many have been made."""
        self._refill(now)
        if self._left < 1:
            return False
        self._left -= 1
        return True

    def _refill(self, now: float) -> None:
        if self._at is not None:
            self._left = min(self.reserve, self._left + max(0.0, now - self._at) * self.per_second)
        self._at = now
