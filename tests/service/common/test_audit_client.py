"""The audit writer against a real log: in order, exactly once, through outages, and never a silent drop."""

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

from kala.audit.receipt import verify_receipt
from kala.audit.v1 import audit_pb2, audit_pb2_grpc
from kala.errors import AlreadyExistsError, DataLossError, InvalidArgumentError, UnavailableError
from services.common.audit_client import AppendStatus, AuditPolicy, AuditWriter, Payload, new_key, receipt_id
from services.common.channel import open_channel
from services.common.server import serving
from services.common.settings import GrpcServerSettings
from services.common.spool import MAX_RECORD_BYTES, Spool
from tests.fakes.audit_server import served_log

KEY = b"k" * 32


def event(note: str = "") -> audit_pb2.Record:
    made = audit_pb2.Record(type="service.event", tenant="default")
    made.attributes.add(key="note", value=note)
    return made


@asynccontextmanager
async def writing(address: str, spool: Spool | None = None, **options: float) -> AsyncIterator[AuditWriter]:
    async with (
        open_channel(address, peer_name="gateway") as channel,
        AuditWriter(channel, producer_id="gateway-0", spool=spool, **options) as writer,  # type: ignore[arg-type] # numbers
    ):
        yield writer


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


def sequences(path: Path) -> list[tuple[str, int]]:
    with closing(sqlite3.connect(path)) as database:
        return [
            (bytes(boot).hex(), number)
            for boot, number in database.execute("SELECT boot, sequence FROM entry ORDER BY idx")
        ]


async def test_an_appended_record_has_a_receipt_and_openings(tmp_path: Path) -> None:
    async with served_log(tmp_path / "audit.db") as served, writing(served.address) as writer:
        key = new_key()
        done = await writer.append(
            event(), payloads=[Payload("request", b"hello"), Payload("derived", b"x", store=False)], key=key
        )
        assert (done.status, done.created, done.index, done.receipt_id) == (
            AppendStatus.LOGGED,
            True,
            0,
            receipt_id(key),
        )
        leaf = verify_receipt(done.receipt or "", [served.verifier]).leaf
        assert leaf.value["producer"]["id"] == "gateway-0"
        assert leaf.value["occurred_at"] < leaf.value["recorded_at"] or leaf.value["skew_flag"]
        assert set(done.openings) == {"request", "derived"}
        again = await writer.append(audit_pb2.Record.FromString(event().SerializeToString()), key=new_key())
        assert (again.index, writer.spooled, writer.ready()) == (1, 0, True)


async def test_the_caller_s_record_is_not_touched(tmp_path: Path) -> None:
    async with served_log(tmp_path / "audit.db") as served, writing(served.address) as writer:
        mine = event()
        before = mine.SerializeToString()
        await writer.append(mine, payloads=[Payload("request", b"hello")])
        assert mine.SerializeToString() == before


async def test_concurrent_records_share_calls_and_keep_their_order(tmp_path: Path) -> None:
    async with served_log(tmp_path / "audit.db") as served, writing(served.address) as writer:
        done = await asyncio.gather(*(writer.append(event(str(number))) for number in range(500)))
        assert [one.index for one in done] == list(range(500))
        with closing(sqlite3.connect(served.file.path)) as database:
            (checkpoints,) = database.execute("SELECT count(*) FROM checkpoint").fetchone()
        assert checkpoints < 20
        assert [number for _, number in sequences(served.file.path)] == list(range(1, 501))


async def test_one_bad_record_does_not_take_its_neighbours_with_it(tmp_path: Path) -> None:
    async with served_log(tmp_path / "audit.db") as served, writing(served.address) as writer:
        bad = audit_pb2.Record(type="NOT A TYPE", tenant="default")
        outcomes = await asyncio.gather(
            writer.append(event()), writer.append(bad), writer.append(event()), return_exceptions=True
        )
        assert isinstance(outcomes[1], InvalidArgumentError)
        assert [outcome.index for outcome in (outcomes[0], outcomes[2])] == [0, 1]  # type: ignore[union-attr] # not errors


