"""Follows the log and tells of what is missing in it: intents without outcome, and holes in producers' numbers.

It reads every entry once, a bounded number at a time, so that its cost follows the log's growth and not its size.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Final

import structlog
from prometheus_client import CollectorRegistry, Gauge
from sqlalchemy import Engine, select
from sqlalchemy.exc import SQLAlchemyError

from services.audit.reading.gap_finder import GapFinder, Mark
from services.audit.storage.schema import ENTRY
from services.common.telemetry import AUDIT_GAPS, LABEL_GAP, METRICS

# No act lasts longer than max_act_seconds, 900 s; ListGaps counts from the same age.
INTENT_AGE_US: Final = 900_000_000
# Some 20 ms of reading; between two of them others have the machine.
STEP_ENTRIES: Final = 2_000
STEP_PAUSE_SECONDS: Final = 0.2
POLL_SECONDS: Final = 15.0
# Gaps that one warning names.
NAMED: Final = 5
UNMATCHED_INTENT: Final = "unmatched_intent"
SEQUENCE_HOLE: Final = "sequence_hole"

log = structlog.get_logger()

_COLUMNS: Final = (
    ENTRY.c.idx,
    ENTRY.c.type,
    ENTRY.c.idem,
    ENTRY.c.intent,
    ENTRY.c.producer,
    ENTRY.c.boot,
    ENTRY.c.sequence,
    ENTRY.c.recorded_at,
    ENTRY.c.occurred_at,
)


class Reconciler:
    """Counts the gaps of one log. Every method blocks; one thread at a time."""

    def __init__(
        self, engine: Engine, log_id: int, *, registry: CollectorRegistry, clock: Callable[[], int]
    ) -> None:
        """`clock` gives microseconds since 1970."""
        self._engine = engine
        self._log_id = log_id
        self._clock = clock
        self._finder = GapFinder()
        self._told = {UNMATCHED_INTENT: 0, SEQUENCE_HOLE: 0}
        gauge = Gauge(AUDIT_GAPS, METRICS[AUDIT_GAPS], [LABEL_GAP], registry=registry)
        self._gauges = {kind: gauge.labels(kind) for kind in self._told}

    def step(self) -> bool:
        """Reads the next entries; true when there may be more. At the end of the log it tells what is missing."""
        query = (
            select(*_COLUMNS)
            .where(ENTRY.c.log_id == self._log_id, ENTRY.c.idx >= self._finder.next_index)
            .order_by(ENTRY.c.idx)
            .limit(STEP_ENTRIES)
        )
        with self._engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            rows = connection.execute(query).all()
        for row in rows:
            # The earlier time: after a jump of the log's clock into the future no intent would become old for years.
            self._finder.see(Mark(*row[:7], min(row[7:])))
        if len(rows) == STEP_ENTRIES:
            return True
        self._tell()
        return False

    def _tell(self) -> None:
        unmatched, indexes = self._finder.unmatched(self._clock() - INTENT_AGE_US)
        count, holes = self._finder.holes()
        found = {UNMATCHED_INTENT: unmatched, SEQUENCE_HOLE: count}
        names = {
            UNMATCHED_INTENT: [f"entries/{index}" for index in indexes[-NAMED:]],
            SEQUENCE_HOLE: [
                f"{hole.producer} boot {hole.boot.hex()}: {hole.first} to {hole.last}"
                for hole in holes[-NAMED:]
            ],
        }
        for kind, number in found.items():
            self._gauges[kind].set(number)
            if number > self._told[kind]:
                log.warning("the log has gaps", kind=kind, count=number, newest=names[kind])
            self._told[kind] = number


@asynccontextmanager
async def reconciling(
    reconciler: Reconciler, *, pause_seconds: float = STEP_PAUSE_SECONDS, poll_seconds: float = POLL_SECONDS
) -> AsyncIterator[None]:
    """Lets the reconciler follow the log for as long as the context is entered."""
    thread = ThreadPoolExecutor(1, "audit-reconciler")
    task = asyncio.create_task(
        _follow(reconciler, thread, pause_seconds, poll_seconds), name="audit-reconciler"
    )
    task.add_done_callback(_report_end)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        # The step that runs must not outlive the engine it reads from.
        await asyncio.to_thread(thread.shutdown)


async def _follow(
    reconciler: Reconciler, thread: ThreadPoolExecutor, pause_seconds: float, poll_seconds: float
) -> None:
    loop = asyncio.get_running_loop()
    while True:
        try:
            has_more = await loop.run_in_executor(thread, reconciler.step)
        except SQLAlchemyError as error:
            log.warning("the log's gaps cannot be counted now", error=type(error).__name__)
            has_more = False
        await asyncio.sleep(pause_seconds if has_more else poll_seconds)


def _report_end(task: asyncio.Task[None]) -> None:
    """Says why the task ended by itself, which is a bug; the log itself goes on."""
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("the reconciler broke", exc_info=error)
