"""The log or its database is away under load: writers go on from their spool, and everything arrives once, in order."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, closing
from dataclasses import dataclass, field
from pathlib import Path

import psycopg
import pytest

from kala.audit.v1 import audit_pb2
from services.common.audit_client import AppendStatus, AuditPolicy, AuditWriter, Payload
from services.common.channel import open_channel
from services.common.spool import Spool
from tests.audit_proof import started, stopped, until
from tests.fakes.audit_process import AuditProcess
from tests.fakes.cuttable import line
from tests.postgres import PostgresServer, own_postgres

SHORT_SECONDS = 4.0
LONG_SECONDS = 60.0
PRODUCERS = 4
PAUSE_SECONDS = 0.01
KEY = b"k" * 32

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]


@dataclass
class Producing:
    """A writer under load, and the keys of what it acknowledged."""

    writer: AuditWriter
    keys: list[bytes] = field(default_factory=list)
    statuses: set[AppendStatus] = field(default_factory=set)
    stop: asyncio.Event = field(default_factory=asyncio.Event)

    async def produce(self, name: int) -> None:
        number = 0
        while not self.stop.is_set():
            record = audit_pb2.Record(type="service.event", tenant="default")
            record.attributes.add(key="note", value=f"{name}-{number}")
            done = await self.writer.append(record, payloads=[Payload("request", b"x" * 200)])
            self.keys.append(done.key)
            self.statuses.add(done.status)
            number += 1
            await asyncio.sleep(PAUSE_SECONDS)


@asynccontextmanager
async def producing(directory: Path, address: str) -> AsyncIterator[Producing]:
    """Producers append from one process, every one of them waiting for its answer, for as long as this is entered."""
    async with AsyncExitStack() as stack:
        spool = stack.enter_context(closing(Spool(directory / "spool", KEY)))
        channel = await stack.enter_async_context(open_channel(address, peer_name="gateway"))
        writer = await stack.enter_async_context(AuditWriter(channel, producer_id="gateway-0", spool=spool))
        made = Producing(writer)
        async with asyncio.TaskGroup() as group:
            for name in range(PRODUCERS):
                group.create_task(made.produce(name))
            try:
                yield made
            finally:
                made.stop.set()


def logged(audit: AuditProcess) -> list[tuple[bytes, int]]:
    """Key and number of every record of the producers' process, in the order of the log."""
    query = "SELECT idem, sequence FROM entry WHERE producer = 'gateway-0' ORDER BY idx"
    if audit.url is not None:
        with psycopg.connect(audit.url) as connection:
            return [(bytes(key), number) for key, number in connection.execute(query)]
    with closing(sqlite3.connect(audit.database)) as database:
        return [(bytes(key), number) for key, number in database.execute(query)]


Fault = Callable[[], Awaitable[None]]


async def go_through(load: Producing, *, away: Fault, back: Fault, seconds: float) -> None:
    """Lets the log go away for a time and come back, and waits until nothing waits any more."""
    await until(lambda: AppendStatus.LOGGED in load.statuses and len(load.keys) > 20)
    load.statuses.clear()
    await away()
    count = len(load.keys)
    await asyncio.sleep(seconds)
    assert len(load.keys) > count, "nothing was acknowledged during the outage"
    assert AppendStatus.SPOOLED in load.statuses
    await back()
    count = len(load.keys)
    await until(lambda: len(load.keys) > count + 20)
    load.stop.set()
    await until(lambda: not load.writer.spooled)
    last = audit_pb2.Record(type="service.event", tenant="default")
    done = await load.writer.append(last, policy=AuditPolicy.FAIL_CLOSED)
    assert done.status is AppendStatus.LOGGED
    load.keys.append(done.key)


def require_all_once_in_order(load: Producing, audit: AuditProcess) -> None:
    rows = logged(audit)
    assert len(rows) == len({key for key, _ in rows}), "a record is in the log twice"
    assert {key for key, _ in rows} >= set(load.keys), "an acknowledged record is lost"
    assert [number for _, number in rows] == list(range(1, len(rows) + 1)), "the order is not the writer's"


LENGTHS = [
    pytest.param(SHORT_SECONDS, id="short"),
    pytest.param(LONG_SECONDS, id="a minute", marks=pytest.mark.slow),
]


@pytest.mark.parametrize("seconds", LENGTHS)
async def test_a_line_that_is_cut_loses_nothing(tmp_path: Path, seconds: float) -> None:
    audit, socket = AuditProcess(tmp_path / "audit"), tmp_path / "line"
    tmp_path.chmod(0o700)  # noqa: ASYNC240 - at once
    there = Path(audit.address.removeprefix("unix:"))
    with started(audit):
        async with line(socket, there) as wire, producing(tmp_path, f"unix:{socket}") as load:

            async def away() -> None:
                wire.cut()

            async def back() -> None:
                wire.mend()

            await go_through(load, away=away, back=back, seconds=seconds)
        await stopped(audit)
    require_all_once_in_order(load, audit)


@pytest.mark.parametrize("seconds", LENGTHS)
async def test_a_log_that_is_killed_and_stays_away_loses_nothing(tmp_path: Path, seconds: float) -> None:
    audit = AuditProcess(tmp_path / "audit")
    with started(audit):
        async with producing(tmp_path, audit.address) as load:

            async def away() -> None:
                await asyncio.to_thread(audit.kill)

            async def back() -> None:
                audit.start()

            await go_through(load, away=away, back=back, seconds=seconds)
        await stopped(audit)
    require_all_once_in_order(load, audit)


@pytest.mark.parametrize("seconds", LENGTHS)
async def test_a_database_that_is_away_loses_nothing(tmp_path: Path, seconds: float) -> None:
    with own_postgres() as server:
        audit = AuditProcess(tmp_path / "audit", url=server.url())
        with started(audit):
            async with producing(tmp_path, audit.address) as load:
                await go_through(load, **_stopping(server), seconds=seconds)
            await stopped(audit)
        require_all_once_in_order(load, audit)


def _stopping(server: PostgresServer) -> dict[str, Fault]:
    async def away() -> None:
        await asyncio.to_thread(server.stop)

    async def back() -> None:
        await asyncio.to_thread(server.start)

    return {"away": away, "back": back}