async def test_a_key_that_is_taken_is_an_error(tmp_path: Path) -> None:
    async with served_log(tmp_path / "audit.db") as served, writing(served.address) as writer:
        key = new_key()
        await writer.append(event("one"), key=key)
        with pytest.raises(AlreadyExistsError):
            await writer.append(event("two"), key=key)


async def test_without_a_log_a_fail_closed_record_fails_and_a_spooled_one_is_kept(
    address: str, spool: Spool
) -> None:
    async with writing(address, spool, deadline_seconds=2.0) as writer:
        done, refused = await asyncio.gather(
            writer.append(event("kept"), policy=AuditPolicy.SPOOL),
            writer.append(event("refused"), policy=AuditPolicy.FAIL_CLOSED),
            return_exceptions=True,
        )
        assert not isinstance(done, BaseException)
        assert (done.status, done.index, done.receipt, done.created) == (
            AppendStatus.SPOOLED,
            None,
            None,
            False,
        )
        assert isinstance(refused, UnavailableError)
        assert refused.reason == "AUDIT_UNAVAILABLE"
        assert (writer.spooled, writer.ready()) == (1, True)


async def test_without_a_spool_everything_fails_closed(address: str) -> None:
    async with writing(address, deadline_seconds=0.3) as writer:
        with pytest.raises(UnavailableError, match=r"did not answer within 0\.3 s"):
            await writer.append(event(), policy=AuditPolicy.SPOOL)
        assert not writer.ready()


async def test_the_spool_drains_once_in_order_with_new_records_behind(
    tmp_path: Path, address: str, spool: Spool
) -> None:
    path = tmp_path / "audit.db"
    async with writing(address, spool) as writer:
        spooled = [
            await writer.append(event(str(number)), payloads=[Payload("request", b"x")])
            for number in range(40)
        ]
        assert {one.status for one in spooled} == {AppendStatus.SPOOLED}
        async with served_log(path, address=address) as served:
            behind = [await writer.append(event(str(number))) for number in range(40, 60)]
            closed = await writer.append(event("last"), policy=AuditPolicy.FAIL_CLOSED)
            assert (closed.status, closed.index) == (AppendStatus.LOGGED, 60)
            assert writer.spooled == 0
            assert len({one.key for one in spooled + behind}) == 60
            names = [receipt_id(one.key) for one in spooled + behind]
            logged = [
                (
                    await served.read.GetReceipt(audit_pb2.GetReceiptRequest(name=f"receipts/{name}"))
                ).receipt.index
                for name in names
            ]
            assert logged == list(range(60))
    assert [number for _, number in sequences(path)] == list(range(1, 62))


async def test_what_a_killed_process_spooled_is_delivered_by_the_next(tmp_path: Path, address: str) -> None:
    first = Spool(tmp_path / "spool", KEY)
    async with writing(address, first, boot=b"first---") as writer:  # type: ignore[arg-type] # bytes
        keys = [(await writer.append(event(str(number)))).key for number in range(5)]
    first.close()
    second = Spool(tmp_path / "spool", KEY)
    async with (
        served_log(tmp_path / "audit.db", address=address) as served,
        writing(address, second, boot=b"second--") as writer,  # type: ignore[arg-type] # bytes
    ):
        done = await writer.append(event("after"), policy=AuditPolicy.FAIL_CLOSED)
        assert done.index == 5
        assert list(served.file.reader.by_keys(keys)) == keys
    second.close()
    boots = [bytes.fromhex(boot) for boot, _ in sequences(tmp_path / "audit.db")]
    assert boots == [b"first---"] * 5 + [b"second--"]


async def test_records_that_come_again_after_a_crash_are_logged_once(tmp_path: Path, address: str) -> None:
    """A crash between delivery and deletion leaves the segment; its records have the same keys."""
    import shutil

    spool = Spool(tmp_path / "spool", KEY)
    async with writing(address, spool) as writer:
        for number in range(5):
            await writer.append(event(str(number)))
        shutil.copytree(tmp_path / "spool", tmp_path / "copy")
        async with served_log(tmp_path / "audit.db", address=address):
            await writer.append(event("last"), policy=AuditPolicy.FAIL_CLOSED)
            spool.close()
            again = Spool(tmp_path / "copy", KEY)
            async with writing(address, again) as second:
                await second.append(event("other"), policy=AuditPolicy.FAIL_CLOSED)
            again.close()
    assert len(sequences(tmp_path / "audit.db")) == 7


