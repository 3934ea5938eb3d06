"""Opens what keeps keys within their limits, and closes it after everything was settled."""

from __future__ import annotations

from contextlib import AsyncExitStack
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import structlog

from gateway.background import Background
from gateway.limits.budgets import Budgets
from gateway.limits.counters import open_counters
from gateway.limits.prices import Prices
from gateway.limits.reservation import Limiter
from gateway.limits.usage import UsageBook, UsageStore
from kala.errors import UnavailableError

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from gateway.edge_config import EdgeSettings


async def open_limiter(
    settings: EdgeSettings, engine: Engine, background: Background, stack: AsyncExitStack
) -> Limiter:
    """Open the limiter of this process; `background` must be drained before `stack` closes it."""
    book = UsageBook(UsageStore(engine), now=_now)

    async def write_rest() -> None:
        try:
            await book.write()
        except UnavailableError as error:
            structlog.get_logger().error("usage of the last second is lost", reason=error.message)

    stack.push_async_callback(write_rest)
    counters = await stack.enter_async_context(open_counters(settings.limits_storage))
    stack.push_async_callback(background.drain)
    stack.callback(background.keep(book.keep_writing()).cancel)
    return Limiter(
        counters=counters,
        budgets=Budgets(engine),
        book=book,
        prices=Prices(settings.prices),
        background=background,
        default_output_tokens=settings.reserve_output_tokens,
        now=_now,
    )


def _now() -> datetime:
    return datetime.now(UTC)
