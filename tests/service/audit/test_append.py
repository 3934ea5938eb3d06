"""The writing RPCs: durable, proved, exactly once, and refused clearly."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import psycopg
import pytest

from kala.audit.checkpoint import open_checkpoint
from kala.audit.database import verify_database
from kala.audit.leaf import parse_leaf
from kala.audit.receipt import verify_receipt
from kala.audit.v1 import audit_pb2, audit_pb2_grpc
from kala.errors import (
    AlreadyExistsError,
    InvalidArgumentError,
    KalaError,
    PermissionDeniedError,
    ResourceExhaustedError,
    UnavailableError,
)
from services.audit.batch import Logged, Submission
from services.audit.storage.schema import METADATA
from services.common.channel import open_channel
from services.common.status import translated
from tests.fakes.audit_log import is_url, record
from tests.fakes.audit_server import ServedLog, served_log


@pytest.fixture
async def served(log_database: str) -> AsyncIterator[ServedLog]:
    async with served_log(log_database) as log:
        yield log


async def append(served: ServedLog, *records: audit_pb2.Record) -> audit_pb2.AppendBatchResponse:
    with translated():
        return await served.append.AppendBatch(audit_pb2.AppendBatchRequest(records=records, with_proof=True))


async def test_a_record_comes_back_with_a_receipt_that_verifies_offline(served: ServedLog) -> None:
    response = await served.append.Append(audit_pb2.AppendRequest(record=record(0), with_proof=True))
    receipt = response.receipt
    verified = verify_receipt(receipt.proof, [served.verifier])
    assert (verified.index, verified.leaf.hash, receipt.created) == (0, receipt.leaf_hash, True)
    assert receipt.name == f"receipts/{verified.leaf.receipt_id}" == f"receipts/rcpt_{0:032x}"


async def test_the_log_stamps_who_delivered_the_record(served: ServedLog) -> None:
    async with open_channel(served.address, peer_name="ethics") as channel:
        from kala.audit.v1 import audit_pb2_grpc

        stub = audit_pb2_grpc.AuditServiceStub(channel)
        response = await stub.Append(audit_pb2.AppendRequest(record=record(0), with_proof=True))
    leaf = verify_receipt(response.receipt.proof, [served.verifier]).leaf.value
    assert (leaf["recorded_by"], leaf["producer"]["id"]) == ("local:ethics", "gateway-0")


async def test_a_batch_keeps_its_order_and_one_checkpoint_covers_it(served: ServedLog) -> None:
    await append(served, record(100))
    response = await append(served, *(record(number) for number in range(5)))
    assert [receipt.index for receipt in response.receipts] == [1, 2, 3, 4, 5]
    assert open_checkpoint(response.checkpoint, [served.verifier]).size == 6
    assert all(verify_receipt(r.proof, [served.verifier]).checkpoint.size == 6 for r in response.receipts)


async def test_openings_prove_what_was_said_and_the_log_keeps_no_plaintext(
    served: ServedLog, log_database: str
) -> None:
    response = await append(served, record(7, payloads=3))
    (receipt,) = response.receipts
    salts = {opening.kind: opening.salt for opening in receipt.openings}
    commitments = {
        c["kind"]: c for c in verify_receipt(receipt.proof, [served.verifier]).leaf.value["commitments"]
    }
    assert set(salts) == set(commitments) == {"request", "released", "derived"}
    for kind, salt in salts.items():
        assert hmac.new(salt, b"secret canary 7", hashlib.sha256).hexdigest() == commitments[kind]["hmac"]
    stored = everything_in(log_database)
    assert receipt.leaf_hash in stored
    assert b"canary" not in stored
    assert salts["request"] not in stored


def everything_in(database: str) -> bytes:
    """Every byte of a log's files, or of its rows."""
    if not is_url(database):
        path = Path(database)
        return b"".join(map(Path.read_bytes, sorted(path.parent.glob(f"{path.name}*"))))
    with psycopg.connect(database) as connection:
        rows = [connection.execute(f"SELECT * FROM {table}".encode()).fetchall() for table in METADATA.tables]
    values = [value for table in rows for row in table for value in row]
    return b"\n".join(value if isinstance(value, bytes) else str(value).encode() for value in values)


