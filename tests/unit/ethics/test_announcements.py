from __future__ import annotations

import pytest

from kala.audit.v1 import audit_pb2
from kala.errors import PermissionDeniedError, UnavailableError
from kala.ethics.constitution import Trust, VerifiedConstitution, verify_constitution
from services.common.audit_client import Appended, AppendStatus
from services.common.peers import Peer
from services.ethics.announcements import LAST_RETRY_SECONDS, Announcements
from tests.unit.ethics.conftest import CONSTITUTION


class Log:
    """An audit writer that is away for a number of calls."""

    def __init__(self, away: int = 0) -> None:
        self.away = away
        self.records: list[audit_pb2.Record] = []
        self.slept: list[float] = []

    async def append(self, record: audit_pb2.Record) -> Appended:
        if self.away:
            self.away -= 1
            raise UnavailableError("away")
        self.records.append(record)
        return Appended(b"k" * 16, AppendStatus.LOGGED)

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)


@pytest.fixture(scope="module")
def verified() -> VerifiedConstitution:
    return verify_constitution(CONSTITUTION, Trust.development())


def facts(record: audit_pb2.Record) -> dict[str, str]:
    return {attribute.key: attribute.value for attribute in record.attributes}


async def test_the_constitution_in_force_is_recorded_with_its_banner(verified: VerifiedConstitution) -> None:
    log = Log()
    await Announcements(log).in_force(verified)
    (record,) = log.records
    assert record.type == "service.event"
    assert facts(record)["constitution.digest"] == verified.digest.hex()
    assert facts(record)["constitution.trust"] == "development"
    assert facts(record)["reason"].startswith("DEVELOPMENT CONSTITUTION")


async def test_a_pinned_constitution_is_recorded_without_a_banner(verified: VerifiedConstitution) -> None:
    log = Log()
    pinned = VerifiedConstitution(verified.manifest, verified.files, verified.key_ids, development=False)
    await Announcements(log).in_force(pinned)
    assert facts(log.records[0])["constitution.trust"] == "pinned"
    assert "DEVELOPMENT" not in facts(log.records[0])["reason"]


async def test_a_log_that_is_away_is_asked_again_with_growing_patience(
    verified: VerifiedConstitution,
) -> None:
    log = Log(away=9)
    await Announcements(log, sleep=log.sleep).in_force(verified)
    assert len(log.records) == 1
    assert log.slept[:3] == [0.5, 1.0, 2.0]
    assert max(log.slept) == LAST_RETRY_SECONDS


@pytest.mark.parametrize(("peer", "name"), [(Peer("local:tools"), "local:tools"), (None, "unknown")])
async def test_a_denied_call_is_recorded_with_its_peer(peer: Peer | None, name: str) -> None:
    log = Log()
    await Announcements(log).denied(
        "/kala.ethics.v1.EthicsService/CheckAction", peer, PermissionDeniedError("no")
    )
    (record,) = log.records
    assert (record.type, record.result.status, record.result.code) == (
        "rpc.denied",
        "refused",
        "PERMISSION_DENIED",
    )
    assert facts(record) == {"peer": name}


async def test_a_denial_that_cannot_be_recorded_stays_a_denial() -> None:
    await Announcements(Log(away=1)).denied("/m", None, PermissionDeniedError("no"))


async def test_without_a_log_nothing_is_recorded_and_nothing_waits(verified: VerifiedConstitution) -> None:
    announcements = Announcements(None)
    await announcements.in_force(verified)
    await announcements.denied("/m", None, PermissionDeniedError("no"))
