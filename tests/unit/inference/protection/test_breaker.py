"""When a breaker keeps requests away, and what lets them pass again."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.inference.protection.breaker import (
    MAX_RETRY_AFTER_SECONDS,
    WAIT_SECONDS,
    Breaker,
    BreakerState,
    Leave,
)

CLOSED, OPEN, HALF_OPEN = BreakerState.CLOSED, BreakerState.OPEN, BreakerState.HALF_OPEN


def admitted(breaker: Breaker, now: float = 0.0) -> Leave:
    leave = breaker.admit(now)
    assert leave is not None
    return leave


def fail(breaker: Breaker, times: int = 1, now: float = 0.0) -> None:
    for _ in range(times):
        breaker.failed(admitted(breaker, now), now, "answered 500")


def opened(now: float = 0.0) -> Breaker:
    """A breaker that has just opened, and whose first probe, made at once, has failed."""
    breaker = Breaker()
    fail(breaker, 3, now)
    assert breaker.state is OPEN
    leave = breaker.probe(now)
    assert leave is not None
    breaker.failed(leave, now, "answered 500")
    return breaker


def test_three_failures_in_a_row_open_it() -> None:
    breaker = Breaker()
    fail(breaker, 2)
    assert breaker.state is CLOSED
    fail(breaker)
    assert (breaker.state, breaker.why) == (OPEN, "answered 500")
    assert breaker.admit(0.0) is None


def test_a_success_between_failures_starts_the_count_anew() -> None:
    breaker = Breaker()
    fail(breaker, 2)
    breaker.succeeded(admitted(breaker))
    fail(breaker, 2)
    assert breaker.state is CLOSED


def test_failing_every_other_time_opens_it_although_it_never_fails_thrice_in_a_row() -> None:
    breaker = Breaker()
    for _ in range(5):
        breaker.succeeded(admitted(breaker))
        fail(breaker)
    assert breaker.state is OPEN


def test_one_failure_in_three_does_not_open_it() -> None:
    breaker = Breaker()
    for _ in range(30):
        breaker.succeeded(admitted(breaker))
        breaker.succeeded(admitted(breaker))
        fail(breaker)
    assert breaker.state is CLOSED


def test_no_user_is_sent_as_a_probe_even_when_the_wait_is_over() -> None:
    breaker = opened()
    assert breaker.admit(WAIT_SECONDS * 100) is None


def test_one_probe_at_a_time_passes_once_the_wait_is_over() -> None:
    breaker = opened()
    assert breaker.probe(WAIT_SECONDS - 0.001) is None
    assert breaker.probe(WAIT_SECONDS) is not None
    assert breaker.state is HALF_OPEN
    assert breaker.probe(WAIT_SECONDS) is None
    assert breaker.admit(WAIT_SECONDS) is None


def test_the_first_probe_comes_at_once_so_that_three_odd_requests_are_no_outage() -> None:
    breaker = Breaker()
    fail(breaker, 3)
    leave = breaker.probe(0.0)
    assert leave is not None
    breaker.succeeded(leave)
    assert breaker.state is CLOSED


def test_a_backend_that_answers_probes_alone_is_shut_for_a_wait_all_the_same() -> None:
    breaker = Breaker()
    fail(breaker, 3)
    leave = breaker.probe(0.0)
    assert leave is not None
    breaker.succeeded(leave)
    fail(breaker, 3, now=1.0)
    assert breaker.probe(1.0 + WAIT_SECONDS - 0.001) is None
    assert breaker.probe(1.0 + WAIT_SECONDS) is not None


def test_a_probes_success_closes_it_and_forgets_the_failures() -> None:
    breaker = opened()
    leave = breaker.probe(WAIT_SECONDS)
    assert leave is not None
    breaker.succeeded(leave)
    assert (breaker.state, breaker.why) == (CLOSED, "")
    fail(breaker, 2)
    assert breaker.state is CLOSED


def test_a_probes_failure_keeps_it_open_for_another_wait() -> None:
    breaker = opened()
    leave = breaker.probe(WAIT_SECONDS)
    assert leave is not None
    breaker.failed(leave, WAIT_SECONDS, "answered 502")
    assert (breaker.state, breaker.why) == (OPEN, "answered 502")
    assert breaker.probe(2 * WAIT_SECONDS - 0.001) is None
    assert breaker.probe(2 * WAIT_SECONDS) is not None


def test_after_a_probe_that_showed_nothing_the_next_may_follow_at_once() -> None:
    breaker = opened()
    leave = breaker.probe(WAIT_SECONDS)
    assert leave is not None
    breaker.undecided(leave)
    assert breaker.state is OPEN
    assert breaker.probe(WAIT_SECONDS) is not None


def test_what_began_before_it_opened_neither_closes_it_nor_delays_the_probe() -> None:
    breaker = Breaker()
    early, late = admitted(breaker), admitted(breaker)
    fail(breaker, 3)
    breaker.succeeded(early)
    breaker.failed(late, 1.0, "answered 500")
    assert breaker.state is OPEN
    assert breaker.probe(1.0) is not None


def test_what_failed_before_it_closed_again_is_forgiven() -> None:
    breaker = Breaker()
    early = [admitted(breaker) for _ in range(3)]
    fail(breaker, 3)
    leave = breaker.probe(WAIT_SECONDS)
    assert leave is not None
    breaker.succeeded(leave)
    for one in early:
        breaker.failed(one, WAIT_SECONDS, "answered 500")
    assert breaker.state is CLOSED


def test_asked_to_be_left_alone_it_opens_at_once_and_for_that_long() -> None:
    breaker = Breaker()
    breaker.failed(admitted(breaker), 0.0, "answered 429", retry_after_seconds=42)
    assert breaker.state is OPEN
    assert breaker.probe(41.9) is None
    assert breaker.probe(42) is not None


def test_a_request_of_before_can_still_tell_how_long_to_leave_it_alone() -> None:
    breaker = Breaker()
    late = admitted(breaker)
    fail(breaker, 3)
    breaker.failed(late, 1.0, "answered 429", retry_after_seconds=60)
    assert breaker.probe(60.9) is None
    assert breaker.probe(61) is not None


@pytest.mark.parametrize(("asked", "waits"), [(1e9, MAX_RETRY_AFTER_SECONDS), (-5.0, 0.0)])
def test_nobody_shuts_himself_out_for_ever(asked: float, waits: float) -> None:
    breaker = Breaker()
    breaker.failed(admitted(breaker), 0.0, "answered 503", retry_after_seconds=asked)
    assert breaker.due_at == waits


def test_a_user_tries_where_no_test_of_ours_can_be_made() -> None:
    breaker = opened()
    breaker.takes_trials = True
    assert breaker.admit(WAIT_SECONDS - 0.001) is None
    trial = breaker.admit(WAIT_SECONDS)
    assert trial is not None
    assert breaker.admit(WAIT_SECONDS) is None
    breaker.succeeded(trial)
    assert breaker.state is CLOSED
    assert not breaker.takes_trials


ACTS = st.lists(st.tuples(st.sampled_from(["ok", "fail", "nothing", "probe", "later"]), st.integers(0, 9)))


@given(ACTS)
def test_it_is_never_stuck(acts: list[tuple[str, int]]) -> None:
    """Whatever happened, a probe gets through after a wait, and its success lets everyone pass."""
    breaker, now, running = Breaker(), 0.0, list[Leave]()
    for act, number in acts:
        leave = breaker.admit(now)
        if leave is not None:
            running.append(leave)
        if act == "probe" and (leave := breaker.probe(now)) is not None:
            running.append(leave)
        elif act == "later":
            now += number
        elif running:
            one = running.pop(number % len(running))
            match act:
                case "ok":
                    breaker.succeeded(one)
                case "fail":
                    breaker.failed(one, now, "x")
                case _:
                    breaker.undecided(one)
    for leave in running:
        breaker.undecided(leave)
    now += MAX_RETRY_AFTER_SECONDS
    if breaker.state is not CLOSED:
        leave = breaker.probe(now)
        assert leave is not None
        breaker.succeeded(leave)
    assert breaker.admit(now) is not None
