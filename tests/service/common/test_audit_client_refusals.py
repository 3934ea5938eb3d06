"""Records that the log refuses or breaks over, that a spool has no room for, or whose subject was erased."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from kala.audit.v1 import audit_pb2, audit_pb2_grpc
from kala.errors import DataLossError, UnavailableError
from services.common.audit_client import AppendStatus, AuditPolicy, Payload, receipt_id
from services.common.server import serving
from services.common.settings import GrpcServerSettings
from services.common.spool import Spool
from tests.fakes.audit_server import served_log
from tests.fakes.audit_writing import KEY, event, sequences, until, writing


@pytest.fixture
def spool(tmp_path: Path) -> AsyncIterator[Spool]:
    opened = Spool(tmp_path / "spool", KEY)
    yield opened  # type: ignore[misc] # a plain generator
    opened.close()


@pytest.fixture
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    directory = tmp_path_factory.mktemp("s")
    directory.chmod(0o700)
    return f"unix:{directory}/a"


async def test_a_full_spool_fails_closed(tmp_path: Path, address: str) -> None:
    spool = Spool(tmp_path / "spool", KEY, max_bytes=2_000, segment_bytes=1_000)
    async with writing(address, spool) as writer:
        assert (await writer.append(event("x" * 100))).status is AppendStatus.SPOOLED
        with pytest.raises(UnavailableError, match="is full") as caught:
            await asyncio.gather(*(writer.append(event("x" * 100)) for _ in range(20)))
        assert caught.value.reason == "AUDIT_UNAVAILABLE"
        assert 0 < writer.spooled < 20
    spool.close()


async def test_a_spooled_record_that_the_log_refuses_is_set_aside_and_blocks_nothing(
    tmp_path: Path, address: str, spool: Spool
) -> None:
    async with writing(address, spool) as writer:
        await writer.append(event("good"))
        await writer.append(audit_pb2.Record(type="NOT A TYPE", tenant="default"))
        await writer.append(event("also good"))
        async with served_log(tmp_path / "audit.db", address=address):
            done = await writer.append(event("last"), policy=AuditPolicy.FAIL_CLOSED)
            assert done.index == 3  # the two good ones, and the notice that names the bad one
    with closing(Spool(tmp_path / "spool" / "rejected", KEY)) as aside:
        assert len(aside) == 1


def damage_keys(path: Path) -> None:
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("UPDATE subject_key SET wrapped = zeroblob(60)")


def of_subject(subject: str, kind: str = "service.event") -> audit_pb2.Record:
    made = audit_pb2.Record(type=kind, tenant="default", subject_key_id=subject)
    made.action.rpc = "/kala.inference.v1.InferenceService/Chat"
    return made


def leaves(path: Path) -> list[dict[str, Any]]:
    with closing(sqlite3.connect(path)) as database:
        return [json.loads(leaf) for (leaf,) in database.execute("SELECT leaf FROM entry ORDER BY idx")]


async def test_an_outcome_whose_subject_s_key_is_damaged_ends_as_a_named_gap_and_blocks_nothing(
    tmp_path: Path, address: str, spool: Spool
) -> None:
    """The log answers DATA_LOSS for that subject for ever; the spool used to wait for another answer for ever."""
    path, subject = tmp_path / "audit.db", f"{7:064x}"
    content = [Payload("request", b"hello")]
    async with served_log(path, address=address), writing(address) as writer:
        intent = await writer.append(of_subject(subject, "chat.intent"), payloads=content)
    damage_keys(path)
    async with writing(address, spool) as writer:
        outcome = of_subject(subject, "chat.outcome")
        outcome.intent = intent.key
        refused = await writer.append(outcome, payloads=content)
        behind = await writer.append(event("behind"))
        assert {refused.status, behind.status} == {AppendStatus.SPOOLED}
        async with served_log(path, address=address) as served:
            await writer.append(event("last"), policy=AuditPolicy.FAIL_CLOSED)
            gaps = await served.read.ListGaps(audit_pb2.ListGapsRequest(intent_age={"seconds": 0}))  # type: ignore[arg-type] # mypy-protobuf lacks it
    logged = leaves(path)
    (notice,) = [leaf for leaf in logged if leaf["type"] == "record.refused"]
    assert dict(notice["attributes"]) == {
        "refused.receipt": refused.receipt_id,
        "refused.type": "chat.outcome",
        "refused.boot": waiting_boot(logged),
        "refused.sequence": "1",
    }
    assert (notice["intent"], notice["result"]["code"]) == (intent.key.hex(), "AUDIT_RECORD_REFUSED")
    assert {(gap.kind, gap.entry, gap.first_missing) for gap in gaps.gaps} == {
        (audit_pb2.GAP_KIND_UNMATCHED_INTENT, "entries/0", 0),
        (audit_pb2.GAP_KIND_SEQUENCE_HOLE, "", 1),
    }
    with closing(Spool(tmp_path / "spool" / "rejected", KEY)) as aside:
        assert len(aside) == 1


def waiting_boot(logged: list[dict[str, Any]]) -> str:
    """The boot of the writer whose records waited."""
    (last,) = [leaf for leaf in logged if ["note", "last"] in leaf["attributes"]]
    return str(last["producer"]["boot"])


async def test_a_record_refused_to_its_caller_fails_and_is_not_spooled(
    tmp_path: Path, address: str, spool: Spool
) -> None:
    path, subject, content = tmp_path / "audit.db", f"{7:064x}", [Payload("request", b"hello")]
    async with served_log(path, address=address), writing(address) as writer:
        await writer.append(of_subject(subject), payloads=content)
    damage_keys(path)
    async with served_log(path, address=address), writing(address, spool) as writer:
        outcomes = await asyncio.gather(
            writer.append(event("before")),
            writer.append(of_subject(subject), payloads=content),
            writer.append(event("after")),
            return_exceptions=True,
        )
        assert isinstance(outcomes[1], DataLossError)
        assert [outcomes[0].index, outcomes[2].index] == [1, 2]  # type: ignore[union-attr] # not errors
        assert writer.spooled == 0


class MoodyLog(audit_pb2_grpc.AuditServiceServicer):
    """Breaks over every batch that holds a record of a type that is in `hated`, with an error of no particular kind."""

    def __init__(self, hated: set[str]) -> None:
        self.hated = hated
        self.logged: list[str] = []
        self.calls = 0

    async def AppendBatch(  # noqa: N802 - the contract's name
        self, request: audit_pb2.AppendBatchRequest, _context: object
    ) -> audit_pb2.AppendBatchResponse:
        self.calls += 1
        types = [record.type for record in request.records]
        if self.hated & {*types, "*"}:
            raise RuntimeError("a bug")
        self.logged += types
        receipts = [
            audit_pb2.Receipt(name=receipt_id(record.idempotency_key), created=True, index=len(self.logged))
            for record in request.records
        ]
        return audit_pb2.AppendBatchResponse(receipts=receipts, checkpoint="x")


@asynccontextmanager
async def moody_log(address: str, *hated: str) -> AsyncIterator[MoodyLog]:
    moody = MoodyLog(set(hated))
    register = partial(audit_pb2_grpc.add_AuditServiceServicer_to_server, moody)
    settings = GrpcServerSettings(address=address, allowed_peers=("gateway",), drain_seconds=0)
    async with serving(settings, [register]) as server:
        await server.set_serving()
        yield moody


async def test_a_record_over_which_the_log_breaks_is_set_aside_once_another_is_taken(
    tmp_path: Path, address: str, spool: Spool
) -> None:
    async with writing(address, spool) as writer:
        for kind in ("good.one", "bad.one", "good.two"):
            await writer.append(audit_pb2.Record(type=kind, tenant="default"))
        async with moody_log(address, "bad.one") as moody:
            await writer.append(event("last"), policy=AuditPolicy.FAIL_CLOSED)
    assert moody.logged == ["good.one", "record.refused", "good.two", "service.event"]
    with closing(Spool(tmp_path / "spool" / "rejected", KEY)) as aside:
        (kept,) = aside.peek(2, 10_000)
        assert audit_pb2.Record.FromString(kept).type == "bad.one"


async def test_a_log_that_breaks_over_everything_gets_nothing_set_aside(
    tmp_path: Path, address: str, spool: Spool
) -> None:
    async with writing(address, spool) as writer:
        for number in range(3):
            await writer.append(event(str(number)))
        async with moody_log(address, "*") as moody:
            await until(lambda: moody.calls > 6)
            assert writer.spooled == 3
            moody.hated.clear()
            await until(lambda: not writer.spooled)
        # A log that recovers between a record and its notice takes both; the record is then not set aside.
        assert [kind for kind in moody.logged if kind != "record.refused"] == ["service.event"] * 3
    assert not (tmp_path / "spool" / "rejected").exists()


async def test_an_erased_subject_s_waiting_content_never_reaches_the_log_or_stays_in_a_file(
    tmp_path: Path, address: str, spool: Spool
) -> None:
    path, subject, other = tmp_path / "audit.db", f"{7:064x}", f"{8:064x}"
    async with writing(address, spool) as writer:
        for name in (subject, other, subject):
            await writer.append(of_subject(name), payloads=[Payload("request", b"canary " + name.encode())])
        spool.set_aside(spool.peek(1, 1)[0])
        before = spooled_bytes(tmp_path)
        assert await writer.erase_subject(subject, "another tenant") == 0
        assert await writer.erase_subject(subject, "default") == 3
        assert not before & spooled_bytes(tmp_path)
        assert await writer.erase_subject(subject, "default") == 0
        async with served_log(path, address=address):
            await writer.append(event("last"), policy=AuditPolicy.FAIL_CLOSED)
    assert [
        (leaf["subject_key_id"], len(leaf["commitments"]), leaf["attributes"]) for leaf in leaves(path)[:3]
    ] == [
        (subject, 0, [["content_erased", "true"]]),
        (other, 1, []),
        (subject, 0, [["content_erased", "true"]]),
    ]
    assert [number for _, number in sequences(path)] == [1, 2, 3, 4]


def spooled_bytes(directory: Path) -> set[bytes]:
    """Every 16 bytes of the segments' frames, wherever they lie."""
    found: set[bytes] = set()
    for path in (directory / "spool").rglob("*.spool"):
        data = path.read_bytes()[64:]
        found.update(data[at : at + 16] for at in range(len(data) - 15))
    return found


async def test_without_a_spool_there_is_nothing_to_erase(address: str) -> None:
    async with writing(address) as writer:
        assert await writer.erase_subject(f"{7:064x}", "default") == 0


class ForgetfulLog(audit_pb2_grpc.AuditServiceServicer):
    """Answers every batch, and names nothing in it."""

    async def AppendBatch(  # noqa: N802 - the contract's name
        self, _request: audit_pb2.AppendBatchRequest, _context: object
    ) -> audit_pb2.AppendBatchResponse:
        return audit_pb2.AppendBatchResponse()


async def test_an_answer_that_names_no_record_acknowledges_none(address: str, spool: Spool) -> None:
    register = partial(audit_pb2_grpc.add_AuditServiceServicer_to_server, ForgetfulLog())
    settings = GrpcServerSettings(address=address, allowed_peers=("gateway",), drain_seconds=0)
    async with serving(settings, [register]) as server, writing(address, spool) as writer:
        await server.set_serving()
        assert (await writer.append(event())).status is AppendStatus.SPOOLED
        with pytest.raises(UnavailableError):
            await writer.append(event(), policy=AuditPolicy.FAIL_CLOSED, deadline_seconds=0.5)
        assert writer.spooled == 1
