"""When to start a part again after it ended: the rule alone, without processes or clocks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

EXIT_REFUSED: Final = 2
"""How a part says that it will not start as it is configured; starting it again would say the same."""

FIRST_DELAY_SECONDS: Final = 0.2
"""Short, because the first crash of a part is usually a kill, and every request fails until it is back."""

LONGEST_DELAY_SECONDS: Final = 30.0
"""A part that keeps crashing then costs one start in half a minute."""

STABLE_SECONDS: Final = 60.0
"""A part that ran this long has shown that it can; its earlier crashes are forgotten."""

MAX_CRASHES: Final = 10
"""Crashes in a row, each before the part was stable; about two minutes of trying."""


@dataclass(frozen=True, slots=True)
class Restart:
    """Start the part again after a pause."""

    delay_seconds: float
    crashes: int
    """Crashes in a row, this one included; goes into the next call of `next_step`."""


@dataclass(frozen=True, slots=True)
class Refused:
    """The part does not want to run as configured."""


@dataclass(frozen=True, slots=True)
class GaveUp:
    """The part crashes too often."""


def next_step(
    *, exit_code: int, ran_seconds: float, earlier_crashes: int, max_crashes: int = MAX_CRASHES
) -> Restart | Refused | GaveUp:
    """Decide from how a part ended, how long it ran and how many crashes in a row came before."""
    if exit_code == EXIT_REFUSED:
        return Refused()
    crashes = 1 if ran_seconds >= STABLE_SECONDS else earlier_crashes + 1
    if crashes > max_crashes:
        return GaveUp()
    return Restart(min(FIRST_DELAY_SECONDS * 2 ** (crashes - 1), LONGEST_DELAY_SECONDS), crashes)
