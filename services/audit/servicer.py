"""The writing RPCs: records in, durable receipts out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Final

from kala.audit.v1 import audit_pb2, audit_pb2_grpc
from kala.errors import InvalidArgumentError
from services.audit.batch import Logged
from services.audit.entries import NewEntry
from services.audit.log import Log
from services.audit.privacy.late_content import LateContent
from services.audit.privacy.redaction import PersonalDataFinder, redact
from services.audit.records import entry_of
from services.common.peers import (
    CLI,
    CONSOLE,
    ETHICS,
    GATEWAY,
    INFERENCE,
    TOOLS,
    TRAINER,
    Context,
    Peer,
    peer_of,
)

# Who acts, writes. The others only read: a reader holds no right to add to what it reads.
WRITERS: Final = frozenset({GATEWAY, ETHICS, INFERENCE, TOOLS, TRAINER})
WRITING_SERVICE: Final = "/kala.audit.v1.AuditService/"
READING_SERVICE: Final = "/kala.audit.v1.AuditReadService/"
# Who shows people what is in the log. The others need proofs alone, and get no entries by the thousand, and no content.
READERS: Final = frozenset({GATEWAY, CONSOLE, CLI})
PROVING: Final = frozenset(
    {"GetEntry", "GetReceipt", "GetCheckpoint", "GetConsistencyProof", "WatchCheckpoints"}
)
# Erasure goes through the gateway, which knows who may ask for it.
PRIVACY_SERVICE: Final = "/kala.audit.v1.AuditPrivacyService/"

MAX_BATCH_RECORDS: Final = 1_024
# Unanswered records of one stream: keeps a fast sender from holding the whole queue.
STREAM_WINDOW: Final = 256

_Waiting = asyncio.Queue[asyncio.Future[Sequence[Logged]] | None]


class AuditServicer(audit_pb2_grpc.AuditServiceServicer):
    """Appends records for the parts of the suite; stamps each with the name of the peer that delivered it."""

    def __init__(
        self, log: Log, *, late: LateContent | None = None, finder: PersonalDataFinder | None = None
    ) -> None:
        """`late` drops what must not come back; `finder` says what to mask before it is kept, nothing when None."""
        self._log = log
        self._late = late
        self._finder = finder

    async def Append(self, request: audit_pb2.AppendRequest, context: Context) -> audit_pb2.AppendResponse:
        """Appends one record."""
        entries = await self._prepared([entry_of(request.record, peer_of(context).name)])
        (logged,) = await self._log.submit(entries, with_proof=request.with_proof)
        return audit_pb2.AppendResponse(receipt=receipt_of(logged))

    async def AppendBatch(
        self, request: audit_pb2.AppendBatchRequest, context: Context
    ) -> audit_pb2.AppendBatchResponse:
        """Appends records in order, all or none."""
        if not 1 <= len(request.records) <= MAX_BATCH_RECORDS:
            raise InvalidArgumentError("records", f"must be 1 to {MAX_BATCH_RECORDS}")
        peer = peer_of(context).name
        entries = await self._prepared([entry_of(record, peer) for record in request.records])
        logged = await self._log.submit(entries, with_proof=request.with_proof)
        return audit_pb2.AppendBatchResponse(
            receipts=[receipt_of(one) for one in logged], checkpoint=logged[-1].note
        )

    async def AppendStream(
        self, requests: AsyncIterator[audit_pb2.AppendStreamRequest], context: Context
    ) -> AsyncIterator[audit_pb2.AppendStreamResponse]:
        """Appends records as they come and answers in their order."""
        peer = peer_of(context).name
        waiting: _Waiting = asyncio.Queue(STREAM_WINDOW)
        reading = asyncio.create_task(self._read_stream(requests, peer, waiting))
        try:
            while (future := await waiting.get()) is not None:
                (logged,) = await future
                yield audit_pb2.AppendStreamResponse(receipt=receipt_of(logged))
            await reading
        finally:
            reading.cancel()

    async def _read_stream(
        self,
        requests: AsyncIterator[audit_pb2.AppendStreamRequest],
        peer: str,
        waiting: _Waiting,
    ) -> None:
        try:
            async for request in requests:
                entries = await self._prepared([entry_of(request.record, peer)])
                await waiting.put(self._log.submit(entries, with_proof=request.with_proof))
        finally:
            # The answers before a malformed record are still due; then the task's own error ends the stream.
            await waiting.put(None)

    async def _prepared(self, entries: list[NewEntry]) -> list[NewEntry]:
        """The entries without content that must not be kept; most have none to look at."""
        if self._late is not None:
            entries = await self._late.drop(entries)
        finder = self._finder
        if finder is None or not any(entry.payloads for entry in entries):
            return entries
        return await asyncio.to_thread(lambda: [redact(entry, finder) for entry in entries])


def may_call(method: str, peer: Peer) -> bool:
    """Whether this part may use this RPC: privileges follow services."""
    if method.startswith(WRITING_SERVICE):
        return peer.part in WRITERS
    if method.startswith(READING_SERVICE):
        return peer.part in READERS or method.removeprefix(READING_SERVICE) in PROVING
    return not method.startswith(PRIVACY_SERVICE) or peer.part == GATEWAY


def receipt_of(logged: Logged) -> audit_pb2.Receipt:
    """The receipt as the wire spells it."""
    return audit_pb2.Receipt(
        name=f"receipts/rcpt_{logged.key.hex()}",
        index=logged.index,
        leaf_hash=logged.leaf_hash,
        proof=logged.proof,
        created=logged.created,
        openings=[audit_pb2.Opening(kind=kind, salt=salt) for kind, salt in logged.openings],
    )
