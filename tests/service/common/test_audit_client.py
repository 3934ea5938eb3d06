"""The audit writer against a real log: in order, exactly once, through outages, and never a silent drop."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import pytest

from kala.audit.receipt import verify_receipt
from kala.audit.v1 import audit_pb2
from kala.errors import AlreadyExistsError, InvalidArgumentError, UnavailableError
from services.common.audit_client import AppendStatus, AuditPolicy, AuditWriter, Payload, new_key, receipt_id
from services.common.spool import MAX_RECORD_BYTES, Spool
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
                await until(lambda: not writer.spooled and len(keys) > 50)
            count = len(keys)
            await until(lambda count=count: len(keys) > count + 50)
        stop.set()
        await asyncio.gather(*tasks)
        async with served_log(path, address=address) as served:
            await until(lambda: not writer.spooled)
            assert len(served.file.reader.by_keys(keys)) == len(keys) == len(set(keys))
    numbers = [number for _, number in sequences(path)]
    assert numbers == list(range(1, len(keys) + 1))


async def test_a_cancelled_caller_does_not_take_its_record_back(
    tmp_path: Path, address: str, spool: Spool
) -> None:
    async with writing(address, spool) as writer:
        task = asyncio.create_task(writer.append(event()))
        await asyncio.sleep(0)
        task.cancel()
        await until(lambda: writer.spooled == 1)


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
