"""Killing the audit process at any moment of an erasure: the same request ends it, once, with one certificate."""

from __future__ import annotations

import asyncio
import random
import secrets
from pathlib import Path

import grpc
import pytest

from kala.audit.database import verify_database
from kala.audit.erasure import verify_certificate
from kala.audit.receipt import verify_receipt
from kala.audit.v1 import audit_pb2, audit_pb2_grpc
from services.common.channel import open_channel
from tests.fakes.audit_privacy import REASON, principal, spoken
from tests.fakes.audit_process import AuditProcess

pytestmark = pytest.mark.e2e

KILLS = 6
# From the request's first step to its last it takes some 20 to 50 ms here.
LATEST_SECONDS = 0.06


@pytest.mark.parametrize("database", ["sqlite", "postgres"])
async def test_an_erasure_survives_kills(
    tmp_path: Path, database: str, request: pytest.FixtureRequest
) -> None:
    url = request.getfixturevalue("postgres_log_url") if database == "postgres" else None
    audit = AuditProcess(tmp_path / "audit", url=url)
    rng = random.Random(7)
    erased: list[audit_pb2.EraseSubjectResponse] = []
    for number in range(KILLS):
        subject, request_id = f"{number:064x}", secrets.token_bytes(16)
        audit.start()
        await _append(audit, [spoken(number * 10 + place, subject) for place in range(3)])
        # The first ends undisturbed, the others at a moment of their own.
        delay = rng.uniform(0, LATEST_SECONDS) if number else None
        if await _erase(audit, subject, request_id, delay) is None:
            audit.start()
        done = await _erase(audit, subject, request_id, None)
        again = await _erase(audit, subject, request_id, None)
        assert done is not None
        assert again is not None
        assert (done.certificate, done.receipt.index) == (again.certificate, again.receipt.index)
        erased.append(done)
        assert audit.stop() == 0, audit.output()
    for number, done in enumerate(erased):
        value = verify_certificate(done.certificate, done.signature, [audit.verifier])
        assert (value["subject"], value["receipt"]) == (
            f"{number:064x}",
            done.receipt.name[len("receipts/") :],
        )
        assert [(one["store"], one["items"]) for one in value["stores"]] == [
            ("audit.keys", 1),
            ("audit.payloads", 6),
        ]
        assert verify_receipt(done.receipt.proof, [audit.verifier]).index == done.receipt.index
    if url is None:
        assert verify_database(audit.database, [audit.verifier], pinned=None).entries > 5 * KILLS


async def _append(audit: AuditProcess, records: list[audit_pb2.Record]) -> None:
    async with open_channel(audit.address, peer_name="gateway") as channel:
        stub = audit_pb2_grpc.AuditServiceStub(channel)
        request = audit_pb2.AppendBatchRequest(records=records)
        await stub.AppendBatch(request, timeout=30, wait_for_ready=True)


async def _erase(
    audit: AuditProcess, subject: str, request_id: bytes, killed_after: float | None
) -> audit_pb2.EraseSubjectResponse | None:
    """The answer, or None when the process was killed before it."""
    order = audit_pb2.EraseSubjectRequest(name=f"subjects/{subject}", reason=REASON, request_id=request_id)
    async with open_channel(audit.address, peer_name="gateway") as channel:
        stub = audit_pb2_grpc.AuditPrivacyServiceStub(channel)
        call = asyncio.ensure_future(
            stub.EraseSubject(order, timeout=30, metadata=principal(), wait_for_ready=True)
        )
        if killed_after is None:
            return await call
        await asyncio.sleep(killed_after)
        audit.kill()
        try:
            await call
        except grpc.aio.AioRpcError:
            return None
        return None
