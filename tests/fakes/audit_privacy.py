"""The whole audit service but its process, over a database of either kind, for tests of erasure, holds and retention."""

from __future__ import annotations

import itertools
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from functools import partial
from typing import Any

import grpc
from sqlalchemy import select

from kala.audit.note import Signer
from kala.audit.receipt import verify_receipt
from kala.audit.v1 import audit_pb2, audit_pb2_grpc
from kala.common.v1 import clearance_pb2, options_pb2
from services.audit.batch import BatchWriter
from services.audit.config import AuditSettings
from services.audit.log import Log
from services.audit.once import OnceRecords
from services.audit.own_records import OwnRecords
from services.audit.payloads import KeyEncryptionKey
from services.audit.privacy.late_content import LateContent
from services.audit.privacy.redaction import PersonalDataFinder
from services.audit.privacy.servicer import AuditPrivacyServicer
from services.audit.privacy.steps import Privacy
from services.audit.privacy.store import PrivacyStore
from services.audit.reading.log_reader import LogReading
from services.audit.servicer import AuditServicer, may_call
from services.audit.storage.schema import PAYLOAD
from services.audit.storage.stores import LogStore, open_log_store
from services.common.channel import open_channel
from services.common.interceptors import CallPolicy
from services.common.principals import principal_metadata
from services.common.server import serving
from services.common.status import translated
from tests.fakes.audit_log import KEK, NOW, record, signer

ERASER = options_pb2.SCOPE_AUDIT_ERASE
REASON = "the person asked for it"
ALICE, BOB = "a" * 64, "b" * 64
TRUSTED = [signer().verifier]


@dataclass
class PrivateLog:
    """A served log, its store and a client of the gateway's name."""

    store: LogStore
    log: Log
    privacy_store: PrivacyStore
    privacy: Privacy
    once: OnceRecords
    reading: LogReading
    address: str
    channel: grpc.aio.Channel
    now: list[int]
    """The clock, in microseconds since 1970; it stands still unless a test moves it."""

    @property
    def calls(self) -> audit_pb2_grpc.AuditPrivacyServiceAsyncStub:
        return audit_pb2_grpc.AuditPrivacyServiceStub(self.channel)

    def leaves(self) -> list[dict[str, Any]]:
        """Every leaf, in order."""
        size = self.reading.checkpoint(None)[0]
        return [json.loads(self.reading.entry(index).entry.leaf) for index in range(size)]

    def open_intents(self) -> list[int]:
        """The entries that are intents without an outcome."""
        rows, _ = self.reading.gaps(intents_before=self.now[0] + 10**9, page_size=100, page_token="")
        return [row.index for row in rows if row.is_intent]

    async def append(self, *records: audit_pb2.Record) -> audit_pb2.AppendBatchResponse:
        with translated():
            return await audit_pb2_grpc.AuditServiceStub(self.channel).AppendBatch(
                audit_pb2.AppendBatchRequest(records=records, with_proof=True)
            )

    async def erase(
        self, subject: str, request_id: bytes = b"r" * 16, *, tenant: str = "default", **fields: object
    ) -> audit_pb2.EraseSubjectResponse:
        request = audit_pb2.EraseSubjectRequest(
            **{"name": f"subjects/{subject}", "reason": REASON, "request_id": request_id, **fields}  # type: ignore[arg-type] # fields of the message
        )
        with translated():
            return await self.calls.EraseSubject(request, metadata=principal(tenant))

    async def hold(self, subject: str, *, tenant: str = "default") -> audit_pb2.PlaceHoldResponse:
        request = audit_pb2.PlaceHoldRequest(name=f"subjects/{subject}", reason="a court asked to keep it")
        with translated():
            return await self.calls.PlaceHold(request, metadata=principal(tenant))

    async def release(self, hold: str, *, tenant: str = "default") -> audit_pb2.ReleaseHoldResponse:
        request = audit_pb2.ReleaseHoldRequest(name=hold, reason="the case is closed")
        with translated():
            return await self.calls.ReleaseHold(request, metadata=principal(tenant))


def principal(tenant: str = "default", *scopes: int) -> tuple[tuple[str, bytes], ...]:
    """The metadata with which the gateway names a principal."""
    who = clearance_pb2.Principal(id="keys/dpo", tenant=tenant, scopes=scopes or (ERASER,))  # type: ignore[arg-type] # enum values
    return principal_metadata(who)


def spoken(number: int, subject: str, words: bytes = b"", *, tenant: str = "default") -> audit_pb2.Record:
    """A record with content of a subject."""
    made = record(number, payloads=2)
    made.subject_key_id, made.tenant = subject, tenant
    for payload in made.payloads:
        payload.data = words or b"secret canary %d" % number
    return made


@asynccontextmanager
async def private_log(
    database: str, *, finder: PersonalDataFinder | None = None, key: Signer | None = None
) -> AsyncIterator[PrivateLog]:
    """Opens and serves the log in `database`, a path or a URL, until the context is left."""
    key, now = key or signer(), [NOW]
    settings = AuditSettings(database=database, address="127.0.0.1:0", metrics_port=None, drain_seconds=0.2)
    ticks = itertools.count()

    def clock() -> int:
        return now[0] + next(ticks)

    with closing(open_log_store(settings, key)) as store:
        batches = BatchWriter(
            writer=store.writer,
            reader=store.open_reader(),
            signer=key,
            kek=KeyEncryptionKey(KEK),
            clock=clock,
        )
        log = Log(batches)
        log.start()
        own = OwnRecords(log, clock=clock)
        kept = PrivacyStore(store.engine, store.log_id, clock=clock)
        reading = LogReading(store.open_reader(), KeyEncryptionKey(KEK))
        once = OnceRecords(own, LogReading(store.open_reader()))
        privacy = Privacy(kept, once, key)
        registrations = [
            partial(
                audit_pb2_grpc.add_AuditServiceServicer_to_server,
                AuditServicer(log, late=LateContent(kept, clock=clock), finder=finder),
            ),
            partial(audit_pb2_grpc.add_AuditPrivacyServiceServicer_to_server, AuditPrivacyServicer(privacy)),
        ]
        policy = CallPolicy(may_call=may_call, on_denied=own.denied)
        try:
            async with (
                serving(settings, registrations, policy=policy) as server,
                open_channel(server.address, peer_name="gateway") as channel,
            ):
                await server.set_serving()
                yield PrivateLog(store, log, kept, privacy, once, reading, server.address, channel, now)
        finally:
            await privacy.close()
            await once.close()
            await log.stop()


def leaf_of(receipt: audit_pb2.Receipt) -> dict[str, object]:
    return dict(verify_receipt(receipt.proof, TRUSTED).leaf.value)


def ciphertexts(log: PrivateLog) -> dict[int, int]:
    """How many payloads each entry still has."""
    with log.store.engine.connect() as connection:
        rows = connection.execute(select(PAYLOAD.c.idx).where(PAYLOAD.c.ciphertext.is_not(None))).scalars()
        found = list(rows)
    return {index: found.count(index) for index in found}
