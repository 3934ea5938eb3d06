"""Work under a lease ends as soon as the lease is lost, and not before."""

from __future__ import annotations

import asyncio

import pytest

from gateway.lease_keeping import while_held
from gateway.leases import LeaseLostError


async def test_a_lost_lease_ends_the_work_at_once() -> None:
    has_ended = asyncio.Event()

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            has_ended.set()

    def renew() -> None:
        raise LeaseLostError

    with pytest.raises(LeaseLostError):
        await while_held(work(), renew, every_seconds=0)
    assert has_ended.is_set()


async def test_a_lease_is_renewed_until_the_work_is_done() -> None:
    renewed = 0
    is_enough = asyncio.Event()
    loop = asyncio.get_running_loop()

    def renew() -> None:
        nonlocal renewed
        renewed += 1
        if renewed == 3:
            loop.call_soon_threadsafe(is_enough.set)

    async def work() -> str:
        await is_enough.wait()
        return "done"

    assert await while_held(work(), renew, every_seconds=0) == "done"
    assert renewed >= 3


async def test_what_the_work_raises_is_raised() -> None:
    async def work() -> None:
        raise ValueError("wrong")

    with pytest.raises(ValueError, match="wrong"):
        await while_held(work(), lambda: None, every_seconds=60)
