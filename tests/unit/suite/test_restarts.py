"""The rule of restarting, without processes."""

from __future__ import annotations

import pytest

from kala.suite.restarts import (
    EXIT_REFUSED,
    LONGEST_DELAY_SECONDS,
    MAX_CRASHES,
    STABLE_SECONDS,
    GaveUp,
    Refused,
    Restart,
    next_step,
)


def test_a_part_that_refuses_its_configuration_is_not_started_again() -> None:
    assert next_step(exit_code=EXIT_REFUSED, ran_seconds=0.1, earlier_crashes=0) == Refused()


def test_the_pause_doubles_with_every_crash_and_stays_bounded() -> None:
    delays = []
    crashes = 0
    for _ in range(MAX_CRASHES):
        step = next_step(exit_code=1, ran_seconds=0.1, earlier_crashes=crashes)
        assert isinstance(step, Restart)
        delays.append(step.delay_seconds)
        crashes = step.crashes
    assert delays[:3] == [0.2, 0.4, 0.8]
    assert max(delays) == LONGEST_DELAY_SECONDS
    assert next_step(exit_code=1, ran_seconds=0.1, earlier_crashes=crashes) == GaveUp()


def test_a_part_that_ran_well_starts_again_at_once_and_its_crashes_are_forgotten() -> None:
    assert next_step(exit_code=-9, ran_seconds=STABLE_SECONDS, earlier_crashes=9) == Restart(0.2, 1)


@pytest.mark.parametrize("code", [0, 1, -9, -15], ids=["clean", "error", "killed", "terminated"])
def test_every_end_that_nobody_asked_for_is_a_crash(code: int) -> None:
    assert isinstance(next_step(exit_code=code, ran_seconds=1.0, earlier_crashes=0), Restart)


def test_a_part_that_never_came_up_is_given_up_sooner() -> None:
    assert next_step(exit_code=1, ran_seconds=0.1, earlier_crashes=3, max_crashes=3) == GaveUp()
