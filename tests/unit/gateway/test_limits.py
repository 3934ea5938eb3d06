"""What keys may use: set aside before a request, settled after it, and never passed by a race."""

from __future__ import annotations

import asyncio
import secrets
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path

import pytest
import pytest_asyncio
from sqlalchemy import Engine

from gateway.background import Background
from gateway.database import open_database
from gateway.keys import ApiKey, make_key
from gateway.limits.budgets import Budgets, Charge, OverBudgetError
from gateway.limits.counters import MemoryCounters
from gateway.limits.estimates import NOTHING, Estimate, estimate_of
from gateway.limits.key_limits import Budget, KeyLimits, Period, Unit
from gateway.limits.prices import Price, Prices
from gateway.limits.reservation import Limiter, OverLimitError
from gateway.limits.usage import UsageBook, UsageStore, Used
from kala.common.v1.usage_pb2 import Usage
from kala.errors import InvalidArgumentError, UnavailableError
from kala.inference.v1 import inference_pb2 as pb

NOW = datetime(2026, 1, 31, 23, 59, 30, tzinfo=UTC)
PRICES = Prices(
    {
        "free": Price(),
        "small": Price(input=Decimal("0.5"), output=Decimal("1.5")),
        "dear": Price(output=Decimal(60)),
    }
)