async def test_an_append_without_proof_has_none(served: ServedLog) -> None:
    response = await served.append.Append(audit_pb2.AppendRequest(record=record(0)))
    assert (response.receipt.proof, response.receipt.index) == ("", 0)


async def test_the_same_record_again_is_the_same_entry(served: ServedLog) -> None:
    first = await append(served, record(1, payloads=2), record(2))
    again = await append(served, record(0), record(1, payloads=2), record(2), record(2))
    assert [receipt.created for receipt in first.receipts] == [True, True]
    assert [(receipt.index, receipt.created) for receipt in again.receipts] == [
        (2, True),
        (0, False),
        (1, False),
        (1, False),
    ]
    assert [list(receipt.openings) for receipt in again.receipts[1:]] == [[], [], []]
    assert all(
        verify_receipt(receipt.proof, [served.verifier]).index == receipt.index for receipt in again.receipts
    )
    assert served.file.reader.head().size == 3


async def test_the_same_key_with_another_record_is_refused_and_nothing_of_its_batch_is_written(
    served: ServedLog,
) -> None:
    await append(served, record(1))
    with pytest.raises(AlreadyExistsError, match="taken by another record"):
        await append(served, record(5), record(2, key=(1).to_bytes(16, "big")))
    with pytest.raises(AlreadyExistsError):
        await append(served, record(5), record(6, key=(5).to_bytes(16, "big")))
    assert served.file.reader.head().size == 1


async def test_the_same_key_with_other_words_of_the_same_length_is_refused(served: ServedLog) -> None:
    await append(served, record(1, payloads=1))
    changed = record(1, payloads=1)
    changed.payloads[0].data = b"secret canarY 1"
    with pytest.raises(AlreadyExistsError):
        await append(served, changed)
    with pytest.raises(AlreadyExistsError):
        await append(served, record(9, payloads=1), *(_with(record(9, payloads=1), b"secret canarY 9"),))


def _with(made: audit_pb2.Record, data: bytes) -> audit_pb2.Record:
    made.payloads[0].data = data
    return made


async def test_one_caller_s_bad_batch_does_not_touch_another_s(served: ServedLog) -> None:
    await append(served, record(1))
    clash = record(2, key=(1).to_bytes(16, "big"))
    outcomes = await asyncio.gather(
        *(append(served, record(number)) for number in range(10, 20)),
        append(served, clash),
        *(append(served, record(number)) for number in range(20, 30)),
        return_exceptions=True,
    )
    assert [type(outcome).__name__ for outcome in outcomes].count("AlreadyExistsError") == 1
    assert served.file.reader.head().size == 21


async def test_concurrent_claims_of_one_key_create_it_once(served: ServedLog) -> None:
    """A nonce is claimed by its key: only one caller may hear `created`."""
    responses = await asyncio.gather(*(append(served, record(3)) for _ in range(20)))
    assert sum(response.receipts[0].created for response in responses) == 1
    assert {response.receipts[0].index for response in responses} == {0}


@pytest.mark.parametrize("count", [0, 1_025])
async def test_a_batch_holds_one_to_1024_records(served: ServedLog, count: int) -> None:
    with pytest.raises(InvalidArgumentError, match="records"):
        await append(served, *(record(number) for number in range(count)))


async def test_a_malformed_record_is_named_and_nothing_is_written(served: ServedLog) -> None:
    bad = record(1)
    bad.tenant = ""
    with pytest.raises(InvalidArgumentError, match="tenant") as caught:
        await append(served, record(0), bad)
    assert caught.value.field == "tenant"
    assert served.file.reader.head().size == 0


async def test_a_stream_is_answered_in_order(served: ServedLog) -> None:
    async def requests() -> AsyncIterator[audit_pb2.AppendStreamRequest]:
        for number in range(600):
            yield audit_pb2.AppendStreamRequest(record=record(number), with_proof=number % 100 == 0)

    receipts = [response.receipt async for response in served.append.AppendStream(requests())]
    assert [receipt.index for receipt in receipts] == list(range(600))
    assert verify_receipt(receipts[100].proof, [served.verifier]).index == 100