async def test_an_outage_under_load_loses_nothing(tmp_path: Path, address: str, spool: Spool) -> None:
    path, keys, stop = tmp_path / "audit.db", [], asyncio.Event()

    async def produce(writer: AuditWriter, name: int) -> None:
        number = 0
        while not stop.is_set():
            keys.append((await writer.append(event(f"{name}-{number}"))).key)
            number += 1

    async with writing(address, spool) as writer:
        tasks = [asyncio.create_task(produce(writer, name)) for name in range(4)]
        for _ in range(2):
            async with served_log(path, address=address):
                await _until(lambda: not writer.spooled and len(keys) > 50)
            count = len(keys)
            await _until(lambda count=count: len(keys) > count + 50)
        stop.set()
        await asyncio.gather(*tasks)
        async with served_log(path, address=address) as served:
            await _until(lambda: not writer.spooled)
            assert len(served.file.reader.by_keys(keys)) == len(keys) == len(set(keys))
    numbers = [number for _, number in sequences(path)]
    assert numbers == list(range(1, len(keys) + 1))


async def _until(condition: object) -> None:
    async with asyncio.timeout(20):
        while not condition():  # type: ignore[operator] # a predicate  # noqa: ASYNC110
            await asyncio.sleep(0.005)


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
            await _until(lambda: moody.calls > 6)
            assert writer.spooled == 3
            moody.hated.clear()
            await _until(lambda: not writer.spooled)
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


async def test_a_cancelled_caller_does_not_take_its_record_back(
    tmp_path: Path, address: str, spool: Spool
) -> None:
    async with writing(address, spool) as writer:
        task = asyncio.create_task(writer.append(event()))
        await asyncio.sleep(0)
        task.cancel()
        await _until(lambda: writer.spooled == 1)


async def test_leaving_the_writer_delivers_what_waits(tmp_path: Path) -> None:
    async with served_log(tmp_path / "audit.db") as served:
        async with writing(served.address) as writer:
            tasks = [asyncio.create_task(writer.append(event(str(number)))) for number in range(50)]
            await asyncio.sleep(0)
        assert len(await asyncio.gather(*tasks)) == 50
        with pytest.raises(UnavailableError, match="closed"):
            await writer.append(event())


async def test_a_log_that_hangs_does_not_hold_a_spooled_record_for_long(address: str, spool: Spool) -> None:
    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with closing(writer):
            while await reader.read(4_096):
                pass

    server = await asyncio.start_unix_server(hang, address.removeprefix("unix:"))
    async with server:
        async with writing(address, spool, deadline_seconds=1.0) as writer:
            done = await writer.append(event())
            assert done.status is AppendStatus.SPOOLED
        server.close()
        await asyncio.sleep(0.05)  # the closed connections unwind


async def test_a_record_that_no_message_can_carry_is_refused_at_once(address: str, spool: Spool) -> None:
    async with writing(address, spool) as writer:
        with pytest.raises(InvalidArgumentError, match="at most"):
            await writer.append(event(), payloads=[Payload("request", bytes(MAX_RECORD_BYTES))])


async def test_a_writer_that_broke_is_not_ready_and_fails_closed(
    address: str, spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with writing(address, spool, deadline_seconds=0.2) as writer:
        monkeypatch.setattr(writer, "_take_batch", _broken)
        with pytest.raises(UnavailableError):
            await writer.append(event())
        assert not writer.ready()


def _broken() -> None:
    raise RuntimeError("a bug")


def test_a_receipt_id_is_the_key_in_hex() -> None:
    assert receipt_id(bytes(15) + b"\x01") == f"rcpt_{1:032x}"


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
