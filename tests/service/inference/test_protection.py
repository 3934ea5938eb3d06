"""What keeps requests from backends that fail, hang or are full, and what brings them back."""

from __future__ import annotations

import asyncio
from functools import partial

import pytest

from kala.errors import KalaError
from services.inference.backend import BackendFailure, Blame, Capability, Kind, LoadState, ModelInfo, State
from services.inference.chat import ChatCall, Message, Role, Text
from services.inference.dispatch import Dispatch, Ended, Step
from services.inference.protection.breaker import WAIT_SECONDS, BreakerState
from services.inference.protection.guard import Limits
from services.inference.protection.probes import Prober
from services.inference.protection.protection import OK, UNDECIDED, Protection
from services.inference.protection.retry_budget import RetryBudget
from services.inference.registry.registry import Entry, Registry
from services.inference.router import Wanted, choose, explain
from tests.fakes.backends import FakeBackend
from tests.service.inference.conftest import until

BROKEN = BackendFailure("HTTP_500", "answered 500")
REFUSED = BackendFailure("CONNECTION_REFUSED", "nothing listens at its address")
CALL = ChatCall((Message(Role.USER, (Text("Hello"),)),))


class World:
    """Backends behind one protection, whose time the test sets."""

    def __init__(self, *backends: FakeBackend, places: int = 128, budget: RetryBudget | None = None) -> None:
        self.now = 1000.0
        self.ends: list[tuple[str, str]] = []
        self.wall = 1_800_000_000.0
        """The machine's clock, which people set."""
        self.registry = Registry(backends, limits=Limits(places=places), wall_clock=lambda: self.wall)
        self.protection = Protection(
            clock=lambda: self.now,
            budget=budget or RetryBudget(),
            observe=lambda backend, reason: self.ends.append((backend, reason)),
        )
        self.prober = Prober(self.registry, self.protection, latency_seconds=0.05)

    def entry(self, name: str = "llamacpp") -> Entry:
        entry = self.registry.get(name)
        assert entry is not None
        return entry

    def state(self, name: str = "llamacpp") -> BreakerState:
        return self.entry(name).guard.state

    async def ask(self, *, recheck: KalaError | None = None) -> list[Step]:
        """One request, by the way that the servicer takes."""

        def check() -> None:
            if recheck is not None:
                raise recheck

        route = choose(Wanted(), self.registry.views())
        route = self.protection.arranged(route, self.registry.get)
        dispatch = Dispatch(self.registry, CALL, route, check, self.protection)
        return [step async for step in dispatch.run()]

    async def answered_by(self) -> list[tuple[str, str]]:
        """One request: its attempts."""
        ended = (await self.ask())[-1]
        assert isinstance(ended, Ended)
        return [(attempt.backend, attempt.reason) for attempt in ended.attempts]

    async def fail(self, times: int = 3) -> None:
        for _ in range(times):
            with pytest.raises(KalaError):
                await self.ask()

    async def later(self, seconds: float = WAIT_SECONDS) -> None:
        """Let time pass and have what is due be tested."""
        self.now += seconds
        await self.prober.test_due()


async def world(*backends: FakeBackend, places: int = 128, budget: RetryBudget | None = None) -> World:
    made = World(*backends, places=places, budget=budget)
    await made.registry.refresh()
    return made


async def test_a_dead_backend_gets_no_users_once_its_breaker_is_open_and_is_back_within_one_test() -> None:
    first, second = FakeBackend(), FakeBackend("lmstudio", kind=Kind.LMSTUDIO)
    suite = await world(first, second)
    first.failure = BROKEN
    for _ in range(50):
        await suite.answered_by()
    assert first.asked == 3
    assert await suite.answered_by() == [("llamacpp", "BREAKER_OPEN"), ("lmstudio", "")]
    for _ in range(5):
        await suite.later()
        await suite.answered_by()
    assert (first.asked, first.tested) == (3, 5)
    first.failure = None
    await suite.later()
    assert await suite.answered_by() == [("llamacpp", "")]


async def test_a_refused_connection_opens_it_at_once_for_every_model_and_a_look_closes_it() -> None:
    backend = FakeBackend("llamacpp", ModelInfo("tiny", LoadState.LOADED))
    suite = await world(backend)
    backend.failure, backend.state = REFUSED, State.OFF
    await suite.fail(1)
    assert suite.state() is BreakerState.OPEN
    await suite.later()
    assert suite.state() is BreakerState.OPEN
    backend.failure, backend.state = None, State.READY
    looked = backend.looked
    await suite.later()
    assert (backend.looked - looked, suite.state()) == (1, BreakerState.CLOSED)
    assert await suite.answered_by() == [("llamacpp", "")]


