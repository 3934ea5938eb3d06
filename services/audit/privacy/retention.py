"""Retention with two clocks: content goes after weeks, whole entries after half a year at the earliest.

What is about to expire is an entry of the log before it does. Work goes in short steps with pauses, so that appends and
reads do not wait for it; subjects under a legal hold keep everything, and their content is looked at again when the
hold ends. Leaves that are dropped stay provable: their hashes are in the tree and their receipts with whoever has them.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

import structlog

from kala.audit.v1 import audit_pb2
from kala.errors import FailedPreconditionError, KalaError
from services.audit.once import OnceRecords, key_of
from services.audit.privacy.retention_store import RetentionStore
from services.audit.storage.postgres_schema import PARTITION_WIDTH
from services.common.peers import AUDIT

DAY_US: Final = 86_400_000_000
# Between two steps everybody else has the database.
STEP_PAUSE_SECONDS: Final = 0.02
# Expiry is a matter of days: an hour later is no harm, and a run of an idle log costs one look.
POLL_SECONDS: Final = 3_600.0
RETRY_SECONDS: Final = 60.0


log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Clocks:
    """How long content and entries are kept, in days; entries for ever when `entry_days` is 0."""

    payload_days: int
    entry_days: int


class Retention:
    """Runs both clocks over one log."""

    def __init__(
        self,
        store: RetentionStore,
        once: OnceRecords,
        clocks: Clocks,
        *,
        clock: Callable[[], int],
        step_pause_seconds: float = STEP_PAUSE_SECONDS,
    ) -> None:
        """`clock` gives microseconds since 1970."""
        self._store = store
        self._once = once
        self._clocks = clocks
        self._clock = clock
        self._step_pause_seconds = step_pause_seconds

    async def run(self) -> int:
        """Expires what is due and returns how many payloads went; raises `KalaError` and goes on at the next run."""
        expired = await self._expire_content()
        if self._clocks.entry_days and self._store.can_drop_entries:
            await self._drop_entries()
        return expired

    async def _expire_content(self) -> int:
        days = self._clocks.payload_days
        until = await asyncio.to_thread(self._store.index_at, self._clock() - days * DAY_US)
        first = await asyncio.to_thread(self._store.expired_until)
        gone = 0
        while first < until:
            # Another run, killed or of another replica, may have begun here: then only as far as it said.
            upto = await self._announce("retention.expired", first, until, days)
            while first < upto:
                before = first
                first, emptied = await asyncio.to_thread(self._store.expire_step, before, upto)
                gone += emptied
                if first < before:
                    break  # a hold ended: that what it kept goes is said first
                await asyncio.sleep(self._step_pause_seconds)
        if gone:
            log.info("content expired", payloads=gone, entries_until=until)
        return gone

    async def _drop_entries(self) -> None:
        days = self._clocks.entry_days
        until = await asyncio.to_thread(self._store.index_at, self._clock() - days * DAY_US)
        first = await asyncio.to_thread(self._store.first_entry)
        if until - first < PARTITION_WIDTH:
            return
        upto = until - until % PARTITION_WIDTH
        upto = await self._announce("retention.dropped", first, upto, days)
        try:
            await asyncio.to_thread(self._store.drop_entries, upto)
        except FailedPreconditionError as error:
            # A hold, or another log in the same partitions: what must be kept is kept, and this is no fault.
            log.warning("entries are kept beyond their time", entries_until=upto, problem=error.message)
        else:
            log.info("entries dropped", entries_until=upto)

    async def _announce(self, kind: str, first: int, until: int, days: int) -> int:
        """Logs that the entries of [first, until) lose content or go; the end that the log then says."""
        record = audit_pb2.Record(type=kind)
        record.action.rpc = f"/{AUDIT}/retention"
        record.result.status = "ok"
        facts = {"entries.from": str(first), "entries.until": str(until), "days": str(days)}
        entry = await self._once.append(record, facts, key_of(kind, b"%d" % first))
        return min(until, int(dict(entry.leaf["attributes"])["entries.until"]))


@asynccontextmanager
async def retaining(
    retention: Retention, *, poll_seconds: float = POLL_SECONDS, retry_seconds: float = RETRY_SECONDS
) -> AsyncIterator[None]:
    """Runs retention beside the service until the context is left."""
    running = _run_for_ever(retention, poll_seconds, retry_seconds)
    task = asyncio.create_task(running, name="audit-retention")
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _run_for_ever(retention: Retention, poll_seconds: float, retry_seconds: float) -> None:
    while True:
        try:
            await retention.run()
            seconds = poll_seconds
        except KalaError as error:
            log.warning("retention waits", problem=error.message)
            seconds = retry_seconds
        except Exception:  # the edge of the task: a bug here must not stay silent
            log.exception("retention failed")
            seconds = poll_seconds
        await asyncio.sleep(seconds)
