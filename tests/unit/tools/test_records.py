"""A clearance's nonce is claimed once, over all replicas; nothing of tools waits in a spool but a denial."""

from __future__ import annotations

import pytest

from kala.audit.v1 import audit_pb2
from kala.common.v1.clearance_pb2 import ClearanceClaims, Principal
from kala.errors import AlreadyExistsError, ClearanceError, KalaError, PermissionDeniedError, UnavailableError
from kala.tools.v1 import tools_pb2 as pb
from services.common.audit_types import Appended, AppendStatus, AuditPolicy
from services.common.clearance import VerifiedClearance
from services.common.peers import Peer
from services.common.sealing import pack
from services.common.service_records import Facts
from services.tools.records import ADMINISTRATIVE, Records

RPC = "/kala.tools.v1.ToolsService/Execute"


class Log:
    """A log that answers what a test says."""

    def __init__(self, *, created: bool = True, error: KalaError | None = None) -> None:
        self.created, self.error = created, error
        self.appended: list[tuple[audit_pb2.Record, bytes | None, AuditPolicy]] = []

    async def append(
        self, record: audit_pb2.Record, *, key: bytes | None = None, policy: AuditPolicy
    ) -> Appended:
        if self.error is not None:
            raise self.error
        self.appended.append((record, key, policy))
        return Appended(key or b"k" * 16, AppendStatus.LOGGED, created=self.created)


def clearance() -> VerifiedClearance:
    claims = ClearanceClaims(
        nonce=b"n" * 16,
        decision_id="d" * 32,
        principal=Principal(id="keys/a", tenant="acme", subject="5" * 64),
    )
    return VerifiedClearance(claims, pack(pb.ExecuteAction(tool="shell")))


async def test_the_nonce_is_the_claims_key_and_the_execution_is_random() -> None:
    log = Log()
    records = Records(log)
    first = await records.claim(clearance(), rpc=RPC, tool="shell")
    second = await records.claim(clearance(), rpc=RPC, tool="shell")
    assert [key for _, key, _ in log.appended] == [b"n" * 16] * 2
    assert first.execution_id != second.execution_id
    assert {policy for _, _, policy in log.appended} == {AuditPolicy.FAIL_CLOSED}
    record = log.appended[0][0]
    assert (record.tenant, record.subject_key_id, record.action.tool) == ("acme", "5" * 64, "shell")


@pytest.mark.parametrize(
    "log", [Log(created=False), Log(error=AlreadyExistsError("another record"))], ids=["same", "other"]
)
async def test_a_nonce_that_the_log_knows_is_replayed(log: Log) -> None:
    with pytest.raises(ClearanceError) as caught:
        await Records(log).claim(clearance(), rpc=RPC)
    assert caught.value.reason == "CLEARANCE_REPLAYED"


async def test_without_the_log_there_is_no_claim_and_no_end() -> None:
    records = Records(Log())
    claim = await records.claim(clearance(), rpc=RPC)
    away = Records(Log(error=UnavailableError("the log is away")))
    with pytest.raises(UnavailableError):
        await away.claim(clearance(), rpc=RPC)
    with pytest.raises(UnavailableError):
        await away.ended(claim, Facts("ok"))


async def test_the_end_points_at_the_claim() -> None:
    log = Log()
    records = Records(log)
    claim = await records.claim(clearance(), rpc=RPC)
    await records.ended(claim, Facts("error", "TIMEOUT", 1.5, attributes={"run": "runs/local.x"}))
    end = log.appended[-1][0]
    assert (end.intent, end.execution_id) == (claim.key, claim.execution_id)
    assert (end.result.status, end.result.code, end.result.duration_ms) == ("error", "TIMEOUT", 1500)


async def test_a_denial_that_cannot_be_logged_stays_a_denial() -> None:
    records = Records(Log(error=UnavailableError("the log is away")))
    await records.denied(RPC, Peer("local:gateway"), PermissionDeniedError("no"))


async def test_administration_fails_without_the_log() -> None:
    records = Records(Log(error=UnavailableError("the log is away")))
    with pytest.raises(UnavailableError):
        await records.administrative("/kala.tools.v1.ToolsService/SelfTest", Peer("local:gateway"), True)


def test_the_self_test_is_administration() -> None:
    assert {"/kala.tools.v1.ToolsService/SelfTest"} == ADMINISTRATIVE
