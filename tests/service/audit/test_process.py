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