async def test_a_stream_answers_what_came_before_a_malformed_record(served: ServedLog) -> None:
    async def requests() -> AsyncIterator[audit_pb2.AppendStreamRequest]:
        yield audit_pb2.AppendStreamRequest(record=record(0))
        yield audit_pb2.AppendStreamRequest(record=audit_pb2.Record())

    answers = aiter(served.append.AppendStream(requests()))
    assert (await anext(answers)).receipt.index == 0
    with pytest.raises(InvalidArgumentError, match="type"), translated():
        await anext(answers)


async def test_a_caller_that_goes_away_does_not_undo_its_record(served: ServedLog) -> None:
    call = served.append.Append(audit_pb2.AppendRequest(record=record(0)))
    task = asyncio.ensure_future(call)
    await asyncio.sleep(0)
    task.cancel()
    await append(served, record(1))
    assert served.file.reader.head().size in {1, 2}  # never half of one
    assert (await append(served, record(0))).receipts[0].index in {0, 1, 2}


class StuckWriter:
    """A batch writer that waits until it is told to go on."""

    def __init__(self, inner: object) -> None:
        import threading

        self.go = threading.Event()
        self.inner = inner

    def write(self, submissions: list[Submission]) -> list[list[Logged] | KalaError]:
        self.go.wait(10)
        return self.inner.write(submissions)  # type: ignore[attr-defined,no-any-return] # a BatchWriter


async def test_a_full_queue_pushes_back_and_says_when_to_retry(tmp_path: Path) -> None:
    async with served_log(tmp_path / "audit.db", max_pending=3) as served:
        stuck = StuckWriter(served.file.batches)
        served.log._writer = stuck  # type: ignore[assignment] # the one thing that is slow
        waiting = asyncio.gather(*(append(served, record(number)) for number in range(3)))
        while served.log.pending < 3:  # noqa: ASYNC110 - the server's own task fills the queue
            await asyncio.sleep(0.001)
        with pytest.raises(ResourceExhaustedError, match="wait already") as caught:
            await append(served, record(9))
        assert caught.value.retry_after_seconds == 0.5
        stuck.go.set()
        assert len(await waiting) == 3
        assert (await append(served, record(9))).receipts[0].created


async def test_a_stopped_log_refuses(served: ServedLog) -> None:
    await served.log.stop()
    with pytest.raises(UnavailableError):
        await append(served, record(0))


async def test_a_stranger_may_not_append_and_the_log_says_so(served: ServedLog) -> None:
    from kala.audit.v1 import audit_pb2_grpc

    async with open_channel(served.address, peer_name="stranger") as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await audit_pb2_grpc.AuditServiceStub(channel).Append(audit_pb2.AppendRequest(record=record(0)))
    assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
    entry = served.file.reader.entry(0)
    assert entry is not None
    leaf = parse_leaf(entry.leaf).value
    assert (leaf["type"], leaf["recorded_by"], leaf["result"]["code"]) == (
        "rpc.denied",
        "audit",
        "PEER_NOT_ALLOWED",
    )
    assert leaf["attributes"] == [["peer", "local:stranger"]]


@pytest.mark.parametrize("reader", ["console", "cli", "witness"])
async def test_a_part_that_only_reads_may_not_append(served: ServedLog, reader: str) -> None:
    async with open_channel(served.address, peer_name=reader) as channel:
        with pytest.raises(PermissionDeniedError), translated():
            await audit_pb2_grpc.AuditServiceStub(channel).Append(audit_pb2.AppendRequest(record=record(0)))
        await append(served, record(1))
        assert (
            await audit_pb2_grpc.AuditReadServiceStub(channel).GetCheckpoint(audit_pb2.GetCheckpointRequest())
        ).checkpoint


async def test_what_was_served_verifies_as_a_whole(tmp_path: Path) -> None:
    async with served_log(tmp_path / "audit.db") as served:
        await asyncio.gather(
            *(
                append(served, *(record(start + number, payloads=2) for number in range(40)))
                for start in range(0, 800, 40)
            )
        )
    report = verify_database(tmp_path / "audit.db", [served.verifier])
    assert (report.entries, report.payloads) == (800, 1_600)
