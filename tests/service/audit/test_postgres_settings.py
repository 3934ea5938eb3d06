"""Settings of a server, a database or a URL that would weaken the log, or let a message say a password."""

from __future__ import annotations

import json
from contextlib import closing

import psycopg
import pytest
from sqlalchemy import event

from kala.errors import FailedPreconditionError
from services.audit.storage.postgres import Postgres
from services.audit.storage.postgres_store import PostgresWriter
from tests.fakes.audit_log import ORIGIN, open_log, record, signer
from tests.postgres import Databases, name_of, own_postgres


@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII"])
def test_a_database_that_keeps_other_characters_is_refused(
    postgres_databases: Databases, postgres_url: str, encoding: str
) -> None:
    """LATIN1 has no place for most names: a record with one would never be taken."""
    name = f"{name_of(postgres_url)}_{encoding.lower()}"
    postgres_databases.run(f"CREATE DATABASE {name} TEMPLATE template0 ENCODING '{encoding}' LOCALE 'C'")
    url = postgres_databases.url(name)
    try:
        with pytest.raises(FailedPreconditionError, match=f"server_encoding = {encoding}"), open_log(url):
            pass
    finally:
        postgres_databases.drop(url)


def test_names_are_kept_whatever_a_client_s_encoding_is_by_default(
    postgres_databases: Databases, postgres_log_url: str
) -> None:
    name = postgres_log_url.partition("?")[0].rpartition("/")[2]
    postgres_databases.run(f"ALTER DATABASE \"{name}\" SET client_encoding = 'LATIN1'")
    with open_log(
        postgres_log_url + ("&" if "?" in postgres_log_url else "?") + "client_encoding=LATIN1"
    ) as log:
        named = record(0)
        named.tenant = "Zoë 日本"
        log.append(named)
        entry = log.reader.entry(0)
        assert entry is not None
        assert json.loads(entry.leaf)["tenant"] == "Zoë 日本"
        assert log.reader.counts("tenant", 0) == [("Zoë 日本", 1)]


@pytest.mark.parametrize("setting", ["data_sync_retry", "zero_damaged_pages"])
def test_a_server_that_goes_on_over_damage_is_refused(setting: str) -> None:
    with (
        own_postgres(**{setting: "on"}) as server,
        pytest.raises(FailedPreconditionError, match=f"{setting} = on"),
        closing(PostgresWriter(Postgres(server.url()), origin=ORIGIN, vkey=str(signer().verifier))),
    ):
        pass


@pytest.mark.parametrize(
    ("level", "used"), [("off", "on"), ("local", "on"), ("remote_apply", "remote_apply")]
)
def test_an_erasure_waits_for_the_disk_whatever_its_session_was_set_to(
    postgres_log_url: str, level: str, used: str
) -> None:
    """A pool of transactions gives each one a session of others, in which our `SET` never was."""
    engine = Postgres(postgres_log_url).engine()

    def weaken(connection: psycopg.Connection[tuple[str]], _record: object, _proxy: object) -> None:
        connection.execute(f"SET synchronous_commit = {level}".encode())
        connection.commit()

    event.listen(engine, "checkout", weaken)
    try:
        with engine.begin() as changing:
            assert changing.exec_driver_sql("SHOW synchronous_commit").scalar_one() == used
    finally:
        engine.dispose()


@pytest.mark.parametrize("password", ["hun@ter2", "hun/ter2", "hun@te/r2", "h@unter@2"])
def test_a_password_that_should_have_been_quoted_is_in_no_message(password: str) -> None:
    """What follows its first @ would be looked up as a host, and the failure would name it."""
    with pytest.raises((FailedPreconditionError, psycopg.Error)) as refused:
        Postgres(f"postgresql://kala:{password}@127.0.0.1:1/db?connect_timeout=2").connect()
    assert "%40" in str(refused.value)
    assert not any(part in str(refused.value) for part in ("hun", "ter2", "r2", "2@"))