async def test_what_fails_with_one_model_is_still_asked_for_another() -> None:
    backend = FakeBackend("llamacpp", ModelInfo("a", LoadState.LOADED), ModelInfo("b", LoadState.LOADED))
    suite = await world(backend)
    bad, good = backend.models
    for _ in range(3):
        with pytest.raises(BackendFailure, match="500"):
            async with suite.protection.attempt(suite.entry(), bad):
                raise BROKEN
    with pytest.raises(BackendFailure, match="gets no requests for 'a'"):
        async with suite.protection.attempt(suite.entry(), bad):
            raise AssertionError
    async with suite.protection.attempt(suite.entry(), good):
        pass
    assert suite.ends == [("llamacpp", "HTTP_500")] * 3 + [("llamacpp", OK)]


async def test_a_server_that_cannot_embed_still_chats() -> None:
    backend = FakeBackend()
    suite = await world(backend)
    model = backend.models[0]
    for _ in range(3):
        with pytest.raises(BackendFailure, match="501"):
            async with suite.protection.attempt(suite.entry(), model, Capability.EMBED):
                raise BackendFailure("HTTP_501", "answered 501")
    with pytest.raises(BackendFailure, match="gets no requests for embeddings by 'tiny'"):
        async with suite.protection.attempt(suite.entry(), model, Capability.EMBED):
            raise AssertionError
    assert await suite.answered_by() == [("llamacpp", "")]


async def test_three_odd_requests_are_no_outage_for_all_others() -> None:
    backend = FakeBackend()
    suite = await world(backend)
    backend.failure = BROKEN
    await suite.fail()
    backend.failure = None
    await suite.later(0)
    assert await suite.answered_by() == [("llamacpp", "")]


@pytest.mark.parametrize(
    "failure",
    [
        BackendFailure("BACKEND_REJECTED", "refused the request with 400", blame=Blame.CALLER),
        BackendFailure("NO_MODEL_LOADED", "has no model loaded any more"),
        BackendFailure("BACKEND_BUSY", "answered 429"),
    ],
    ids=lambda failure: failure.reason,
)
async def test_what_is_not_the_backends_fault_never_opens_it(failure: BackendFailure) -> None:
    backend = FakeBackend()
    suite = await world(backend)
    backend.failure = failure
    await suite.fail(30)
    assert (backend.asked, suite.state()) == (30, BreakerState.CLOSED)


async def test_clients_that_leave_never_open_it_and_give_their_places_back() -> None:
    backend = FakeBackend()
    suite = await world(backend, places=1)
    backend.gate.clear()
    for asked in range(1, 11):
        asking = asyncio.create_task(suite.ask())
        await until(partial(backend.was_asked, asked))
        assert suite.entry().guard.in_flight == 1
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        assert suite.entry().guard.in_flight == 0
    assert suite.state() is BreakerState.CLOSED
    assert suite.ends == [("llamacpp", UNDECIDED)] * 10


async def test_a_clearance_that_ran_out_says_nothing_of_the_backend() -> None:
    suite = await world(FakeBackend())
    for _ in range(5):
        with pytest.raises(KalaError, match="over"):
            await suite.ask(recheck=KalaError("over"))
    assert suite.state() is BreakerState.CLOSED


async def test_a_backend_that_asks_to_be_left_alone_is_left_alone_that_long() -> None:
    first, second = FakeBackend(), FakeBackend("lmstudio", kind=Kind.LMSTUDIO)
    suite = await world(first, second)
    first.failure = BackendFailure("BACKEND_BUSY", "answered 429", retry_after_seconds=30)
    await suite.answered_by()
    first.failure = None
    await suite.later(29)
    assert (first.asked, first.tested) == (1, 0)
    assert await suite.answered_by() == [("llamacpp", "BREAKER_OPEN"), ("lmstudio", "")]
    await suite.later(1)
    assert await suite.answered_by() == [("llamacpp", "")]


