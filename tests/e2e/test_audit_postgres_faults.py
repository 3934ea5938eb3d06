"""The database dies, restarts or stands still under load: what the log acknowledged is there, and the log goes on."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.audit_proof import (
    BROKEN_SECONDS,
    PATIENCE_SECONDS,
    Journal,
    first_of,
    load,
    may_stall,
    problems_of,
    shows_loss,
    some_more,
    started,
    stopped,
)
from tests.fakes.audit_process import AuditProcess
from tests.postgres import PostgresServer, own_postgres

KILLS = 4
CONTROL_KILLS = 3
# Nothing but a commit that waits for it brings the WAL to the disk, so that one that does not wait surely loses.
LAZY_WAL = {"wal_writer_delay": "10s", "wal_writer_flush_after": "1GB", "wal_buffers": "16MB"}

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]


@pytest.fixture
def server() -> Iterator[PostgresServer]:
    with own_postgres(**LAZY_WAL) as running:
        yield running


async def kill_database(
    server: PostgresServer,
    audit: AuditProcess,
    kills: int,
    *,
    with_log: bool = False,
    is_broken: bool = False,
) -> Journal:
    """Kills every process of the database while callers append; the log lives through it, or dies with it."""
    patience = BROKEN_SECONDS if is_broken else PATIENCE_SECONDS
    with started(audit):
        async with load([audit]) as journal, may_stall(is_broken=is_broken):
            await first_of(journal)
            for _ in range(kills):
                await some_more(journal, patience)
                await asyncio.sleep(0.3)
                if with_log:
                    await asyncio.to_thread(audit.kill)
                await asyncio.to_thread(server.kill)
                await asyncio.to_thread(server.start)
                if with_log:
                    audit.start()
            await some_more(journal, patience)
        if not is_broken:
            await stopped(audit)
    return journal


@pytest.mark.parametrize("with_log", [False, True], ids=["alone", "with the log"])
async def test_no_acknowledged_record_is_lost_when_the_database_is_killed(
    tmp_path: Path, server: PostgresServer, with_log: bool
) -> None:
    audit = AuditProcess(tmp_path / "audit", url=server.url())
    journal = await kill_database(server, audit, KILLS, with_log=with_log)
    assert problems_of(journal, audit) == [], audit.output()
    assert len(journal) > KILLS * 10


async def test_a_log_whose_commits_do_not_wait_for_the_disk_is_caught(
    tmp_path: Path, server: PostgresServer
) -> None:
    audit = AuditProcess(
        tmp_path / "audit",
        url=server.url(),
        module="tests.fakes.mutant_audit",
        environment={"AUDIT_MUTATION": "no_wait"},
    )
    journal = await kill_database(server, audit, CONTROL_KILLS, is_broken=True)
    problems = problems_of(journal, audit)
    assert shows_loss(problems), problems[:5]


async def test_the_log_lives_through_restarts_of_its_database(tmp_path: Path, server: PostgresServer) -> None:
    first = AuditProcess(tmp_path / "audit-0", url=server.url())
    second = AuditProcess(tmp_path / "audit-1", url=server.url(), keys_of=first)
    with started(first, second):
        async with load([first, second]) as journal:
            for how in (signal.SIGINT, signal.SIGQUIT, signal.SIGINT):
                await some_more(journal)
                await asyncio.to_thread(server.stop, how)
                await asyncio.to_thread(server.start)
            await some_more(journal)
        await stopped(first, second)
    assert problems_of(journal, first) == []
