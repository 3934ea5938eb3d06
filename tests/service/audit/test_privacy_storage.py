"""What an erasure leaves in the database's files, and what the service may do under each role."""

from __future__ import annotations

import secrets
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import select

from kala.audit.database import verify_database
from kala.errors import (
    FailedPreconditionError,
)
from services.audit.migrate import grant_roles
from services.audit.privacy.retention import DAY_US, Clocks, Retention
from services.audit.privacy.retention_store import RetentionStore
from services.audit.storage.postgres import Postgres
from services.audit.storage.postgres_schema import ERASER, WRITER
from services.audit.storage.schema import SUBJECT_KEY
from tests.fakes.audit_privacy import ALICE, BOB, TRUSTED, PrivateLog, ciphertexts, private_log, spoken
from tests.postgres import Databases, name_of, own_postgres


@pytest.fixture
async def log(log_database: str) -> AsyncIterator[PrivateLog]:
    async with private_log(log_database) as opened:
        yield opened


def everything_in(directory: Path) -> bytes:
    return b"".join(file.read_bytes() for file in directory.rglob("*") if file.is_file())


async def test_no_key_and_no_word_is_left_in_the_files_of_sqlite(tmp_path: Path) -> None:
    """Pages that are free, or only partly used, keep what was in them unless it is overwritten."""
    path = tmp_path / "audit.db"
    async with private_log(str(path)) as log:
        for start in range(0, 400, 40):
            subjects = [
                ALICE if number % 10 == 0 else f"{number:064x}" for number in range(start, start + 40)
            ]
            await log.append(
                *(
                    spoken(start + place, subject, b"canary of %s" % subject.encode() * (1 + place * 20))
                    for place, subject in enumerate(subjects)
                )
            )
        with closing(sqlite3.connect(path)) as connection:
            keys = dict(connection.execute("SELECT subject, wrapped FROM subject_key").fetchall())
            sealed = [
                row[0]
                for row in connection.execute(
                    "SELECT ciphertext FROM payload JOIN subject_key USING (key_id) WHERE subject = ?",
                    (ALICE,),
                )
            ]
        await log.erase(ALICE)
        left = everything_in(tmp_path)
    assert keys[f"{1:064x}"] in left
    assert keys[ALICE] not in left
    assert keys[ALICE][12:44] not in left
    assert len(sealed) == 80
    assert not [data for data in sealed if data[-40:] in left]
    assert b"canary" not in left
    assert verify_database(path, TRUSTED, pinned=None).entries == 402


async def test_no_key_is_left_in_the_files_of_postgresql_once_its_wal_is_gone() -> None:
    """The table of keys is written anew; what the WAL still holds goes with the next checkpoint (wal_recycle = off)."""
    with own_postgres(wal_recycle="off", min_wal_size="32MB") as server:
        Databases(server.url()).run("CREATE DATABASE kept")
        async with private_log(server.url("kept")) as log:
            for start in range(0, 200, 40):
                await log.append(
                    *(
                        spoken(number, ALICE if number % 10 == 0 else f"{number:064x}")
                        for number in range(start, start + 40)
                    )
                )
            with log.store.engine.connect() as connection:
                rows = connection.execute(select(SUBJECT_KEY.c.subject, SUBJECT_KEY.c.wrapped)).all()
            keys = {row.subject: bytes(row.wrapped) for row in rows}
            await log.erase(ALICE)
        with psycopg.connect(server.url("kept"), autocommit=True) as connection:
            connection.execute("SELECT pg_switch_wal()")
            connection.execute("CHECKPOINT")
        left = everything_in(server.data)
    assert keys[f"{1:064x}"] in left
    assert keys[ALICE] not in left
    assert keys[ALICE][12:44] not in left
    assert b"canary" not in left


def role_url(databases: Databases, url: str, *roles: str) -> str:
    """The URL of a login that is a member of these roles and owns nothing."""
    name = f"kala_service_{len(roles)}_{secrets.token_hex(3)}"
    grant_roles(Postgres(url))
    databases.run(f"CREATE ROLE {name} LOGIN IN ROLE {', '.join(roles)}")
    return databases.url(name_of(url), user=name)


async def test_a_service_that_owns_nothing_erases_holds_and_expires(
    postgres_log_url: str, postgres_databases: Databases
) -> None:
    async with private_log(postgres_log_url):
        pass  # the owner makes the log
    url = role_url(postgres_databases, postgres_log_url, WRITER, ERASER)
    async with private_log(url) as log:
        await log.append(spoken(0, ALICE), spoken(1, BOB))
        held = await log.hold(BOB)
        await log.erase(ALICE)
        await log.release(held.hold)
        log.now[0] += 31 * DAY_US
        store = RetentionStore(log.store.engine, log.store.log_id, clock=lambda: log.now[0])
        await Retention(store, log.once, Clocks(30, 180), clock=lambda: log.now[0]).run()
        assert ciphertexts(log) == {}


async def test_a_service_that_may_only_write_says_what_its_role_lacks(
    postgres_log_url: str, postgres_databases: Databases
) -> None:
    async with private_log(postgres_log_url):
        pass
    async with private_log(role_url(postgres_databases, postgres_log_url, WRITER)) as log:
        await log.append(spoken(0, ALICE))
        with pytest.raises(FailedPreconditionError, match="kala_audit_eraser"):
            await log.erase(ALICE)
        assert ciphertexts(log) == {0: 2}