async def test_with_nothing_else_there_the_caller_learns_when_to_come_again() -> None:
    backend = FakeBackend()
    suite = await world(backend)
    backend.failure = BackendFailure("BACKEND_BUSY", "answered 429", retry_after_seconds=30)
    await suite.fail(1)
    suite.now += 10
    with pytest.raises(KalaError, match=r"gets no requests for 'tiny'.*answered 429") as raised:
        await suite.ask()
    assert raised.value.retry_after_seconds == 20


async def test_a_full_backend_passes_requests_on_and_is_not_shut() -> None:
    first, second = FakeBackend(), FakeBackend("lmstudio", kind=Kind.LMSTUDIO)
    suite = await world(first, second, places=2)
    first.gate.clear()
    held = [asyncio.create_task(suite.answered_by()) for _ in range(2)]
    await until(lambda: first.asked == 2)
    assert await suite.answered_by() == [("llamacpp", "BULKHEAD_FULL"), ("lmstudio", "")]
    first.gate.set()
    assert await asyncio.gather(*held) == [[("llamacpp", "")]] * 2
    assert suite.state() is BreakerState.CLOSED


async def test_second_attempts_end_when_too_many_fail() -> None:
    backends = [FakeBackend(kind.value, kind=kind) for kind in (Kind.MLX, Kind.LLAMACPP)]
    suite = await world(*backends, budget=RetryBudget(per_request=0, reserve=1, per_second=0))
    for backend in backends:
        backend.failure = BROKEN
    with pytest.raises(KalaError, match="mlx answered 500; llamacpp answered 500"):
        await suite.ask()
    with pytest.raises(KalaError, match="no other was tried") as raised:
        await suite.ask()
    assert raised.value.reason == "RETRY_BUDGET_SPENT"
    assert backends[1].asked == 1


async def test_passing_over_an_open_breaker_costs_no_budget() -> None:
    first, second = FakeBackend(), FakeBackend("lmstudio", kind=Kind.LMSTUDIO)
    suite = await world(first, second, budget=RetryBudget(per_request=0, reserve=3, per_second=0))
    first.failure = BROKEN
    for _ in range(100):
        assert (await suite.answered_by())[-1] == ("lmstudio", "")


async def test_hosts_with_the_same_model_share_the_work_and_stand_in_for_each_other() -> None:
    hosts = [FakeBackend("llamacpp", weight=3), FakeBackend("llamacpp-2")]
    suite = await world(*hosts)
    for _ in range(40):
        await suite.answered_by()
    assert [host.asked for host in hosts] == [30, 10]
    hosts[0].failure = BROKEN
    for _ in range(40):
        assert (await suite.answered_by())[-1] == ("llamacpp-2", "")
    assert hosts[0].asked == 33


async def test_the_explained_route_shows_who_is_kept_out_and_why() -> None:
    first, second = FakeBackend(), FakeBackend("lmstudio", kind=Kind.LMSTUDIO)
    suite = await world(first, second)
    first.failure = BROKEN
    for _ in range(3):
        await suite.answered_by()
    route = suite.protection.explained(explain(Wanted(), suite.registry.views()), suite.registry.get)
    assert [candidate.backend for candidate in route.candidates] == ["lmstudio"]
    (passed,) = route.passed_over
    assert (passed.backend, passed.reason) == ("llamacpp", "BREAKER_OPEN")
    assert "answered 500" in passed.detail


async def test_a_model_that_only_says_it_is_there_is_found_out_while_idle() -> None:
    backend = FakeBackend()
    suite = await world(backend)
    backend.failure = BROKEN
    # The first look was made by `world`; after the third failed test of ours no user is sent there any more.
    for tested in [0] * (suite.prober.idle_looks - 2) + [1, 2, 3]:
        await suite.registry.refresh()
        await suite.prober.test_due()
        assert backend.tested == tested
    assert (backend.asked, suite.state()) == (0, BreakerState.OPEN)


async def test_a_model_that_answers_users_is_not_tested() -> None:
    backend = FakeBackend()
    suite = await world(backend)
    for _ in range(100):
        await suite.registry.refresh()
        await suite.answered_by()
        await suite.prober.test_due()
    assert backend.tested == 0


async def test_an_idle_model_is_tested_once_in_so_many_looks() -> None:
    backend = FakeBackend()
    suite = await world(backend)
    for _ in range(10 * suite.prober.idle_looks):
        await suite.registry.refresh()
        await suite.prober.test_due()
    assert backend.tested == 10


