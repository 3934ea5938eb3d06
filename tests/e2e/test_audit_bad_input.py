"""A full disk, rivals, clocks that jump and records that no log may take, on the real process over both databases."""

from __future__ import annotations

import asyncio
import os
import resource
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

import psycopg
import pytest

from kala.audit.receipt import verify_receipt
from kala.audit.v1 import audit_pb2, audit_pb2_grpc
from kala.errors import AlreadyExistsError, InvalidArgumentError, UnavailableError
from services.audit.storage.postgres_schema import VERSION_TABLE
from services.common.channel import open_channel
from services.common.status import translated
from tests.audit_proof import rows_of, started, stopped
from tests.fakes.audit_log import NOW, record
from tests.fakes.audit_process import AuditProcess

CALL_SECONDS = 30
LONGEST_LEAF = 65_535

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]


@pytest.fixture(params=["sqlite", "postgres"])
def audit(request: pytest.FixtureRequest, tmp_path: Path) -> AuditProcess:
    url = str(request.getfixturevalue("postgres_url")) if request.param == "postgres" else None
    return AuditProcess(tmp_path / "audit", url=url)


@asynccontextmanager
async def served(audit: AuditProcess) -> AsyncIterator[audit_pb2_grpc.AuditServiceAsyncStub]:
    with started(audit):
        async with open_channel(audit.address, peer_name="gateway") as channel:
            stub = audit_pb2_grpc.AuditServiceStub(channel)
            await append(stub, record(0), wait_for_ready=True)
            yield stub
        await stopped(audit)


async def append(
    stub: audit_pb2_grpc.AuditServiceAsyncStub, *records: audit_pb2.Record, wait_for_ready: bool = False
) -> list[audit_pb2.Receipt]:
    request = audit_pb2.AppendBatchRequest(records=records, with_proof=True)
    with translated():
        response = await stub.AppendBatch(request, timeout=CALL_SECONDS, wait_for_ready=wait_for_ready)
    return list(response.receipts)


async def test_a_taken_key_a_long_leaf_and_a_broken_record_leave_nothing_behind(audit: AuditProcess) -> None:
    long = record(7)
    del long.attributes[:]
    for number in range(64):
        long.attributes.add(key=f"k{number}", value="é" * 1_024)
    async with served(audit) as stub:
        other = record(0)
        other.tenant = "another"
        with pytest.raises(AlreadyExistsError):
            await append(stub, record(5), other)
        with pytest.raises(InvalidArgumentError, match=str(LONGEST_LEAF)):
            await append(stub, record(6), long)
        with pytest.raises(InvalidArgumentError, match="occurred_at"):
            await append(stub, record(8), audit_pb2.Record(**{**as_fields(record(9)), "occurred_at": None}))
        (told,) = await append(stub, record(10))
        assert told.created
    keys = [key for *_, key in rows_of(audit)]
    assert keys[-2:] == [record(0).idempotency_key, record(10).idempotency_key]


def as_fields(made: audit_pb2.Record) -> dict[str, object]:
    return {field.name: value for field, value in made.ListFields()}


async def test_a_producer_s_clock_that_jumps_is_flagged_and_the_log_s_time_never_goes_back(
    audit: AuditProcess,
) -> None:
    async with served(audit) as stub:
        receipts = []
        for number, microseconds in ((1, NOW), (2, 0), (3, 4 * NOW), (4, NOW)):
            made = record(number)
            made.occurred_at.FromMicroseconds(microseconds)
            receipts += await append(stub, made)
    leaves = [verify_receipt(receipt.proof, [audit.verifier]).leaf.value for receipt in receipts]
    assert [leaf["skew_flag"] for leaf in leaves] == [True] * 4
    times = [leaf["recorded_at"] for leaf in leaves]
    assert times == sorted(times)
    assert [receipt.index for receipt in receipts] == sorted(receipt.index for receipt in receipts)


async def test_a_database_of_a_newer_schema_is_refused(audit: AuditProcess) -> None:
    async with served(audit):
        pass
    table = "alembic_version" if audit.url is None else VERSION_TABLE
    change = f"UPDATE {table} SET version_num = '9999'"
    if audit.url is None:
        with closing(sqlite3.connect(audit.database)) as database, database:
            database.execute(change)
    else:
        with psycopg.connect(audit.url) as connection:
            connection.execute(change)
    audit.start()
    assert audit.process is not None
    process = audit.process
    assert await asyncio.to_thread(process.wait, 30) == 2
    assert "9999" in audit.output()


async def test_a_second_writer_of_a_file_is_kept_out_and_one_of_a_server_let_in(
    audit: AuditProcess, tmp_path: Path
) -> None:
    rival = AuditProcess(tmp_path / "rival", url=audit.url or str(audit.database), keys_of=audit)
    async with served(audit) as stub:
        rival.start()
        assert rival.process is not None
        if audit.url is None:
            assert await asyncio.to_thread(rival.process.wait, 30) == 2
            assert "another process writes this log" in rival.output()
            return
        async with open_channel(rival.address, peer_name="gateway") as channel:
            second = audit_pb2_grpc.AuditServiceStub(channel)
            await append(second, record(1), wait_for_ready=True)

            async def race(one: audit_pb2_grpc.AuditServiceAsyncStub, start: int) -> list[audit_pb2.Receipt]:
                return [(await append(one, record(start + n, key=os.urandom(16))))[0] for n in range(40)]

            told = await asyncio.gather(race(stub, 100), race(second, 200))
            # The same record at both, at once: one of them logs it, both tell of the same entry.
            for number in range(300, 310):
                same = record(number)
                one, other = await asyncio.gather(append(stub, same), append(second, same))
                assert one[0].index == other[0].index
                assert [one[0].created, other[0].created].count(True) == 1
        await stopped(rival)
    places = {key: index for index, _, _, key in rows_of(audit)}
    for receipts in told:
        indexes = [receipt.index for receipt in receipts]
        assert indexes == sorted(indexes)
        assert [places[bytes.fromhex(receipt.name[-32:])] for receipt in receipts] == indexes


async def append_until_it_fails(
    stub: audit_pb2_grpc.AuditServiceAsyncStub, told: list[audit_pb2.Receipt]
) -> None:
    for number in range(1, 1_000):
        told += await append(stub, record(number, payloads=1))


async def test_a_full_disk_loses_nothing_and_the_log_goes_on_when_there_is_room(tmp_path: Path) -> None:
    """No file of the process may grow beyond a limit, which is what a full disk is to a log in a file."""
    audit = AuditProcess(tmp_path / "audit")
    told: list[audit_pb2.Receipt] = []
    async with served(audit) as stub:
        assert audit.process is not None
        wal = audit.database.with_name("audit.db-wal")
        room = wal.stat().st_size + 200_000
        resource.prlimit(audit.process.pid, resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))
        with pytest.raises(UnavailableError, match="disk"):
            await append_until_it_fails(stub, told)
        resource.prlimit(
            audit.process.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
        )
        told += await append(stub, *(record(number, payloads=1) for number in range(len(told) + 1, 200)))
    places = {key: index for index, _, _, key in rows_of(audit)}
    assert len(told) > 10
    assert [places[bytes.fromhex(receipt.name[-32:])] for receipt in told] == [r.index for r in told]
