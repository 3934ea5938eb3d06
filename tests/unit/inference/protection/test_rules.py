"""The bulkhead, the retry budget, what failures count for, and how work is shared."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.inference.backend import BackendFailure, Blame, ContextOverflow
from services.inference.protection.balance import Host, Turns, balanced
from services.inference.protection.bulkhead import Bulkhead
from services.inference.protection.outcomes import Weight, weigh
from services.inference.protection.retry_budget import RetryBudget

GROUP = ("llamacpp", "tiny")


def test_a_bulkhead_admits_as_many_as_it_has_places() -> None:
    bulkhead = Bulkhead(places=2)
    assert [bulkhead.enter() for _ in range(3)] == [True, True, False]
    bulkhead.leave()
    assert bulkhead.enter()


def test_a_quiet_suite_never_notices_the_retry_budget() -> None:
    budget = RetryBudget()
    for second in range(1000):
        budget.request(second)
        assert budget.may_retry(second)


def test_when_everything_fails_second_attempts_stay_a_fraction_of_the_requests() -> None:
    budget = RetryBudget()
    retries = 0
    for request in range(10_000):
        now = request / 1000
        budget.request(now)
        retries += budget.may_retry(now)
    # A fifth of 10,000, the reserve of 20, and 2 for each of the ten seconds.
    assert 2000 <= retries <= 2000 + 20 + 20 + 1


@given(st.lists(st.floats(0, 1e6), max_size=50))
def test_a_clock_that_goes_back_gives_nothing_away(times: list[float]) -> None:
    budget = RetryBudget(per_request=0, reserve=5, per_second=0)
    assert sum(budget.may_retry(now) for now in times) <= 5


@pytest.mark.parametrize(
    ("failure", "weight"),
    [
        pytest.param(BackendFailure("CONNECTION_REFUSED", ""), Weight.AWAY, id="refused"),
        pytest.param(BackendFailure("DNS_FAILED", ""), Weight.AWAY, id="dns"),
        pytest.param(BackendFailure("HTTP_500", ""), Weight.FAULT, id="500"),
        pytest.param(BackendFailure("WRONG_MODEL", ""), Weight.FAULT, id="another model"),
        pytest.param(BackendFailure("STREAM_CUT", ""), Weight.FAULT, id="cut"),
        pytest.param(BackendFailure("BACKEND_BUSY", ""), Weight.NOTHING, id="busy"),
        pytest.param(
            BackendFailure("BACKEND_BUSY", "", retry_after_seconds=1),
            Weight.FAULT,
            id="busy, with Retry-After",
        ),
        pytest.param(BackendFailure("NO_MODEL_LOADED", ""), Weight.NOTHING, id="no model"),
        pytest.param(
            BackendFailure("BACKEND_REJECTED", "", blame=Blame.CALLER),
            Weight.NOTHING,
            id="the caller's mistake",
        ),
        pytest.param(
            BackendFailure("BACKEND_REJECTED", "", blame=Blame.CALLER, retry_after_seconds=9),
            Weight.NOTHING,
            id="the caller's mistake, with Retry-After",
        ),
        pytest.param(
            ContextOverflow(prompt_tokens=9, context_tokens=8), Weight.NOTHING, id="prompt over the context"
        ),
        pytest.param(BackendFailure("BREAKER_OPEN", ""), Weight.NOTHING, id="never sent"),
    ],
)
def test_what_a_failure_counts_for(failure: BackendFailure, weight: Weight) -> None:
    assert weigh(failure) is weight


def names(hosts: list[Host]) -> list[str]:
    return [host.name for host in hosts]


def test_the_least_busy_host_of_a_group_goes_first_and_groups_keep_their_places() -> None:
    hosts = [
        Host("mlx", ("mlx", "a"), in_flight=9),
        Host("one", GROUP, in_flight=2),
        Host("two", GROUP, in_flight=1),
        Host("three", GROUP, in_flight=0),
        Host("ollama", ("ollama", "a")),
    ]
    assert names(balanced(hosts)) == ["mlx", "three", "two", "one", "ollama"]


def test_a_heavier_host_holds_more_before_it_counts_as_busy() -> None:
    hosts = [Host("big", GROUP, weight=4, in_flight=3), Host("small", GROUP, weight=1, in_flight=1)]
    assert names(balanced(hosts)) == ["big", "small"]


HOSTS = st.lists(
    st.builds(
        Host,
        name=st.uuids().map(str),
        group=st.sampled_from([("a",), ("b",)]),
        weight=st.floats(0.1, 10),
        in_flight=st.integers(0, 5),
        turn=st.floats(0, 10),
    ),
    max_size=8,
)


@given(HOSTS)
def test_equal_input_gives_equal_order_and_loses_nobody(hosts: list[Host]) -> None:
    first = balanced(hosts)
    assert first == balanced(hosts)
    assert sorted(names(first)) == sorted(names(hosts))
    assert [host.group for host in first] == [host.group for host in hosts]


def served(turns: Turns, weights: dict[str, float], requests: int) -> Counter[str]:
    """Serve requests one after the other and count who got them."""
    count: Counter[str] = Counter()
    for _ in range(requests):
        hosts = [Host(name, GROUP, weight, turn=turns.of(name, GROUP)) for name, weight in weights.items()]
        first = balanced(hosts)[0]
        turns.taken(first.name, GROUP, first.weight)
        count[first.name] += 1
    return count


def test_idle_hosts_serve_by_their_weights() -> None:
    assert served(Turns(), {"big": 3, "small": 1}, 400) == {"big": 300, "small": 100}


def test_a_host_that_comes_back_does_not_catch_up() -> None:
    turns = Turns()
    served(turns, {"one": 1}, 1000)
    count = served(turns, {"one": 1, "two": 1}, 100)
    assert abs(count["one"] - count["two"]) <= 1


@given(st.lists(st.floats(0.5, 4), min_size=2, max_size=4))
def test_no_host_is_ever_more_than_one_turn_from_its_share(weights: list[float]) -> None:
    hosts = {f"h{number}": weight for number, weight in enumerate(weights)}
    count = served(Turns(), hosts, 200)
    for (_, had, one), (_, others, other) in itertools.combinations(
        [(name, count[name], weight) for name, weight in hosts.items()], 2
    ):
        assert abs(had / one - others / other) <= 1 / one + 1 / other