@pytest.mark.parametrize(
    ("kind", "state"),
    [(Kind.OLLAMA, LoadState.LOADED), (Kind.OPENAI, LoadState.LOADED), (Kind.LMSTUDIO, LoadState.NOT_LOADED)],
)
async def test_no_idle_test_costs_memory_or_money(kind: Kind, state: LoadState) -> None:
    backend = FakeBackend(kind.value, ModelInfo("m", state), kind=kind)
    suite = await world(backend)
    for _ in range(5 * suite.prober.idle_looks):
        await suite.registry.refresh()
        await suite.prober.test_due()
    assert backend.tested == 0


async def test_a_token_that_takes_too_long_counts_as_none() -> None:
    backend = FakeBackend()
    suite = await world(backend)
    suite.prober.idle_looks = 1
    backend.gate.clear()
    for _ in range(3):
        await suite.registry.refresh()
        await suite.prober.test_due()
    assert suite.state() is BreakerState.OPEN
    assert "KALA_INFERENCE_HEALTH_SECONDS" in suite.entry().guard.words()


async def test_a_remote_backend_is_proven_by_a_user_and_not_at_our_expense() -> None:
    backend = FakeBackend("openai", kind=Kind.OPENAI)
    suite = await world(backend)
    model = backend.models[0]
    for _ in range(3):
        with pytest.raises(BackendFailure, match="500"):
            async with suite.protection.attempt(suite.entry("openai"), model):
                raise BROKEN
    await suite.later()
    assert (backend.tested, suite.state("openai")) == (0, BreakerState.OPEN)
    async with suite.protection.attempt(suite.entry("openai"), model):
        with pytest.raises(BackendFailure, match="gets no requests"):
            async with suite.protection.attempt(suite.entry("openai"), model):
                pass
    assert suite.state("openai") is BreakerState.CLOSED


async def test_no_test_loads_a_model() -> None:
    backend = FakeBackend("llamacpp", ModelInfo("tiny", LoadState.LOADED))
    suite = await world(backend)
    backend.failure = BROKEN
    await suite.fail()
    backend.models = (ModelInfo("tiny", LoadState.NOT_LOADED),)
    await suite.registry.refresh()
    await suite.later()
    assert backend.tested == 0
    backend.failure = None
    async with suite.protection.attempt(suite.entry(), backend.models[0]):
        pass
    assert suite.state() is BreakerState.CLOSED


async def test_a_model_that_is_no_longer_there_leaves_no_open_breaker() -> None:
    backend = FakeBackend()
    suite = await world(backend)
    backend.failure = BROKEN
    await suite.fail()
    backend.models = (ModelInfo("other", LoadState.LOADED),)
    await suite.registry.refresh()
    await suite.later()
    assert (suite.state(), suite.entry().guard.words()) == (BreakerState.CLOSED, "")


async def test_a_model_that_turns_our_question_away_is_proven_by_a_user() -> None:
    backend = FakeBackend()
    suite = await world(backend)
    backend.failure = BROKEN
    await suite.fail()
    backend.failure = BackendFailure("BACKEND_REJECTED", "is not a chat model", blame=Blame.CALLER)
    await suite.later()
    backend.failure = None
    assert await suite.answered_by() == [("llamacpp", "")]
    assert suite.state() is BreakerState.CLOSED


@pytest.mark.parametrize("jump", [-1e9, -3600.0, 3600.0, 1e9])
async def test_setting_the_machines_clock_changes_nothing(jump: float) -> None:
    backend = FakeBackend()
    suite = await world(backend)
    backend.failure = BROKEN
    await suite.fail(2)
    suite.wall += jump
    await suite.fail(1)
    await suite.later(0)
    assert (backend.tested, suite.state()) == (1, BreakerState.OPEN)
    suite.wall += jump
    await suite.later(WAIT_SECONDS - 0.001)
    assert backend.tested == 1
    backend.failure = None
    await suite.later(0.001)
    assert (backend.tested, suite.state()) == (2, BreakerState.CLOSED)


async def test_the_prober_runs_by_itself_and_ends_when_told() -> None:
    backend = FakeBackend()
    suite = await world(backend)
    running = asyncio.create_task(suite.prober.run())
    backend.failure = BROKEN
    await suite.fail()
    backend.failure = None
    suite.now += WAIT_SECONDS
    await until(lambda: suite.state() is BreakerState.CLOSED)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert running.cancelled()
