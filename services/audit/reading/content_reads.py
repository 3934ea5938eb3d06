"""What leaves the log in bulk or in plain: exports, watches and payloads. Each is logged before its first byte leaves."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

import orjson

from kala.audit.note import Signer
from kala.audit.v1 import audit_pb2
from kala.errors import InvalidArgumentError, ResourceExhaustedError
from services.audit.export.exporting import ExportPlan, ExportRun
from services.audit.own_records import OwnRecords
from services.audit.reading.filters import conditions_of, described, facts_of, span_of, timeless_conditions
from services.audit.reading.log_reader import FoundEntry, LogReading
from services.audit.reading.read_records import EXPORT, PAYLOAD_READ, WATCH, Reader, log_read, reader_of
from services.audit.reading.watching import Watched, Watches
from services.audit.storage.store import LogReader
from services.common.peers import Context

# Each takes a share of one thread and of the caller's line; more would only slow each other.
MAX_EXPORTS: Final = 4
RETRY_AFTER_SECONDS: Final = 5.0
MIN_REASON_CHARS: Final = 8
MAX_REASON_CHARS: Final = 1_024
_PAYLOAD_NAME: Final = re.compile(r"entries/(0|[1-9][0-9]{0,18})/payloads/([a-z0-9_.]{1,64})")
_FORMAT_NAMES: Final = {
    audit_pb2.EXPORT_FORMAT_UNSPECIFIED: "jsonl",
    audit_pb2.EXPORT_FORMAT_JSONL: "jsonl",
    audit_pb2.EXPORT_FORMAT_OCSF: "ocsf",
    audit_pb2.EXPORT_FORMAT_CEF: "cef",
    audit_pb2.EXPORT_FORMAT_OTLP: "otlp",
}

_T = TypeVar("_T")


class ContentReads:
    """Exports and payloads are read in one thread of their own, watches in another, so that no query waits for them."""

    def __init__(
        self,
        *,
        payloads: LogReading,
        exports: LogReader,
        watches: Watches,
        own: OwnRecords,
        signer: Signer,
        clock: Callable[[], int],
        max_exports: int = MAX_EXPORTS,
    ) -> None:
        """`payloads` and `exports` share a thread and may share a reader; `clock` gives microseconds since 1970."""
        self._payloads = payloads
        self._exports = exports
        self._watches = watches
        self._own = own
        self._signer = signer
        self._clock = clock
        self._max_exports = max_exports
        self._running = Counter[str]()
        self._thread = ThreadPoolExecutor(1, "audit-content")

    async def stop_watches(self) -> None:
        """Ends the watches, which else would last as long as a drain."""
        await self._watches.stop()

    async def close(self) -> None:
        """Ends the watches and waits for the read that runs."""
        await self._watches.close()
        await asyncio.to_thread(self._thread.shutdown)

    async def read_payload(
        self, request: audit_pb2.ReadPayloadRequest, context: Context
    ) -> audit_pb2.ReadPayloadResponse:
        """One payload in plain, for a reason that is logged first."""
        named = _PAYLOAD_NAME.fullmatch(request.name)
        if named is None:
            raise InvalidArgumentError("name", "must be entries/<index>/payloads/<kind>")
        reason = request.reason.strip()
        if not MIN_REASON_CHARS <= len(reason) <= MAX_REASON_CHARS:
            raise InvalidArgumentError(
                "reason", f"must be {MIN_REASON_CHARS} to {MAX_REASON_CHARS} characters"
            )
        index, kind = int(named[1]), named[2]
        await self._read(lambda: self._payloads.require_payload(index, kind))
        facts = {"entry": str(index), "payload": kind, "reason": reason}
        await log_read(self._own, PAYLOAD_READ, "ReadPayload", reader_of(context), facts)
        # Only now: what was erased meanwhile is not given, and what is given is logged.
        salt, data = await self._read(lambda: self._payloads.payload(index, kind))
        return audit_pb2.ReadPayloadResponse(data=data, salt=salt)

    async def export(
        self, request: audit_pb2.ExportRequest, context: Context
    ) -> AsyncGenerator[audit_pb2.ExportResponse, None]:
        """Whole lines, then the manifest."""
        plan = plan_of(request)
        reader = reader_of(context)
        mine = self._running[reader.tenant]
        # Half is left to others: whoever asks and does not read on keeps a place as long as the line stands.
        if self._running.total() >= self._max_exports or (reader.actor and 2 * mine >= self._max_exports):
            raise ResourceExhaustedError(
                f"{self._running.total()} exports run already, {mine} of them this tenant's",
                reason="AUDIT_TOO_MANY_EXPORTS",
                retry_after_seconds=RETRY_AFTER_SECONDS,
            )
        self._running[reader.tenant] += 1
        try:
            run = await self._read(lambda: self._begin(plan))
            facts = {"format": plan.format, "tree_size": str(run.size), **facts_of(request.filter)}
            receipt = await log_read(self._own, EXPORT, "Export", reader, facts)
            while (chunk := await self._read(run.next_chunk)) is not None:
                if chunk:
                    yield audit_pb2.ExportResponse(data=chunk)
            yield audit_pb2.ExportResponse(manifest=await self._read(lambda: run.manifest(receipt)))
        finally:
            self._running[reader.tenant] -= 1
            if not self._running[reader.tenant]:
                del self._running[reader.tenant]

    async def watch_entries(
        self, request: audit_pb2.WatchEntriesRequest, context: Context
    ) -> AsyncGenerator[audit_pb2.WatchEntriesResponse, None]:
        """Entries as they are logged; the watcher's own queries and watches are not shown."""
        conditions = timeless_conditions(request.filter)
        reader = reader_of(context)
        with self._watches.place(Watched.ENTRIES):
            size = await self._watches.size()
            first = request.from_index if request.HasField("from_index") else size
            if first > size:
                raise InvalidArgumentError("from_index", f"must be at most {size}, the next index")
            facts = {"from_index": str(first), **facts_of(request.filter)}
            await log_read(self._own, WATCH, "WatchEntries", reader, facts)
            # Tells the caller that the watch stands, however long the first entry takes.
            await context.send_initial_metadata(())
            shown = _shown_to(reader)
            async for found in self._watches.entries(conditions, first, is_shown=shown):
                yield audit_pb2.WatchEntriesResponse(entry=entry_message(found))

    async def watch_checkpoints(
        self, context: Context
    ) -> AsyncGenerator[audit_pb2.WatchCheckpointsResponse, None]:
        """The newest checkpoint and each newer one; they are public, so nothing is logged."""
        with self._watches.place(Watched.CHECKPOINTS):
            await context.send_initial_metadata(())
            async for note in self._watches.checkpoints():
                yield audit_pb2.WatchCheckpointsResponse(checkpoint=note)

    def _begin(self, plan: ExportPlan) -> ExportRun:
        return ExportRun(
            self._exports,
            plan,
            origin=self._signer.verifier.name,
            sign=self._signer.sign,
            created_at=self._clock(),
        )

    async def _read(self, method: Callable[[], _T]) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, method)


def plan_of(request: audit_pb2.ExportRequest) -> ExportPlan:
    """What a request wants exported; `InvalidArgumentError` names a wrong field."""
    name = _FORMAT_NAMES.get(request.format)
    if name is None:
        raise InvalidArgumentError("format", "is none that this release writes")
    wanted = request.filter
    return ExportPlan(conditions_of(wanted), span_of(wanted), name, described(wanted))


def entry_message(found: FoundEntry) -> audit_pb2.Entry:
    """An entry as the wire spells it."""
    entry = found.entry
    return audit_pb2.Entry(
        name=f"entries/{entry.index}",
        index=entry.index,
        leaf=entry.leaf,
        leaf_hash=entry.leaf_hash,
        payload_kinds=found.payload_kinds,
    )


def _shown_to(reader: Reader) -> Callable[[FoundEntry], bool]:
    def is_shown(found: FoundEntry) -> bool:
        # Parsing is for the log's own entries alone.
        leaf = found.entry.leaf
        return b'"type":"audit.' not in leaf or not reader.caused(orjson.loads(leaf))

    return is_shown
