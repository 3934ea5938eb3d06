"""Counts and places, in memory and on a real Redis: exact under a race, and closed when they cannot be asked."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from redis.asyncio import Redis

from gateway.limits.counters import (
    LEASE_SECONDS,
    MEMORY,
    Counters,
    RedisCounters,
    checked_storage,
    open_counters,
)
from kala.errors import InvalidArgumentError, UnavailableError
from tests.redis_server import RedisServer


@pytest_asyncio.fixture(params=["memory", "redis"])
async def counters(request: pytest.FixtureRequest) -> AsyncIterator[Counters]:
    storage = MEMORY if request.param == "memory" else request.getfixturevalue("redis_url")
    async with open_counters(storage) as opened:
        yield opened


@pytest.fixture
def name() -> str:
    return secrets.token_hex(8)


async def test_racing_additions_are_all_counted_and_each_sees_another_sum(
    counters: Counters, name: str
) -> None:
    sums = await asyncio.gather(*(counters.add(name, 1, seconds=60) for _ in range(200)))
    assert sorted(sums) == list(range(1, 201))


async def test_what_is_given_back_is_free_again(counters: Counters, name: str) -> None:
    await counters.add(name, 10, seconds=60)
    assert await counters.add(name, -7, seconds=60) == 3
    assert await counters.add(name, 1, seconds=60) == 4


async def test_of_two_hundred_racing_for_ten_places_ten_get_in(counters: Counters, name: str) -> None:
    holders = [str(number) for number in range(200)]
    entered = await asyncio.gather(*(counters.enter(name, holder, places=10) for holder in holders))
    assert sum(entered) == 10
    await counters.leave(name, holders[entered.index(True)])
    assert await counters.enter(name, "late", places=10)
    assert not await counters.enter(name, "later", places=10)


async def test_a_place_whose_gateway_died_is_free_when_its_lease_ends(redis_url: str, name: str) -> None:
    client = Redis.from_url(redis_url)
    places = f"kala:places:{name}"
    async with open_counters(redis_url) as dying, open_counters(redis_url) as living:
        assert await dying.enter(name, "dead", places=1)
        now = (await client.time())[0]
        assert now < int(await client.zscore(places, "dead") or 0) <= now + LEASE_SECONDS
        assert not await living.enter(name, "next", places=1)
        await client.zadd(places, {"dead": now - 1})  # as time does
        assert await living.enter(name, "next", places=1)
    await client.aclose()


async def test_a_living_gateway_keeps_its_places(redis_url: str, name: str) -> None:
    client = Redis.from_url(redis_url)
    places = f"kala:places:{name}"
    async with open_counters(redis_url) as counters:
        assert isinstance(counters, RedisCounters)
        assert await counters.enter(name, "running", places=1)
        now = (await client.time())[0]
        await client.zadd(places, {"running": now + 1})
        await counters.renew()
        assert int(await client.zscore(places, "running") or 0) >= now + LEASE_SECONDS
        await counters.leave(name, "running")
        await counters.renew()
        assert await client.zcard(places) == 0
    await client.aclose()


async def test_a_redis_that_is_away_lets_nobody_in_and_is_named_without_its_password(name: str) -> None:
    async with open_counters("redis://:hunter2@127.0.0.1:1/0") as counters:
        for attempt in (counters.add(name, 1, seconds=60), counters.enter(name, "a", places=1)):
            with pytest.raises(UnavailableError, match=r"redis at 127\.0\.0\.1:1") as caught:
                await attempt
            assert caught.value.reason == "LIMITS_UNAVAILABLE"
            assert "KALA_GATEWAY_LIMITS_STORAGE" in caught.value.message
            assert "hunter2" not in caught.value.message
        await counters.leave(name, "a")


async def test_a_redis_that_comes_back_serves_again(own_redis: RedisServer, name: str) -> None:
    async with open_counters(own_redis.url) as counters:
        assert await counters.add(name, 1, seconds=60) == 1
        own_redis.stop()
        with pytest.raises(UnavailableError):
            await counters.add(name, 1, seconds=60)
        own_redis.start()
        assert await counters.add(name, 1, seconds=60) == 1


@pytest.mark.parametrize("storage", ["", "memcached://x", "redis", "http://:hunter2@x"])
def test_another_storage_is_refused_without_its_text(storage: str) -> None:
    with pytest.raises(InvalidArgumentError, match="redis://") as caught:
        checked_storage(storage)
    assert "hunter2" not in caught.value.message
