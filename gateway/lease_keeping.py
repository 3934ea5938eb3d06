"""Work under a lease: it is renewed while the work goes on, and the work ends at once when it is lost."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import TypeVar

T = TypeVar("T")


async def while_held(
    work: Coroutine[object, object, T], renew: Callable[[], object], *, every_seconds: float
) -> T:
    """Do work and call `renew`, which blocks, now and then; what `renew` raises ends the work and is raised."""
    doing = asyncio.ensure_future(work)
    keeper = asyncio.ensure_future(_keep(renew, every_seconds))
    try:
        await asyncio.wait({doing, keeper}, return_when=asyncio.FIRST_COMPLETED)
        if not doing.done():
            await keeper  # raises why it ended
        return await doing
    finally:
        doing.cancel()
        keeper.cancel()
        await asyncio.gather(doing, keeper, return_exceptions=True)


async def _keep(renew: Callable[[], object], every_seconds: float) -> None:
    while True:
        await asyncio.sleep(every_seconds)
        await asyncio.to_thread(renew)
