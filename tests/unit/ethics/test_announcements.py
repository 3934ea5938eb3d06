from __future__ import annotations

import datetime as dt
from dataclasses import replace

import pytest

from kala.audit.v1 import audit_pb2
from kala.errors import PermissionDeniedError, UnavailableError
from kala.ethics.constitution import Trust, VerifiedConstitution, verify_constitution
from services.audit.records import MAX_TEXT_CHARS
from services.common.audit_client import Appended, AppendStatus
from services.common.peers import Peer
from services.ethics import announcements
from services.ethics.announcements import LAST_RETRY_SECONDS, REMINDER_SECONDS, Announcements
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


async def test_the_record_says_who_signed_what_it_amends_and_when_it_is_due(
    verified: VerifiedConstitution,
) -> None:
    log = Log()
    manifest = replace(
        verified.manifest, version="2.0", previous=b"\x01" * 32, review_by=dt.date(2027, 1, 31)
    )
    amended = VerifiedConstitution(manifest, {}, ("a", "b"), development=False, threshold=2, trusted_keys=3)
    await Announcements(log, today=lambda: dt.date(2027, 2, 1)).in_force(amended)
    assert facts(log.records[0]) == {
        "constitution.digest": manifest.digest.hex(),
        "constitution.keys": "a b",
        "constitution.previous": "01" * 32,
        "constitution.review": "due",
        "constitution.review_by": "2027-01-31",
        "constitution.signers": "2",
        "constitution.threshold": "2",
        "constitution.trust": "pinned",
        "constitution.trusted_keys": "3",
        "constitution.version": "2.0",
        "reason": "the constitution was verified at start",
    }


async def test_a_first_version_and_many_signers_fit_into_the_record(verified: VerifiedConstitution) -> None:
    log = Log()
    manifest = replace(verified.manifest, review_by=None)
    ids = tuple(f"{number:016x}" for number in range(100))
    many = VerifiedConstitution(manifest, {}, ids, development=False)
    await Announcements(log).in_force(many)
    found = facts(log.records[0])
    assert (found["constitution.previous"], found["constitution.review_by"]) == ("none", "none")
    assert found["constitution.signers"] == "100"
    assert all(len(value) <= MAX_TEXT_CHARS for value in found.values())


@pytest.mark.parametrize(
    ("review_by", "warnings"), [(dt.date(2027, 1, 31), 2), (dt.date(2027, 2, 3), 0), (None, 3)], ids=str
)
async def test_a_review_that_is_due_is_said_every_day_and_stops_nothing(
    verified: VerifiedConstitution,
    review_by: dt.date | None,
    warnings: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said: list[object] = []
    monkeypatch.setattr(announcements.log, "warning", lambda *args, **_: said.append(args), raising=False)
    days = [dt.date(2027, 1, 31), dt.date(2027, 2, 1), dt.date(2027, 2, 2)]
    passed = iter(days)

    async def sleep(seconds: float) -> None:
        assert seconds == REMINDER_SECONDS
        if len(slept) == len(days) - 1:
            raise TimeoutError("the test is over")
        slept.append(seconds)

    slept: list[float] = []
    due = replace(verified, manifest=replace(verified.manifest, review_by=review_by))
    with pytest.raises(TimeoutError):
        await Announcements(None, sleep=sleep, today=lambda: next(passed)).remind_of_review(due)
    assert len(said) == warnings


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
    silent = Announcements(None)
    await silent.in_force(verified)
    await silent.denied("/m", None, PermissionDeniedError("no"))
