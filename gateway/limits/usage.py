"""What each key used of each model, by the minute, in SQL.  Gathered in memory and written every second."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import structlog
from sqlalchemy import Engine, Row, delete, func, select

from gateway.database import translated
from gateway.limits.budgets import UPSERTS
from gateway.limits.tables import MODEL_CHARS, USAGE
from kala.errors import UnavailableError

WRITE_EVERY_SECONDS: Final = 1.0
"""A gateway that is killed forgets this much at most; the log has every act, and budgets are written at once."""

MAX_WAITING: Final = 100_000
"""Rows that wait for a database that is away; the oldest minutes of more are dropped, with a line in the log."""

KEEP_DAYS: Final = 400
"""A year can be compared with the one before it."""

_DAY_MINUTES: Final = 24 * 60


@dataclass(frozen=True, slots=True)
class Used:
    """What requests used."""

    requests: int = 0
    not_allowed: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost_micros: int | None = None

    def __add__(self, other: Used) -> Used:
        """Sum two."""
        costs = [cost for cost in (self.cost_micros, other.cost_micros) if cost is not None]
        return Used(
            self.requests + other.requests,
            self.not_allowed + other.not_allowed,
            self.input_tokens + other.input_tokens,
            self.output_tokens + other.output_tokens,
            sum(costs) if costs else None,
        )


@dataclass(frozen=True, slots=True, order=True)
class Holder:
    """Whose use it is."""

    key_id: str
    tenant: str
    actor: str
    model: str
    minute: int


@dataclass(frozen=True, slots=True)
class UsageRow:
    """One key's use of one model in a window."""

    key_id: str
    model: str
    used: Used


class UsageStore:
    """The table; blocking."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._insert: Any = UPSERTS[engine.dialect.name]  # Any: each dialect has its own function

    def add(self, rows: Sequence[tuple[Holder, Used]]) -> None:
        """Add to what stands there already, all of it or nothing."""
        names = ("requests", "not_allowed", "input_tokens", "output_tokens")
        with translated(), self._engine.begin() as connection:
            # In one order everywhere: two gateways must not wait for each other.
            for holder, used in sorted(rows, key=lambda row: row[0]):
                statement = self._insert(USAGE).values(
                    key_id=holder.key_id,
                    model=holder.model,
                    minute=holder.minute,
                    tenant=holder.tenant,
                    actor=holder.actor,
                    cost_micros=used.cost_micros,
                    **{name: getattr(used, name) for name in names},
                )
                sums = {name: USAGE.c[name] + getattr(used, name) for name in names}
                if used.cost_micros is not None:
                    sums["cost_micros"] = func.coalesce(USAGE.c.cost_micros, 0) + used.cost_micros
                connection.execute(
                    statement.on_conflict_do_update(index_elements=["key_id", "model", "minute"], set_=sums)
                )

    def query(
        self,
        *,
        tenant: str | None,
        key_id: str = "",
        from_minute: int = 0,
        until_minute: int | None = None,
        after: tuple[str, str] = ("", ""),
        limit: int,
    ) -> list[UsageRow]:
        """Sum a window by key and model, in their order, behind `after`."""
        sums = [func.sum(USAGE.c[name]) for name in (
            "requests", "not_allowed", "input_tokens", "output_tokens", "cost_micros")]  # fmt: skip
        query = (
            select(USAGE.c.key_id, USAGE.c.model, *sums)
            .where(USAGE.c.minute >= from_minute)
            .where((USAGE.c.key_id > after[0]) | ((USAGE.c.key_id == after[0]) & (USAGE.c.model > after[1])))
            .group_by(USAGE.c.key_id, USAGE.c.model)
            .order_by(USAGE.c.key_id, USAGE.c.model)
            .limit(limit)
        )
        if until_minute is not None:
            query = query.where(USAGE.c.minute < until_minute)
        if tenant is not None:
            query = query.where(USAGE.c.tenant == tenant)
        if key_id:
            query = query.where(USAGE.c.key_id == key_id)
        with translated(), self._engine.connect() as connection:
            return [_row_of(row) for row in connection.execute(query)]

    def erase(self, actor: str, tenant: str) -> int:
        """Delete what a key used, by its pseudonym; gives how many rows."""
        with translated(), self._engine.begin() as connection:
            done = connection.execute(delete(USAGE).where(USAGE.c.actor == actor, USAGE.c.tenant == tenant))
            return done.rowcount

    def forget_before(self, minute: int) -> None:
        """Delete what is older."""
        with translated(), self._engine.begin() as connection:
            connection.execute(delete(USAGE).where(USAGE.c.minute < minute))


def _row_of(row: Row[Any]) -> UsageRow:  # Any: SQLAlchemy types rows by their query
    key_id, model, requests, not_allowed, input_tokens, output_tokens, cost = tuple(row)
    used = Used(
        int(requests),
        int(not_allowed),
        int(input_tokens),
        int(output_tokens),
        None if cost is None else int(cost),
    )
    return UsageRow(key_id, model, used)


class UsageBook:
    """Gathers what is used and writes it; one per process."""

    def __init__(self, store: UsageStore, *, now: Callable[[], datetime]) -> None:
        self.store = store
        self._now = now
        self._waiting: dict[Holder, Used] = {}
        self._writing = asyncio.Lock()
        self._cleaned_minute = 0

    def note(self, *, key_id: str, tenant: str, actor: str, model: str, used: Used) -> None:
        """Add one request's use."""
        holder = Holder(key_id, tenant, actor, model[:MODEL_CHARS], self.minute())
        if holder not in self._waiting and len(self._waiting) >= MAX_WAITING:
            structlog.get_logger().error("usage is lost: the database is away for too long")
            return
        self._waiting[holder] = self._waiting.get(holder, Used()) + used

    async def write(self) -> None:
        """Write what waits; UnavailableError keeps it waiting."""
        async with self._writing:
            if not (batch := self._waiting):
                return
            self._waiting = {}
            try:
                await asyncio.to_thread(self.store.add, list(batch.items()))
            except UnavailableError:
                for holder, used in batch.items():
                    self._waiting[holder] = self._waiting.get(holder, Used()) + used
                raise

    async def erase(self, actor: str, tenant: str) -> int:
        """Delete what a key used, written or not."""
        await self.write()
        return await asyncio.to_thread(self.store.erase, actor, tenant)

    async def keep_writing(self) -> None:
        """Write every second, and forget what is too old once a day, until cancelled."""
        while True:
            await asyncio.sleep(WRITE_EVERY_SECONDS)
            try:
                await self.write()
                if self.minute() - self._cleaned_minute >= _DAY_MINUTES:
                    self._cleaned_minute = self.minute()
                    oldest = self._cleaned_minute - KEEP_DAYS * _DAY_MINUTES
                    await asyncio.to_thread(self.store.forget_before, oldest)
            except UnavailableError as error:
                structlog.get_logger().warning("usage waits", reason=error.message)

    def minute(self) -> int:
        """Give the minute that is now, since 1970."""
        return int(self._now().timestamp()) // 60
