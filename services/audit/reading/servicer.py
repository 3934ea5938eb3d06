"""The reading RPCs. What reads entries is itself logged before it is answered; proofs and checkpoints are not."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from typing import Final, ParamSpec, TypeVar

from kala.audit.note import Signer
from kala.audit.v1 import audit_pb2, audit_pb2_grpc
from kala.errors import InvalidArgumentError, UnavailableError
from services.audit.own_records import OwnRecords
from services.audit.payloads import KeyEncryptionKey
from services.audit.publishing.tile_reads import PublishedReads
from services.audit.reading.content_reads import ContentReads, entry_message
from services.audit.reading.filters import conditions_of, facts_of, span_of, timeless_conditions
from services.audit.reading.log_reader import LogReading, Question
from services.audit.reading.pipelines import PipelineRuns, Pipelines
from services.audit.reading.query import Condition, page_size_of
from services.audit.reading.read_records import QUERY, is_for_someone, log_read, reader_of
from services.audit.reading.watching import Watches
from services.audit.storage.store import GapRow, LogReader
from services.common.peers import Context

DEFAULT_WINDOW_SECONDS: Final = 86_400
# No act lasts longer than max_act_seconds, 900 s.
DEFAULT_INTENT_AGE_US: Final = 900_000_000
_ENTRY_NAME: Final = re.compile(r"entries/(0|[1-9][0-9]{0,18})")
_RECEIPT_NAME: Final = re.compile(r"receipts/rcpt_([0-9a-f]{32})")

_P = ParamSpec("_P")
_T = TypeVar("_T")


class AuditReadServicer(audit_pb2_grpc.AuditReadServiceServicer):
    """Reads the log in a thread of its own, so that a long query delays no append."""

    def __init__(
        self,
        reading: LogReading,
        *,
        counts: LogReading,
        content: ContentReads,
        pipelines: Pipelines,
        own: OwnRecords,
        vkey: str,
        clock: Callable[[], int],
    ) -> None:
        """`clock` gives microseconds since 1970; `content` is closed with this.

        `counts` reads beside `reading`, in a thread of its own.
        """
        self._reading = reading
        self._counts = counts
        self._content = content
        self._pipelines = pipelines
        self._own = own
        self._vkey = vkey
        self._clock = clock
        self._published: PublishedReads | None = None
        self._thread = ThreadPoolExecutor(1, "audit-reader")
        # Counting over a long window takes seconds, which no receipt and no query should wait for.
        self._counting = ThreadPoolExecutor(1, "audit-counts")

    def show(self, published: PublishedReads) -> None:
        """Serve from now on what the log publishes, and its witnesses' cosignatures with each checkpoint."""
        self._published = published

    async def stop_watches(self) -> None:
        """Ends the watches; call it before the server drains, which else would wait for them."""
        await self._content.stop_watches()

    async def close(self) -> None:
        """Waits for the reads that run."""
        await self._content.close()
        for thread in (self._thread, self._counting):
            await asyncio.to_thread(thread.shutdown)

    async def GetEntry(
        self, request: audit_pb2.GetEntryRequest, context: Context
    ) -> audit_pb2.GetEntryResponse:
        """One entry with its proof; logged when it is read for somebody, not for a part's own proof."""
        index = int(_match("name", request.name, _ENTRY_NAME))
        found = await self._read(self._reading.entry, index)
        if is_for_someone(context):
            await self._log(context, "GetEntry", {"entry": str(index)})
        return audit_pb2.GetEntryResponse(entry=entry_message(found), proof=found.proof)

    async def ReadPayload(
        self, request: audit_pb2.ReadPayloadRequest, context: Context
    ) -> audit_pb2.ReadPayloadResponse:
        """One payload in plain, for a reason that is logged first."""
        return await self._content.read_payload(request, context)

    async def GetReceipt(
        self, request: audit_pb2.GetReceiptRequest, context: Context
    ) -> audit_pb2.GetReceiptResponse:
        """The receipt of a record, by the id that its answer carried."""
        del context
        key = bytes.fromhex(_match("name", request.name, _RECEIPT_NAME))
        found = await self._read(self._reading.by_key, key)
        receipt = audit_pb2.Receipt(
            name=request.name, index=found.entry.index, leaf_hash=found.entry.leaf_hash, proof=found.proof
        )
        return audit_pb2.GetReceiptResponse(receipt=receipt)

    async def GetCheckpoint(
        self, request: audit_pb2.GetCheckpointRequest, context: Context
    ) -> audit_pb2.GetCheckpointResponse:
        """The newest checkpoint, or the one of a given size."""
        del context
        size = request.size if request.HasField("size") else None
        found, note = await self._read(self._reading.checkpoint, size)
        if self._published is not None:
            note = await self._published.cosigned(found, note)
        return audit_pb2.GetCheckpointResponse(checkpoint=note, verifier_key=self._vkey)

    async def GetLogResource(
        self, request: audit_pb2.GetLogResourceRequest, context: Context
    ) -> audit_pb2.GetLogResourceResponse:
        """The published checkpoint, a tile or a bundle of entries; that entries are read is logged once an hour."""
        if self._published is None:
            raise UnavailableError("this log publishes nothing yet", reason="AUDIT_UNAVAILABLE")
        return await self._published.get(request.path, context)

    async def GetConsistencyProof(
        self, request: audit_pb2.GetConsistencyProofRequest, context: Context
    ) -> audit_pb2.GetConsistencyProofResponse:
        """The proof that the log only grew between two sizes."""
        del context
        new_size = request.new_size if request.HasField("new_size") else None
        hashes, size, note = await self._read(self._reading.consistency, request.old_size, new_size)
        return audit_pb2.GetConsistencyProofResponse(hashes=hashes, new_size=size, checkpoint=note)

    async def Query(self, request: audit_pb2.QueryRequest, context: Context) -> audit_pb2.QueryResponse:
        """One page of the entries that meet a filter; the first page of a query is logged."""
        question = _question(request, asked_by=repr(reader_of(context)))
        page = await self._read(self._reading.query, question)
        if not request.page_token:
            await self._log(context, "Query", facts_of(request.filter))
        return audit_pb2.QueryResponse(
            entries=[entry_message(found) for found in page.entries],
            next_page_token=page.next_token,
            snapshot_size=page.snapshot_size,
        )

    async def Summary(self, request: audit_pb2.SummaryRequest, context: Context) -> audit_pb2.SummaryResponse:
        """Counts over a window."""
        since, conditions = self._window(request)
        size, counts = await self._count(self._counts.summary, since, conditions)
        await self._log(context, "Summary", facts_of(request.filter))
        listed = {
            column: [audit_pb2.Count(label=label, count=count) for label, count in values]
            for column, values in counts.items()
        }
        return audit_pb2.SummaryResponse(
            tree_size=size,
            types=listed["type"],
            outcomes=listed["outcome"],
            laws=listed["law"],
            models=listed["model"],
        )

    async def PipelineStatus(
        self, request: audit_pb2.PipelineStatusRequest, context: Context
    ) -> audit_pb2.PipelineStatusResponse:
        """How each backend and tool fared over a window."""
        runs = await self._count(self._pipelines.since, *self._window(request))
        await self._log(context, "PipelineStatus", facts_of(request.filter))
        return audit_pb2.PipelineStatusResponse(pipelines=map(_pipeline, runs))

    async def ListGaps(
        self, request: audit_pb2.ListGapsRequest, context: Context
    ) -> audit_pb2.ListGapsResponse:
        """Intents without outcome and holes in producers' numbers; the first page is logged."""
        age = request.intent_age.ToMicroseconds() if request.HasField("intent_age") else DEFAULT_INTENT_AGE_US
        if age < 0:
            raise InvalidArgumentError("intent_age", "must not be negative")
        rows, token = await self._count(
            self._counts.gaps,
            timeless_conditions(request.filter),
            intents_before=self._clock() - age,
            page_size=page_size_of(request.page_size),
            page_token=request.page_token,
            asked_by=repr(reader_of(context)),
        )
        if not request.page_token:
            await self._log(context, "ListGaps", facts_of(request.filter))
        return audit_pb2.ListGapsResponse(gaps=map(_gap, rows), next_page_token=token)

    async def Export(
        self, request: audit_pb2.ExportRequest, context: Context
    ) -> AsyncIterator[audit_pb2.ExportResponse]:
        """Entries in a standard format, then the signed manifest."""
        async with aclosing(self._content.export(request, context)) as parts:
            async for part in parts:
                yield part

    async def WatchEntries(
        self, request: audit_pb2.WatchEntriesRequest, context: Context
    ) -> AsyncIterator[audit_pb2.WatchEntriesResponse]:
        """Entries as they are logged."""
        async with aclosing(self._content.watch_entries(request, context)) as entries:
            async for entry in entries:
                yield entry

    async def WatchCheckpoints(
        self, request: audit_pb2.WatchCheckpointsRequest, context: Context
    ) -> AsyncIterator[audit_pb2.WatchCheckpointsResponse]:
        """The newest checkpoint and each newer one."""
        del request
        async with aclosing(self._content.watch_checkpoints(context)) as checkpoints:
            async for checkpoint in checkpoints:
                yield checkpoint

    def _window(
        self, request: audit_pb2.SummaryRequest | audit_pb2.PipelineStatusRequest
    ) -> tuple[int, list[Condition]]:
        """Since when to count, in microseconds since 1970, and what."""
        seconds = request.window.ToSeconds() if request.HasField("window") else DEFAULT_WINDOW_SECONDS
        if seconds <= 0:
            raise InvalidArgumentError("window", "must be positive")
        return self._clock() - seconds * 1_000_000, timeless_conditions(request.filter)

    async def _log(self, context: Context, rpc: str, facts: Mapping[str, str]) -> None:
        """Logs a query; what was found may be answered when this returns, and not before."""
        await log_read(self._own, QUERY, rpc, reader_of(context), facts)

    async def _count(self, method: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        return await asyncio.get_running_loop().run_in_executor(
            self._counting, lambda: method(*args, **kwargs)
        )

    async def _read(self, method: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, lambda: method(*args, **kwargs))


def reads_of(
    open_reader: Callable[[], LogReader],
    *,
    pipelines: Pipelines,
    own: OwnRecords,
    signer: Signer,
    kek: KeyEncryptionKey,
    clock: Callable[[], int],
) -> AuditReadServicer:
    """The servicer of a log, with a reader for each of its threads; whoever opened the readers closes them."""
    reader = open_reader()
    content = ContentReads(
        payloads=LogReading(reader, kek),
        exports=reader,
        watches=Watches(open_reader()),
        own=own,
        signer=signer,
        clock=clock,
    )
    return AuditReadServicer(
        LogReading(open_reader(), page_key=kek.page_key),
        counts=LogReading(open_reader(), page_key=kek.page_key),
        content=content,
        pipelines=pipelines,
        own=own,
        vkey=str(signer.verifier),
        clock=clock,
    )


def _pipeline(runs: PipelineRuns) -> audit_pb2.Pipeline:
    status = "ok" if runs.is_last_ok else "error"
    pipeline = audit_pb2.Pipeline(
        name=runs.name, succeeded=runs.succeeded, failed=runs.failed, last_status=status
    )
    pipeline.last_run_at.FromMicroseconds(runs.last_run_at)
    return pipeline


def _gap(row: GapRow) -> audit_pb2.Gap:
    gap = audit_pb2.Gap(producer=audit_pb2.Producer(id=row.producer, boot=row.boot))
    gap.noticed_at.FromMicroseconds(row.recorded_at)
    if row.is_intent:
        gap.kind = audit_pb2.GAP_KIND_UNMATCHED_INTENT
        gap.producer.sequence = row.sequence
        gap.entry = f"entries/{row.index}"
    else:
        gap.kind = audit_pb2.GAP_KIND_SEQUENCE_HOLE
        gap.producer.sequence = row.before
        gap.first_missing, gap.last_missing = row.before + 1, row.sequence - 1
    return gap


def _question(request: audit_pb2.QueryRequest, *, asked_by: str) -> Question:
    span = span_of(request.filter)
    return Question(
        conditions_of(request.filter),
        span.recorded_from,
        span.recorded_until,
        page_size_of(request.page_size),
        request.page_token,
        request.descending,
        asked_by,
    )


def _match(field: str, text: str, pattern: re.Pattern[str]) -> str:
    found = pattern.fullmatch(text)
    if found is None:
        raise InvalidArgumentError(field, f"must match {pattern.pattern}")
    return found[1]
