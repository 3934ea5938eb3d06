"""Sinks: every entry of the log, in order, to files and collectors, at least once.

A sink's cursor moves when its target has taken the entries before it, and not earlier; a sink that fails is tried again
for ever and skips nothing. The log waits for no sink.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from typing import Final

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge

from kala.audit.v1 import audit_pb2
from kala.errors import KalaError
from services.audit.export.formats import FORMATS
from services.audit.export.sink_cursors import SinkCursors
from services.audit.export.sink_settings import SinkSettings
from services.audit.export.sink_targets import SinkFailedError, Target, target_of
from services.audit.own_records import OwnRecords
from services.audit.reading.read_records import EXPORT
from services.audit.storage.store import LogReader
from services.common.telemetry import (
    LABEL_SINK,
    METRICS,
    SINK_DELIVERED,
    SINK_FAILURES,
    SINK_LAG,
    SINK_REJECTED,
)

# How soon a new entry goes out while a sink keeps up; each delivery also costs the database one small transaction.
POLL_SECONDS: Final = 1.0
FIRST_RETRY_SECONDS: Final = 1.0
LAST_RETRY_SECONDS: Final = 60.0
# How long a replica that does not feed a sink waits before it looks whether the one that does is gone.
STANDBY_SECONDS: Final = 10.0

log = structlog.get_logger()


class SinkMetrics:
    """What is counted of all sinks."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.lag = Gauge(SINK_LAG, METRICS[SINK_LAG], [LABEL_SINK], registry=registry)
        self.delivered = Counter(SINK_DELIVERED, METRICS[SINK_DELIVERED], [LABEL_SINK], registry=registry)
        self.failures = Counter(SINK_FAILURES, METRICS[SINK_FAILURES], [LABEL_SINK], registry=registry)
        self.rejected = Counter(SINK_REJECTED, METRICS[SINK_REJECTED], [LABEL_SINK], registry=registry)


class Sink:
    """Feeds one target. Every method blocks; one thread at a time."""

    def __init__(
        self,
        name: str,
        settings: SinkSettings,
        target: Target,
        *,
        reader: LogReader,
        cursors: SinkCursors,
        metrics: SinkMetrics,
        origin: str,
    ) -> None:
        self.name = name
        self.settings = settings
        self._target = target
        self._reader = reader
        self._cursors = cursors
        self._write = FORMATS[settings.format]
        self._origin = origin
        self._batch = settings.batch_entries
        self._lag = metrics.lag.labels(name)
        self._delivered = metrics.delivered.labels(name)
        self._failures = metrics.failures.labels(name)
        self._rejected = metrics.rejected.labels(name)

    def position(self) -> int:
        """The first index that is not confirmed; the cursor of a sink that is new is made."""
        start = self._reader.head().size if self.settings.start == "now" else 0
        return self._cursors.position(self.name, start=start)

    def step(self) -> bool:
        """Delivers the next entries and confirms them; true when more wait. Raises `SinkFailedError`."""
        size, position = self._reader.head().size, self.position()
        self._lag.set(max(0, size - position))
        if position >= size:
            return False
        entries = self._reader.query([], first=position, last=size, limit=self._batch, descending=False)
        # Entries that retention dropped are not there to be delivered.
        after = entries[-1].index + 1 if entries else size
        if entries:
            self._deliver(self._write(entries, self._origin), len(entries))
        if self._cursors.advance(self.name, position, after):
            self._lag.set(size - after)
        return after < size

    def close(self) -> None:
        """Closes the target."""
        self._target.close()

    def _deliver(self, lines: list[bytes], count: int) -> None:
        try:
            rejected = self._target.deliver(lines)
        except SinkFailedError as error:
            self._failures.inc()
            if error.is_too_large and self._batch > 1:
                self._batch //= 2
            raise
        self._delivered.inc(count)
        if rejected:
            self._rejected.inc(rejected)
            log.warning("a collector dropped entries for good", sink=self.name, entries=rejected)


@dataclass(frozen=True, slots=True)
class SinkPace:
    """How long a sink waits, in seconds."""

    poll: float = POLL_SECONDS
    first_retry: float = FIRST_RETRY_SECONDS
    last_retry: float = LAST_RETRY_SECONDS
    standby: float = STANDBY_SECONDS


@asynccontextmanager
async def feeding(
    sinks: Mapping[str, SinkSettings],
    *,
    open_reader: Callable[[], LogReader],
    cursors: SinkCursors,
    own: OwnRecords,
    registry: CollectorRegistry,
    origin: str,
    pace: SinkPace | None = None,
) -> AsyncIterator[None]:
    """Feeds the sinks for as long as the context is entered; each begins with an entry that says so."""
    metrics = SinkMetrics(registry)
    tasks: list[asyncio.Task[None]] = []
    try:
        for name, settings in sinks.items():
            sink = Sink(
                name,
                settings,
                target_of(settings),
                reader=open_reader(),
                cursors=cursors,
                metrics=metrics,
                origin=origin,
            )
            await _say_start(own, sink)
            tasks.append(
                asyncio.create_task(_feed(sink, cursors, pace or SinkPace()), name=f"audit-sink-{name}")
            )
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _say_start(own: OwnRecords, sink: Sink) -> None:
    record = audit_pb2.Record(type=EXPORT)
    record.action.rpc = "/audit/sink"
    record.result.status = "ok"
    position = await asyncio.to_thread(sink.position)
    await own.append(record, {"sink": sink.name, "format": sink.settings.format, "from_index": str(position)})


async def _feed(sink: Sink, cursors: SinkCursors, pace: SinkPace) -> None:
    """Feeds one sink for ever, in a thread of its own, while this replica holds its lease."""
    loop = asyncio.get_running_loop()
    stopping = threading.Event()
    thread = ThreadPoolExecutor(1, f"audit-sink-{sink.name}")
    wait = pace.first_retry
    try:
        while True:
            try:
                if not await loop.run_in_executor(thread, _step_leased, sink, cursors, stopping):
                    await asyncio.sleep(pace.standby)
                    continue
            except KalaError as error:
                log.warning("a sink waits", sink=sink.name, problem=error.message, retry_seconds=wait)
            except Exception:  # the edge of a task: a bug in one sink must not end it in silence
                log.exception("a sink failed", sink=sink.name)
            else:
                wait = pace.first_retry
                await asyncio.sleep(pace.poll)
                continue
            await asyncio.sleep(wait)
            wait = min(2 * wait, pace.last_retry)
    finally:
        stopping.set()
        with closing(sink):
            await asyncio.to_thread(thread.shutdown)


def _step_leased(sink: Sink, cursors: SinkCursors, stopping: threading.Event) -> bool:
    """Delivers all that waits, or until told to stop; false when another replica feeds this sink."""
    with cursors.lease(sink.name) as is_held:
        while is_held and not stopping.is_set() and sink.step():
            pass
        return is_held
