"""The writers' side of the log: every record is acknowledged durably, in order, exactly once, or the caller hears no.

Records that arrive while a call is under way go together in the next one, so an idle writer adds no wait and a busy
one few calls. When the log does not answer, records with policy SPOOL wait in the durable spool, where later ones
line up behind them; records with policy FAIL_CLOSED fail. Sequence numbers are given when a record is sent or
spooled, so a hole in them is a record whose delivery nobody acknowledged.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import partial
from typing import Final, ParamSpec, Self, TypeVar

import grpc
import structlog

from kala.audit.v1 import audit_pb2, audit_pb2_grpc
from kala.errors import InvalidArgumentError, KalaError, UnavailableError
from services.common.audit_drain import DRAIN_RECORDS, MAX_BATCH_BYTES, SpoolDrain
from services.common.audit_refusals import is_refusal, may_be_refusal
from services.common.audit_types import Appended, AppendStatus, AuditPolicy, Payload, new_key, receipt_id
from services.common.audit_waiting import UNAVAILABLE_REASON, Waiting
from services.common.spool import MAX_RECORD_BYTES, Spool
from services.common.status import from_error

__all__ = [
    "AppendStatus",
    "Appended",
    "AuditPolicy",
    "AuditWriter",
    "Payload",
    "new_key",
    "receipt_id",
]

BOOT_BYTES: Final = 8
DEFAULT_DEADLINE_SECONDS: Final = 5.0
# Of the deadline, what one call may take; the rest is for the spool.
CALL_SHARE: Final = 0.6
# What the service takes in one batch, and what stays well below gRPC's largest message.
MAX_BATCH_RECORDS: Final = 1_024
FIRST_RETRY_SECONDS: Final = 0.1
LAST_RETRY_SECONDS: Final = 1.0
# After a failed drain: a line too slow for the usual call must still empty the spool. New records do not wait for it.
PATIENT_SECONDS: Final = 10.0

log = structlog.get_logger()

_P = ParamSpec("_P")
_T = TypeVar("_T")


def utc_now() -> datetime:
    """The time, in UTC."""
    return datetime.now(UTC)


class AuditWriter:
    """Appends the records of one process. Enter it before use; leaving it delivers or spools what waits."""

    def __init__(
        self,
        channel: grpc.aio.Channel,
        *,
        producer_id: str,
        spool: Spool | None = None,
        deadline_seconds: float = DEFAULT_DEADLINE_SECONDS,
        boot: bytes | None = None,
        clock: Callable[[], datetime] = utc_now,
        random: Callable[[int], bytes] = secrets.token_bytes,
        with_proof: bool = True,
    ) -> None:
        """`with_proof` says whether receipts bring their proof text; without it proofs are fetched by id."""
        self._with_proof = with_proof
        self._channel = channel
        self._stub = audit_pb2_grpc.AuditServiceStub(channel)
        self._producer_id = producer_id
        self._spool = spool
        self._deadline_seconds = deadline_seconds
        self._boot = boot or random(BOOT_BYTES)
        self._clock = clock
        self._random = random
        self._sequence = 0
        self._queue: deque[Waiting] = deque()
        self._wake = asyncio.Event()
        self._drain_now = asyncio.Event()
        # One thread for the spool's files: its calls never overlap, and a cancelled caller does not stop one half-way.
        self._spool_thread = ThreadPoolExecutor(1, "audit-spool")
        self._drain: SpoolDrain | None = None
        self._unanswered: set[Waiting] = set()
        self._tasks: list[asyncio.Task[None]] = []
        self._answers = True
        self._checkpoint = ""
        self._closed = True

    async def __aenter__(self) -> Self:
        self._closed = False
        self._tasks = [asyncio.create_task(self._send_loop(), name="audit-sender")]
        if self._spool is not None:
            self._drain = SpoolDrain(
                self._spool, call=self._call_again, run=self._in_spool_thread, clock=self._clock
            )
            drain = self._drain_loop(self._spool, self._drain)
            self._tasks.append(asyncio.create_task(drain, name="audit-drain"))
        for task in self._tasks:
            task.add_done_callback(_report_end)
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self._closed = True
        if self._unanswered:
            await asyncio.wait([item.future for item in self._unanswered], timeout=self._deadline_seconds)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.to_thread(self._spool_thread.shutdown)
        for item in list(self._unanswered):
            item.fail(UnavailableError("the audit writer was closed", reason=UNAVAILABLE_REASON))

    async def append(
        self,
        record: audit_pb2.Record,
        *,
        payloads: Sequence[Payload] = (),
        key: bytes | None = None,
        policy: AuditPolicy = AuditPolicy.SPOOL,
        deadline_seconds: float | None = None,
    ) -> Appended:
        """Makes one record durable and returns its receipt; `record` is copied and stamped, never changed.

        Raises `UnavailableError` (reason AUDIT_UNAVAILABLE) when it is durable nowhere, as far as this writer knows;
        `AlreadyExistsError`, `InvalidArgumentError`, or an error with reason AUDIT_RECORD_REFUSED, when the log will
        never take it.
        A caller that is cancelled does not take the record back.
        """
        if self._closed:
            raise UnavailableError("the audit writer is closed", reason=UNAVAILABLE_REASON)
        stamped = self._stamp(record, payloads, key)
        size = stamped.ByteSize()
        if size > MAX_RECORD_BYTES:
            raise InvalidArgumentError(
                "record", f"has {size} bytes with its payloads; at most {MAX_RECORD_BYTES} fit"
            )
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Appended] = loop.create_future()
        item = Waiting(stamped, policy, future, size)
        seconds = self._deadline_seconds if deadline_seconds is None else deadline_seconds
        timer = loop.call_later(seconds, item.expire, seconds)
        self._unanswered.add(item)
        self._queue.append(item)
        self._wake.set()
        try:
            return await future
        finally:
            timer.cancel()
            self._unanswered.discard(item)

    async def erase_subject(self, subject_key_id: str, tenant: str) -> int:
        """Takes the content of a tenant's subject's records out of the spool and out of what was set aside; tells of how many.

        The records themselves stay and are logged without content. For an erasure: call it before the log's own
        EraseSubject, which covers what was delivered before. What is appended meanwhile is a new act.
        Raises `UnavailableError` when the spool cannot be written; its records are then as they were.
        """
        return 0 if self._drain is None else await self._drain.erase_subject(subject_key_id, tenant)

    def ready(self) -> bool:
        """Whether a record appended now would probably be acknowledged: the log answers, or the spool has room."""
        if any(task.done() for task in self._tasks):
            return False
        if self._spool is not None and self._spool.has_room:
            return True
        return self._answers and self._channel.get_state() is not grpc.ChannelConnectivity.TRANSIENT_FAILURE

    @property
    def spooled(self) -> int:
        """How many records wait in the spool."""
        return 0 if self._spool is None else len(self._spool)

    @property
    def checkpoint(self) -> str | None:
        """The signed checkpoint that came with the newest receipts; None before the first."""
        return self._checkpoint or None

    def _stamp(
        self, record: audit_pb2.Record, payloads: Sequence[Payload], key: bytes | None
    ) -> audit_pb2.Record:
        stamped = audit_pb2.Record()
        stamped.CopyFrom(record)
        stamped.idempotency_key = key or stamped.idempotency_key or new_key(self._random)
        stamped.producer.id = self._producer_id
        stamped.producer.boot = self._boot
        if not stamped.HasField("occurred_at"):
            stamped.occurred_at.FromDatetime(self._clock())
        stamped.payloads.extend(audit_pb2.Payload(kind=p.kind, data=p.data, store=p.store) for p in payloads)
        return stamped

    async def _send_loop(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._queue:
                if self.spooled:
                    # What the drain will deliver with its next call is worth waiting for: spooling on would keep a
                    # busy writer in its spool for ever. FAIL_CLOSED records wait in any case. The drain wakes this loop.
                    is_nearly_empty = self._answers and self.spooled <= DRAIN_RECORDS
                    if is_nearly_empty or not await self._spool_queued():
                        break
                else:
                    await self._deliver(self._take_batch())

    def _take_batch(self) -> list[Waiting]:
        batch: list[Waiting] = []
        size = 0
        while self._queue and len(batch) < MAX_BATCH_RECORDS:
            size += self._queue[0].size
            if batch and size > MAX_BATCH_BYTES:
                break
            item = self._queue.popleft()
            if not item.is_expired:
                self._number(item)
                batch.append(item)
        return batch

    def _number(self, item: Waiting) -> None:
        self._sequence += 1
        item.record.producer.sequence = self._sequence

    async def _deliver(self, batch: list[Waiting]) -> None:
        """Sends a batch until it is answered, or spools it, or fails it."""
        delay = FIRST_RETRY_SECONDS
        while batch:
            try:
                receipts = await self._call([item.record for item in batch], with_proof=self._with_proof)
            except KalaError as error:
                if len(batch) > 1 and may_be_refusal(error):
                    # One bad record must not take the others of its batch with it.
                    await self._deliver_apart(batch)
                    return
                if is_refusal(error):
                    batch[0].fail(error)
                    return
                if self._spool is not None and any(
                    item.policy is AuditPolicy.SPOOL for item in (*batch, *self._queue)
                ):
                    await self._spool_or_fail(batch, error)
                    return
                await asyncio.sleep(delay)
                delay = min(2 * delay, LAST_RETRY_SECONDS)
                batch = [item for item in batch if not item.is_expired]
            else:
                for item, receipt in zip(batch, receipts, strict=True):
                    item.log(receipt)
                return

    async def _deliver_apart(self, batch: Sequence[Waiting]) -> None:
        for item in batch:
            if self.spooled:
                await self._spool_or_fail(
                    [item], UnavailableError("records before this one wait in the spool")
                )
            else:
                await self._deliver([item])

    async def _call(
        self, records: Sequence[audit_pb2.Record], *, with_proof: bool, is_patient: bool = False
    ) -> Sequence[audit_pb2.Receipt]:
        request = audit_pb2.AppendBatchRequest(records=records, with_proof=with_proof)
        seconds = PATIENT_SECONDS if is_patient else self._deadline_seconds * CALL_SHARE
        try:
            response = await self._stub.AppendBatch(request, timeout=seconds)
        except grpc.RpcError as error:
            found = from_error(error)
            self._answers = is_refusal(found)
            raise found from error
        self._answers = True
        self._checkpoint = response.checkpoint or self._checkpoint
        if len(response.receipts) != len(records):
            raise UnavailableError(
                f"the log answered {len(response.receipts)} receipts for {len(records)} records"
            )
        return response.receipts

    async def _call_again(self, records: Sequence[audit_pb2.Record]) -> None:
        # Nobody waits for these receipts: whoever wants one asks the log for it.
        await self._call(records, with_proof=False, is_patient=not self._answers)

    async def _spool_queued(self) -> bool:
        """Moves what may wait in the spool there; false when nothing in the queue may."""
        queued = [item for item in self._queue if not item.is_expired]
        items = [item for item in queued if item.policy is AuditPolicy.SPOOL]
        self._queue = deque(item for item in queued if item.policy is not AuditPolicy.SPOOL)
        for item in items:
            self._number(item)
        await self._spool_items(items)
        return bool(items)

    async def _spool_or_fail(self, batch: Sequence[Waiting], error: KalaError) -> None:
        for item in batch:
            if item.policy is AuditPolicy.FAIL_CLOSED:
                item.fail(UnavailableError(f"the log is away: {error.message}", reason=UNAVAILABLE_REASON))
        await self._spool_items([item for item in batch if item.policy is AuditPolicy.SPOOL])

    async def _spool_items(self, items: Sequence[Waiting]) -> None:
        if self._spool is None or not items:
            return
        records = [item.record.SerializeToString() for item in items]
        try:
            await self._in_spool_thread(self._spool.append, records)
        except KalaError as error:
            for item in items:
                item.fail(UnavailableError(error.message, reason=UNAVAILABLE_REASON))
            return
        self._drain_now.set()
        for item in items:
            item.spool()

    async def _in_spool_thread(self, call: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        return await asyncio.get_running_loop().run_in_executor(
            self._spool_thread, partial(call, *args, **kwargs)
        )

    async def _drain_loop(self, spool: Spool, drain: SpoolDrain) -> None:
        """Delivers what waits in the spool, oldest first, whenever there is something."""
        delay = FIRST_RETRY_SECONDS
        while True:
            if not len(spool):
                self._wake.set()
                self._drain_now.clear()
                await self._drain_now.wait()
            try:
                await drain.deliver_some(is_patient=not self._answers)
                delay = FIRST_RETRY_SECONDS
            except KalaError as error:
                log.warning("the audit spool waits", records=len(spool), error=error.message)
                self._wake.set()
                await asyncio.sleep(delay)
                delay = min(2 * delay, LAST_RETRY_SECONDS)


def _report_end(task: asyncio.Task[None]) -> None:
    """Says why a task of the writer ended by itself, which is a bug; appends then fail closed, at their deadlines."""
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("the audit writer broke", task=task.get_name(), exc_info=error)
