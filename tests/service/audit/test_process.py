"""The audit process: strict at start, whole at the end."""

from __future__ import annotations

from pathlib import Path

import grpc
import pytest

from kala.audit.database import verify_database
from kala.audit.leaf import parse_leaf
from kala.audit.receipt import verify_receipt
from kala.audit.v1 import audit_pb2, audit_pb2_grpc
from services.common.channel import open_channel
from tests.fakes.audit_log import record
from tests.fakes.audit_process import AuditProcess
from tests.postgres import own_postgres


async def test_a_stopped_process_leaves_one_verifiable_file(tmp_path: Path) -> None:
    audit = AuditProcess(tmp_path / "audit")
    audit.start()
    async with open_channel(audit.address, peer_name="gateway") as channel:
        stub = audit_pb2_grpc.AuditServiceStub(channel)
        request = audit_pb2.AppendRequest(record=record(0), with_proof=True)
        response = await stub.Append(request, timeout=20, wait_for_ready=True)
        reads = audit_pb2_grpc.AuditReadServiceStub(channel)
        first = await reads.GetEntry(audit_pb2.GetEntryRequest(name="entries/0"))
    assert audit.stop() == 0, audit.output()
    assert verify_receipt(response.receipt.proof, [audit.verifier]).index == 1
    assert parse_leaf(first.entry.leaf).value["action"]["rpc"] == "/audit/start"
    assert not audit.database.with_name("audit.db-wal").exists()
    assert verify_database(audit.database, [audit.verifier], pinned=None).entries == 2


async def test_the_process_itself_lets_only_those_who_act_write(tmp_path: Path) -> None:
    """The servers of other tests are put together by the tests; this one by the service."""
    audit = AuditProcess(tmp_path / "audit")
    audit.start()
    async with open_channel(audit.address, peer_name="console") as channel:
        stub = audit_pb2_grpc.AuditServiceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Append(audit_pb2.AppendRequest(record=record(0)), timeout=20, wait_for_ready=True)
        privacy = audit_pb2_grpc.AuditPrivacyServiceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as erasing:
            await privacy.EraseSubject(audit_pb2.EraseSubjectRequest(), timeout=20)
    assert audit.stop() == 0, audit.output()
    assert caught.value.code() is erasing.value.code() is grpc.StatusCode.PERMISSION_DENIED


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda at: (at / "audit-log.key").write_text("nonsense"), "signing key"),
        (lambda at: (at / "audit-log.key").chmod(0o644), "chmod 600"),
        (lambda at: (at / "audit-kek.key").write_bytes(b"short"), "32 bytes"),
        (lambda at: (at / "audit-kek.key").unlink(), "cannot be read"),
        (lambda at: (at / "audit.db").write_bytes(b"no database" * 500), "not a database"),
    ],
    ids=["key", "open key", "short kek", "no kek", "no database"],
)
def test_a_process_that_cannot_keep_its_promise_does_not_start(
    tmp_path: Path, damage: object, problem: str
) -> None:
    audit = AuditProcess(tmp_path / "audit")
    damage(audit.directory)  # type: ignore[operator] # a function of a path
    audit.start()
    assert audit.process is not None
    assert audit.process.wait(20) == 2
    last = audit.output().strip()
    assert problem in last
    assert "Traceback" not in last


async def test_two_replicas_of_one_log_in_postgresql_answer_for_each_other(
    tmp_path: Path, postgres_url: str
) -> None:
    first = AuditProcess(tmp_path / "first", url=postgres_url)
    second = AuditProcess(tmp_path / "second", url=postgres_url, keys_of=first)
    for replica in (first, second):
        replica.start()
    async with (
        open_channel(first.address, peer_name="gateway") as one,
        open_channel(second.address, peer_name="gateway") as other,
    ):
        for number in range(6):
            stub = audit_pb2_grpc.AuditServiceStub(one if number % 2 else other)
            request = audit_pb2.AppendRequest(record=record(number, payloads=1), with_proof=True)
            response = await stub.Append(request, timeout=20, wait_for_ready=True)
            name = f"entries/{verify_receipt(response.receipt.proof, [first.verifier]).index}"
            for channel in (one, other):
                reads = audit_pb2_grpc.AuditReadServiceStub(channel)
                found = await reads.GetEntry(
                    audit_pb2.GetEntryRequest(name=name), timeout=20, wait_for_ready=True
                )
                assert found.entry.leaf_hash == response.receipt.leaf_hash
                assert verify_receipt(found.proof, [first.verifier]).leaf.hash == found.entry.leaf_hash
    for replica in (first, second):
        assert replica.stop() == 0, replica.output()


@pytest.mark.parametrize("setting", ["fsync", "full_page_writes"])
def test_a_process_over_a_server_that_loses_commits_does_not_start(tmp_path: Path, setting: str) -> None:
    with own_postgres(**{setting: "off"}) as server:
        audit = AuditProcess(tmp_path / "audit", url=server.url())
        audit.start()
        assert audit.process is not None
        assert audit.process.wait(20) == 2
    assert audit.output().strip() == f"the database has {setting} = off, and the log needs 'on'"
