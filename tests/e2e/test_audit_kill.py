"""kill -9 of the audit process under load: what it acknowledged is there afterwards, once, where it said.

The proof is the client's journal of acknowledgements, never the log's own consistency: a log that loses its newest
entries is perfectly consistent. A server that acknowledges too early must be caught by the same checker.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import sqlite3
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import pytest

from kala.audit.database import verify_database
from kala.audit.receipt import verify_receipt
from kala.audit.v1 import audit_pb2, audit_pb2_grpc
from kala.errors import VerificationError
from services.common.channel import open_channel
from tests.fakes.audit_log import record
from tests.fakes.audit_process import AuditProcess

KILLS = int(os.environ.get("KALA_TEST_KILLS", "25"))
CONTROL_KILLS = 3
CALLERS = 4

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]


@dataclass
class Journal:
    """What the client was told: the receipt of every acknowledged record."""

    receipts: list[audit_pb2.Receipt] = field(default_factory=list)
    newest: str = ""
    acknowledged: asyncio.Event = field(default_factory=asyncio.Event)

    def note(self, response: audit_pb2.AppendBatchResponse) -> None:
        self.receipts.extend(response.receipts)
        if not self.newest or size_of(response.checkpoint) > size_of(self.newest):
            self.newest = response.checkpoint
        self.acknowledged.set()


def size_of(note: str) -> int:
    return int(note.split("\n")[1])


async def call_until_told(
    stub: audit_pb2_grpc.AuditServiceAsyncStub,
    journal: Journal,
    numbers: itertools.count[int],
    stop: asyncio.Event,
) -> None:
    """Appends batches; repeats each with the same keys until it is acknowledged, as the real client does."""
    rng = random.Random(7)
    while not stop.is_set():
        size = rng.randrange(1, 20)
        records = [record(next(numbers), key=os.urandom(16), payloads=1) for _ in range(size)]
        while True:
            try:
                request = audit_pb2.AppendBatchRequest(records=records, with_proof=True)
                journal.note(await stub.AppendBatch(request, timeout=2))
                break
            except grpc.aio.AioRpcError:
                if stop.is_set():
                    return
                await asyncio.sleep(0.02)


async def kill_under_load(audit: AuditProcess, kills: int) -> Journal:
    """Starts and kills the service in turn while callers append; stops it in order at the end."""
    journal, stop, numbers, rng = Journal(), asyncio.Event(), itertools.count(), random.Random(11)
    async with open_channel(audit.address, peer_name="gateway") as channel:
        stub = audit_pb2_grpc.AuditServiceStub(channel)
        callers = [asyncio.create_task(call_until_told(stub, journal, numbers, stop)) for _ in range(CALLERS)]
        for round_number in range(kills + 1):
            audit.start()
            journal.acknowledged.clear()
            await asyncio.wait_for(journal.acknowledged.wait(), 30)
            await asyncio.sleep(rng.uniform(0.05, 0.35))
            if round_number < kills:
                await asyncio.to_thread(audit.kill)
        stop.set()
        await asyncio.gather(*callers)
    await asyncio.to_thread(audit.stop)
    return journal


def problems_of(journal: Journal, audit: AuditProcess) -> list[str]:
    """Everything in which the log differs from what its clients were told."""
    problems = []
    try:
        verify_database(audit.database, [audit.verifier], pinned=journal.newest)
    except VerificationError as error:
        problems.append(str(error))
    with closing(sqlite3.connect(audit.database)) as database:
        rows = {
            bytes(idem): (index, bytes(digest))
            for idem, index, digest in database.execute("SELECT idem, idx, leaf_hash FROM entry")
        }
        (count,) = database.execute("SELECT count(*) FROM entry").fetchone()
    if count != len(rows):
        problems.append(f"{count - len(rows)} keys are in the log twice")
    for receipt in journal.receipts:
        verified = verify_receipt(receipt.proof, [audit.verifier])
        key = bytes.fromhex(receipt.name.removeprefix("receipts/rcpt_"))
        if key not in rows:
            problems.append(f"{receipt.name} is lost")
        elif rows[key] != (verified.index, verified.leaf.hash):
            problems.append(f"{receipt.name} was told index {verified.index} and is at {rows[key][0]}")
    return problems


async def test_no_acknowledged_record_is_lost_doubled_or_renumbered_by_kill_9(tmp_path: Path) -> None:
    audit = AuditProcess(tmp_path / "audit")
    journal = await kill_under_load(audit, KILLS)
    assert problems_of(journal, audit) == [], audit.output()
    # The load was real: each life of the process acknowledged something.
    assert len(journal.receipts) > KILLS * 10


async def test_a_log_that_acknowledges_before_it_writes_is_caught(tmp_path: Path) -> None:
    audit = AuditProcess(tmp_path / "audit", module="tests.fakes.early_audit")
    journal = await kill_under_load(audit, CONTROL_KILLS)
    problems = problems_of(journal, audit)
    assert any("is lost" in problem or "was told index" in problem for problem in problems)