@pytest.fixture(params=["sqlite", "postgres"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return str(tmp_path / "g.db")
    url: str = request.getfixturevalue("postgres_url")
    return url


@pytest.fixture
def engines(database: str) -> Iterator[tuple[Engine, Engine]]:
    """Those of two gateways on one database."""
    opened = open_database(database), open_database(database)
    yield opened
    for each in opened:
        each.dispose()


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    return open_database(tmp_path / "g.db")


class Bench:
    """A limiter whose clock a test sets."""

    def __init__(self, engine: Engine) -> None:
        self.time = NOW
        self.budgets = Budgets(engine)
        self.background = Background()
        self.limiter = Limiter(
            counters=MemoryCounters(),
            budgets=self.budgets,
            book=UsageBook(UsageStore(engine), now=lambda: self.time),
            prices=PRICES,
            background=self.background,
            default_output_tokens=100,
            now=lambda: self.time,
        )

    def used(self, key: ApiKey, number: int = 0) -> int:
        budget = key.limits.budgets[number]
        return self.budgets.used(Charge(key.id, budget, budget.period.window(self.time), 0))


@pytest_asyncio.fixture
async def bench(engine: Engine) -> AsyncIterator[Bench]:
    made = Bench(engine)
    yield made
    await made.background.drain()
    engine.dispose()


def key(*budgets: Budget, **rates: int) -> ApiKey:
    made = make_key(display_name="a", scopes=[1], now=NOW, randomness=secrets.token_bytes)
    return replace(made.key, limits=KeyLimits(budgets=budgets, **rates))


def tokens(amount: int, period: Period = Period.DAY) -> Budget:
    return Budget(Unit.TOKENS, period, amount)


def requests(amount: int, period: Period = Period.TOTAL) -> Budget:
    return Budget(Unit.REQUESTS, period, amount)


def test_of_two_hundred_requests_of_two_gateways_racing_for_ten_ten_pass(
    engines: tuple[Engine, Engine],
) -> None:
    gateways = [Budgets(engine) for engine in engines]
    charge = Charge("k", requests(10), "total", 1)

    def passes(number: int) -> bool:
        try:
            gateways[number % 2].reserve([charge])
        except OverBudgetError:
            return False
        return True

    with ThreadPoolExecutor(8) as threads:
        assert sum(threads.map(passes, range(200))) == 10
    assert gateways[0].used(charge) == 10
    with pytest.raises(OverBudgetError) as over:
        gateways[1].reserve([charge])
    assert over.value.used == 10


def test_charges_are_made_together_or_not_at_all(engines: tuple[Engine, Engine]) -> None:
    budgets = Budgets(engines[0])
    first, second = Charge("k", requests(10), "total", 1), Charge("k", tokens(5), "2026-01-31", 6)
    with pytest.raises(OverBudgetError) as over:
        budgets.reserve([first, second])
    assert over.value.charge == second
    assert budgets.used(first) == budgets.used(second) == 0
    budgets.reserve([first, replace(second, amount=5)])
    budgets.correct([replace(second, amount=-3)])
    assert budgets.used(second) == 2


async def test_what_was_set_aside_and_not_used_comes_back(bench: Bench) -> None:
    holder = key(tokens(1000), tokens_per_minute=1000)
    reservation = await bench.limiter.reserve(holder, Estimate(400, 500))
    assert bench.used(holder) == 900
    with pytest.raises(OverLimitError, match="has 100 left of them"):
        await bench.limiter.reserve(holder, Estimate(400, 500))
    reservation.settle(Usage(input_tokens=300, output_tokens=20), model="small")
    await bench.limiter.close(reservation, actor="a", has_failed=False)
    assert bench.used(holder) == 320
    after = await bench.limiter.reserve(holder, Estimate(400, 280))
    assert after.headers["x-ratelimit-remaining-tokens"] == "0"


async def test_an_answer_longer_than_expected_is_charged_whole(bench: Bench) -> None:
    holder = key(tokens(200))
    reservation = await bench.limiter.reserve(holder, Estimate(50, None))
    assert bench.used(holder) == 150  # 100 for an answer without a limit
    reservation.settle(Usage(input_tokens=50, output_tokens=400))
    await bench.limiter.close(reservation, actor="a", has_failed=False)
    assert bench.used(holder) == 450
    with pytest.raises(OverLimitError, match="has a budget of 200 tokens"):
        await bench.limiter.reserve(holder, Estimate(1, 0))


async def test_what_failed_is_free_and_what_broke_off_is_not(bench: Bench) -> None:
    holder = key(tokens(1000), requests(10))
    failed = await bench.limiter.reserve(holder, Estimate(100, 100))
    await bench.limiter.close(failed, actor="a", has_failed=True)
    assert (bench.used(holder), bench.used(holder, 1)) == (0, 1)
    broken_off = await bench.limiter.reserve(holder, Estimate(100, 100))
    await bench.limiter.close(broken_off, actor="a", has_failed=False)
    assert (bench.used(holder), bench.used(holder, 1)) == (200, 2)


async def test_what_broke_off_costs_what_the_model_that_was_asked_for_does(bench: Bench) -> None:
    # It once cost what a model without a name does: another's price, lower or higher than what was set aside.
    holder = key(Budget(Unit.COST_MICROS, Period.DAY, 10_000))
    reservation = await bench.limiter.reserve(holder, Estimate(100, 100, "small"))
    await bench.limiter.close(reservation, actor="a", has_failed=False)
    assert bench.used(holder) == 200


async def test_uncounted_tokens_stay_as_estimated(bench: Bench) -> None:
    holder = key(tokens(1000))
    reservation = await bench.limiter.reserve(holder, Estimate(100, 50))
    reservation.settle(Usage(input_tokens=7))
    await bench.limiter.close(reservation, actor="a", has_failed=False)
    assert bench.used(holder) == 57


async def test_two_hundred_racing_requests_are_ten_a_minute(bench: Bench) -> None:
    holder = key(requests_per_minute=10)
    results = await asyncio.gather(
        *(bench.limiter.reserve(holder, NOTHING) for _ in range(200)), return_exceptions=True
    )
    refused = [result for result in results if isinstance(result, OverLimitError)]
    assert len(results) - len(refused) == 10
    assert refused[0].headers["x-ratelimit-remaining-requests"] == "0"
    assert refused[0].retry_after_seconds == 30  # to the end of the minute
    bench.time += timedelta(seconds=30)
    await bench.limiter.reserve(holder, NOTHING)


async def test_a_request_that_one_limit_refuses_uses_nothing_of_the_others(bench: Bench) -> None:
    holder = key(tokens(10), requests(10), requests_per_minute=5, tokens_per_minute=1000, concurrent=1)
    for _ in range(7):
        with pytest.raises(OverLimitError, match="budget of 10 tokens"):
            await bench.limiter.reserve(holder, Estimate(11, 0))
    assert (bench.used(holder), bench.used(holder, 1)) == (0, 0)
    fits = await bench.limiter.reserve(holder, Estimate(10, 0))
    assert fits.headers["x-ratelimit-remaining-requests"] == "4"
    assert fits.headers["x-ratelimit-remaining-tokens"] == "990"


async def test_a_place_is_free_again_when_its_request_ends(bench: Bench) -> None:
    holder = key(concurrent=1)
    running = await bench.limiter.reserve(holder, NOTHING)
    with pytest.raises(OverLimitError, match="runs 1 requests at a time"):
        await bench.limiter.reserve(holder, NOTHING)
    await bench.limiter.close(running, actor="a", has_failed=True)
    await bench.limiter.reserve(holder, NOTHING)


@pytest.mark.parametrize(
    ("period", "next_window"),
    [
        (Period.DAY, NOW + timedelta(minutes=1)),
        (Period.MONTH, NOW + timedelta(minutes=1)),
        (Period.TOTAL, None),
    ],
)
async def test_a_budget_begins_anew_with_its_window(
    bench: Bench, period: Period, next_window: datetime | None
) -> None:
    holder = key(requests(1, period))
    first = await bench.limiter.reserve(holder, NOTHING)
    with pytest.raises(OverLimitError) as over:
        await bench.limiter.reserve(holder, NOTHING)
    assert over.value.reason == "INSUFFICIENT_QUOTA"
    bench.time = next_window or NOW + timedelta(days=4000)
    if next_window is None:
        with pytest.raises(OverLimitError):
            await bench.limiter.reserve(holder, NOTHING)
        return
    await bench.limiter.reserve(holder, NOTHING)
    # The first one's settlement belongs to its own window.
    await bench.limiter.close(first, actor="a", has_failed=True)
    assert bench.used(holder) == 1


def test_windows_are_of_utc() -> None:
    tokyo = timezone(timedelta(hours=9))
    at = datetime(2026, 3, 1, 8, 59, tzinfo=tokyo)
    assert [period.window(at) for period in Period] == ["2026-02-28", "2026-02", "total"]
    assert Period.DAY.window(at + timedelta(minutes=1)) == "2026-03-01"


async def test_what_a_broken_off_request_had_just_set_aside_comes_back(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    holder = key(tokens(1000))
    began, may_end = threading.Event(), threading.Event()
    reserve = bench.budgets.reserve

    def slow(charges: Sequence[Charge]) -> None:
        began.set()
        may_end.wait(10)
        reserve(charges)

    monkeypatch.setattr(bench.budgets, "reserve", slow)
    task = asyncio.ensure_future(bench.limiter.reserve(holder, Estimate(10, 10)))
    await asyncio.to_thread(began.wait, 10)
    task.cancel()
    may_end.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    await bench.background.drain()
    assert bench.used(holder) == 0


async def test_an_unlisted_model_costs_what_the_dearest_does(bench: Bench) -> None:
    holder = key(Budget(Unit.COST_MICROS, Period.MONTH, 10_000))
    reservation = await bench.limiter.reserve(holder, Estimate(100, 100, "auto"))
    assert bench.used(holder) == 6000
    reservation.settle(Usage(input_tokens=101, output_tokens=10), model="small")
    await bench.limiter.close(reservation, actor="a", has_failed=False)
    assert bench.used(holder) == 66  # 50.5 + 15, rounded up
    await bench.limiter.book.write()
    (row,) = bench.limiter.book.store.query(tenant=None, limit=9)
    assert (row.model, row.used) == ("small", Used(1, 0, 101, 10, 66))


async def test_a_dearer_model_that_answers_in_place_of_a_free_one_is_charged(bench: Bench) -> None:
    holder = key(Budget(Unit.COST_MICROS, Period.DAY, 500))
    reservation = await bench.limiter.reserve(holder, Estimate(10, 10, "free"))
    reservation.settle(Usage(input_tokens=10, output_tokens=10), model="dear")
    await bench.limiter.close(reservation, actor="a", has_failed=False)
    assert bench.used(holder) == 600
    with pytest.raises(OverLimitError, match="0 left"):
        await bench.limiter.reserve(holder, Estimate(10, 10, "free"))
    await bench.limiter.reserve(holder, NOTHING)


@pytest.mark.parametrize(
    ("limits", "field"),
    [
        (KeyLimits(requests_per_minute=0), r"limits\.requests_per_minute"),
        (KeyLimits(concurrent=2**53), r"limits\.concurrent"),
        (KeyLimits(budgets=(tokens(0),)), r"limits\.budgets\[0\]\.amount"),
        (KeyLimits(budgets=(tokens(1), tokens(2))), r"limits\.budgets"),
        (KeyLimits(budgets=(Budget(Unit.COST_MICROS, Period.DAY, 1),)), "KALA_GATEWAY_PRICES"),
    ],
)
def test_limits_that_make_no_sense_name_the_field(limits: KeyLimits, field: str) -> None:
    with pytest.raises(InvalidArgumentError, match=field):
        limits.checked(has_prices=False)


def test_limits_come_back_from_the_database_as_they_were() -> None:
    limits = KeyLimits(1, None, 3, (tokens(5), requests(6, Period.MONTH)))
    assert KeyLimits.from_json(limits.to_json()) == limits


def _chat(**fields: object) -> pb.ChatAction:
    part = pb.ContentPart(text="x" * 3000)
    image = pb.ContentPart(image_data_uri="data:image/png;base64," + "A" * 900_000)
    message = pb.ChatMessage(role=pb.ROLE_USER, content=[part, image])
    return pb.ChatAction(model="m", messages=[message], **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("action", "is_as_expected"),
    [
        (_chat(), lambda e: 2024 <= e.input_tokens < 2100 and e.output_tokens is None),
        (_chat(sampling=pb.Sampling(max_output_tokens=7)), lambda e: e.output_tokens == 7),
        (pb.EmbedAction(inputs=["x" * 300]), lambda e: 100 <= e.input_tokens < 110 and e.output_tokens == 0),
        (pb.LoadModelAction(), lambda e: e == NOTHING),
    ],
)
def test_an_estimate_counts_text_by_its_length_and_an_image_as_an_image(
    action: pb.ChatAction, is_as_expected: Callable[[Estimate], bool]
) -> None:
    assert is_as_expected(estimate_of(action))


def test_usage_is_summed_by_key_and_model_in_a_window_and_erased_with_its_key(
    engines: tuple[Engine, Engine],
) -> None:
    store = UsageStore(engines[0])
    clock = [NOW]
    book = UsageBook(store, now=lambda: clock[0])

    def note(key_id: str, model: str, used: Used) -> None:
        book.note(key_id=key_id, tenant="t", actor=f"actor-{key_id}", model=model, used=used)

    for minute in range(3):
        clock[0] = NOW + timedelta(minutes=minute)
        note("b", "m", Used(1, 1, 2, 3, 4))
        note("a", "m", Used(2, 0, 5, 5))
        note("a", "", Used(1, 1))
        asyncio.run(book.write())
    rows = store.query(tenant=None, limit=9)
    assert [(row.key_id, row.model, row.used) for row in rows] == [
        ("a", "", Used(3, 3)),
        ("a", "m", Used(6, 0, 15, 15)),
        ("b", "m", Used(3, 3, 6, 9, 12)),
    ]
    minute = int(NOW.timestamp()) // 60
    (windowed,) = store.query(
        tenant="t", key_id="b", from_minute=minute + 1, until_minute=minute + 2, limit=9
    )
    assert windowed.used == Used(1, 1, 2, 3, 4)
    assert [row.key_id for row in store.query(tenant=None, after=("a", "m"), limit=9)] == ["b"]
    assert asyncio.run(book.erase("actor-a", "other")) == 0
    assert asyncio.run(book.erase("actor-a", "t")) == 6
    store.forget_before(minute + 2)
    (last,) = store.query(tenant=None, limit=9)
    assert last.used.requests == 1


def test_usage_waits_while_the_database_is_away(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    book = UsageBook(UsageStore(engine), now=lambda: NOW)

    def away(_rows: object) -> None:
        raise UnavailableError("away")

    book.note(key_id="k", tenant="t", actor="a", model="m", used=Used(1))
    with monkeypatch.context() as broken:
        broken.setattr(book.store, "add", away)
        with pytest.raises(UnavailableError):
            asyncio.run(book.write())
    book.note(key_id="k", tenant="t", actor="a", model="m", used=Used(1))
    asyncio.run(book.write())
    (row,) = book.store.query(tenant=None, limit=9)
    assert row.used == Used(2)
