# ruff: noqa: N802 - gRPC names methods in CamelCase
"""The reading RPCs that this release serves; the base class answers UNIMPLEMENTED for the others."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, ParamSpec, TypeVar

from google.protobuf.timestamp_pb2 import Timestamp

from kala.audit.v1 import audit_pb2, audit_pb2_grpc
from kala.errors import InvalidArgumentError
from services.audit.pipelines import PipelineRuns, Pipelines
from services.audit.query import Condition, page_size_of
from services.audit.reading import FoundEntry, LogReading, Question
from services.audit.records import OUTCOME_NAMES
from services.audit.store import GapRow
from services.common.peers import Context

MAX_TYPES: Final = 32
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
        self, reading: LogReading, *, pipelines: Pipelines, vkey: str, clock: Callable[[], int]
    ) -> None:
        """`clock` gives microseconds since 1970."""
        self._reading = reading
        self._pipelines = pipelines
        self._vkey = vkey
        self._clock = clock
        self._thread = ThreadPoolExecutor(1, "audit-reader")

    async def close(self) -> None:
        """Waits for the read that runs."""
        await asyncio.to_thread(self._thread.shutdown)

    async def GetEntry(
        self, request: audit_pb2.GetEntryRequest, context: Context
    ) -> audit_pb2.GetEntryResponse:
        """One entry with its proof."""
        del context
        found = await self._read(self._reading.entry, int(_match("name", request.name, _ENTRY_NAME)))
        return audit_pb2.GetEntryResponse(entry=_entry(found), proof=found.proof)

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
        _, note = await self._read(self._reading.checkpoint, size)
        return audit_pb2.GetCheckpointResponse(checkpoint=note, verifier_key=self._vkey)

    async def GetConsistencyProof(
        self, request: audit_pb2.GetConsistencyProofRequest, context: Context
    ) -> audit_pb2.GetConsistencyProofResponse:
        """The proof that the log only grew between two sizes."""
        del context
        new_size = request.new_size if request.HasField("new_size") else None
        hashes, size, note = await self._read(self._reading.consistency, request.old_size, new_size)
        return audit_pb2.GetConsistencyProofResponse(hashes=hashes, new_size=size, checkpoint=note)

    async def Query(self, request: audit_pb2.QueryRequest, context: Context) -> audit_pb2.QueryResponse:
        """One page of the entries that meet a filter."""
        del context
        page = await self._read(self._reading.query, _question(request))
        return audit_pb2.QueryResponse(
            entries=[_entry(found) for found in page.entries],
            next_page_token=page.next_token,
            snapshot_size=page.snapshot_size,
        )

    async def Summary(self, request: audit_pb2.SummaryRequest, context: Context) -> audit_pb2.SummaryResponse:
        """Counts over a window."""
        del context
        since, conditions = self._window(request)
        size, counts = await self._read(self._reading.summary, since, conditions)
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
        del context
        runs = await self._read(self._pipelines.since, *self._window(request))
        return audit_pb2.PipelineStatusResponse(pipelines=map(_pipeline, runs))

    async def ListGaps(
        self, request: audit_pb2.ListGapsRequest, context: Context
    ) -> audit_pb2.ListGapsResponse:
        """Intents without outcome and holes in producers' numbers."""
        del context
        age = request.intent_age.ToMicroseconds() if request.HasField("intent_age") else DEFAULT_INTENT_AGE_US
        if age < 0:
            raise InvalidArgumentError("intent_age", "must not be negative")
        rows, token = await self._read(
            self._reading.gaps,
            _timeless_conditions(request.filter),
            intents_before=self._clock() - age,
            page_size=page_size_of(request.page_size),
            page_token=request.page_token,
        )
        return audit_pb2.ListGapsResponse(gaps=map(_gap, rows), next_page_token=token)

    def _window(
        self, request: audit_pb2.SummaryRequest | audit_pb2.PipelineStatusRequest
    ) -> tuple[int, list[Condition]]:
        """Since when to count, in microseconds since 1970, and what."""
        seconds = request.window.ToSeconds() if request.HasField("window") else DEFAULT_WINDOW_SECONDS
        if seconds <= 0:
            raise InvalidArgumentError("window", "must be positive")
        return self._clock() - seconds * 1_000_000, _timeless_conditions(request.filter)

    async def _read(self, method: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, lambda: method(*args, **kwargs))


def _entry(found: FoundEntry) -> audit_pb2.Entry:
    entry = found.entry
    return audit_pb2.Entry(
        name=f"entries/{entry.index}",
        index=entry.index,
        leaf=entry.leaf,
        leaf_hash=entry.leaf_hash,
        payload_kinds=found.payload_kinds,
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


def _timeless_conditions(wanted: audit_pb2.EntryFilter) -> list[Condition]:
    """The conditions of a request that says its span of time otherwise."""
    if wanted.HasField("from") or wanted.HasField("until"):
        raise InvalidArgumentError("filter", "takes no times here")
    return _conditions(wanted)


def _conditions(wanted: audit_pb2.EntryFilter) -> list[Condition]:
    if len(wanted.types) > MAX_TYPES:
        raise InvalidArgumentError("filter.types", f"at most {MAX_TYPES}")
    conditions = [
        Condition(column, (value,))
        for column, value in (
            ("actor", wanted.actor),
            ("model", wanted.model),
            ("tool", wanted.tool),
            ("trace_id", wanted.trace_id),
            ("tenant", wanted.tenant),
        )
        if value
    ]
    if wanted.types:
        conditions.append(Condition("type", tuple(wanted.types)))
    if wanted.outcomes:
        conditions.append(Condition("outcome", tuple(_outcome(outcome) for outcome in wanted.outcomes)))
    if wanted.HasField("law"):
        conditions.append(Condition("law", (wanted.law,)))
    return conditions


def _question(request: audit_pb2.QueryRequest) -> Question:
    wanted = request.filter
    return Question(
        _conditions(wanted),
        _microseconds(getattr(wanted, "from")) if wanted.HasField("from") else None,
        _microseconds(wanted.until) if wanted.HasField("until") else None,
        page_size_of(request.page_size),
        request.page_token,
        request.descending,
    )


def _outcome(outcome: int) -> str:
    if outcome not in OUTCOME_NAMES:
        raise InvalidArgumentError("filter.outcomes", "holds an outcome that does not exist")
    return OUTCOME_NAMES[outcome]


def _microseconds(time: Timestamp) -> int:
    return time.seconds * 1_000_000 + time.nanos // 1_000


def _match(field: str, text: str, pattern: re.Pattern[str]) -> str:
    found = pattern.fullmatch(text)
    if found is None:
        raise InvalidArgumentError(field, f"must match {pattern.pattern}")
    return found[1]
