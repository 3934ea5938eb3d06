"""Who has a place to run, so that no principal takes the last one from the others.  Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from kala.errors import ResourceExhaustedError
from services.tools.files.model import Owner

BUSY_RETRY_SECONDS: Final = 1.0
_SHARE_OF_OTHERS: Final = 4


class Places:
    """Places for runs, those that wait for their turn in a workspace included; a quarter of them is never one principal's."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._most_of_one = max(1, most - max(1, most // _SHARE_OF_OTHERS))
        self._taken: Counter[tuple[str, str]] = Counter()

    @contextmanager
    def place(self, owner: Owner) -> Iterator[None]:
        """Have a place while this lasts; raises ResourceExhaustedError, with a time to come again, where there is none."""
        who = (owner.tenant, owner.principal)
        if self._taken.total() >= self._most:
            raise _exhausted(f"{self._most} runs are under way here")
        if self._taken[who] >= self._most_of_one:
            raise _exhausted(
                f"{self._most_of_one} of your runs are under way or wait here, as many as one may have"
            )
        self._taken[who] += 1
        try:
            yield
        finally:
            self._taken[who] -= 1
            if not self._taken[who]:
                del self._taken[who]


def _exhausted(problem: str) -> ResourceExhaustedError:
    return ResourceExhaustedError(
        f"{problem}; try again in a second", reason="RUNS_EXHAUSTED", retry_after_seconds=BUSY_RETRY_SECONDS
    )
