"""The log's key is replaced by settings and restarts alone, and the log says so."""

from __future__ import annotations

from pathlib import Path

from kala.audit.checkpoint import open_checkpoint
from kala.audit.database import verify_database
from kala.audit.leaf import parse_leaf
from kala.audit.note import Signer, Verifier
from kala.audit.v1 import audit_pb2, audit_pb2_grpc
from services.common.channel import open_channel
from tests.fakes.audit_process import ORIGIN, AuditProcess


async def run_once(audit: AuditProcess) -> tuple[str, list[tuple[str, dict[str, str]]]]:
    """Starts and stops the service; its newest checkpoint, and what it says of itself in all its entries."""
    audit.start()
    async with open_channel(audit.address, peer_name="gateway") as channel:
        reads = audit_pb2_grpc.AuditReadServiceStub(channel)
        found = await reads.GetCheckpoint(audit_pb2.GetCheckpointRequest(), timeout=20, wait_for_ready=True)
        page = await reads.Query(audit_pb2.QueryRequest(), timeout=20)
    assert audit.stop() == 0, audit.output()
    leaves = [parse_leaf(entry.leaf).value for entry in page.entries]
    said = [
        (leaf["action"]["rpc"], dict(leaf["attributes"]))
        for leaf in leaves
        if leaf["type"] == "service.event"
    ]
    return found.checkpoint, said


async def test_a_key_is_replaced_by_three_restarts(tmp_path: Path) -> None:
    audit = AuditProcess(tmp_path / "audit")
    old, current = audit.verifier, audit.directory / "audit-log.key"
    following = audit.directory / "audit-log-next.key"
    new = Signer.of(ORIGIN, b"n" * 32)
    await run_once(audit)

    following.touch(mode=0o600)
    following.write_text(new.private_text())
    audit.environment = {"KALA_AUDIT_NEXT_LOG_KEY_FILE": str(following)}
    both, said = await run_once(audit)
    assert open_checkpoint(both, [old]) == open_checkpoint(both, [new.verifier])
    assert said[1] == ("/audit/key-announced", {"current": str(old), "next": str(new.verifier)})

    following.replace(current)
    audit.environment = {}
    alone, said = await run_once(audit)
    assert open_checkpoint(alone, [new.verifier]).size > open_checkpoint(both, [old]).size
    assert said[3] == (
        "/audit/key-retired",
        {"current": str(new.verifier), "retired": old.key_id.hex()},
    )
    _, said = await run_once(audit)
    assert [rpc for rpc, _ in said].count("/audit/key-announced") == 1
    assert [rpc for rpc, _ in said].count("/audit/key-retired") == 1
    trusted: list[Verifier] = [old, new.verifier]
    assert verify_database(audit.database, trusted).checkpoint.origin == ORIGIN
