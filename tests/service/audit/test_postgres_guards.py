"""What a log in PostgreSQL refuses: a server that would weaken it, tables that were tampered with, roles that overreach."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

import psycopg
import pytest
from sqlalchemy import create_engine, inspect

from kala.errors import FailedPreconditionError, UnavailableError
from services.audit.config import AuditSettings
from services.audit.migrate import HEAD_REVISION, migrate_postgres
from services.audit.storage.postgres import Postgres, require_triggers
from services.audit.storage.postgres_reader import _SELECT_BY_KEYS
from services.audit.storage.postgres_retention import drop_before, first_index
from services.audit.storage.postgres_schema import READER, VERSION_TABLE
from services.audit.storage.postgres_store import PostgresWriter
from services.audit.storage.schema import METADATA
from services.audit.storage.stores import open_log_store
from tests.fakes.audit_log import ORIGIN, LogFile, open_log, record, signer
from tests.fakes.postgres_statements import run
from tests.postgres import Databases, name_of, own_postgres

ROOT = Path(__file__).parents[3]


# What the migrations make.
def test_the_migrations_make_what_the_metadata_says(postgres_log_url: str) -> None:
    engine = create_engine(postgres_log_url.replace("postgresql:", "postgresql+psycopg:"))
    try:
        found = inspect(engine)
        tables = {name for name in found.get_table_names() if not name.startswith("entry_")}
        assert tables == set(METADATA.tables) | {"idem", VERSION_TABLE}
        for name, table in METADATA.tables.items():
            columns = {column["name"]: column for column in found.get_columns(name)}
            assert {(c.name, c.type.compile(engine.dialect), c.nullable) for c in table.columns} == {
                (c, columns[c]["type"].compile(engine.dialect), columns[c]["nullable"]) for c in columns
            }
            assert found.get_pk_constraint(name)["constrained_columns"] == [
                column.name for column in table.primary_key
            ]
            expected = {str(index.name) for index in table.indexes} - {"entry_idem"}
            assert {index["name"] for index in found.get_indexes(name)} == expected
    finally:
        engine.dispose()


def test_a_current_database_is_left_alone_and_a_newer_one_refused(postgres_log_url: str) -> None:
    migrate_postgres(Postgres(postgres_log_url))
    assert run(postgres_log_url, f"SELECT version_num FROM {VERSION_TABLE}") == [(HEAD_REVISION,)]
    run(postgres_log_url, f"UPDATE {VERSION_TABLE} SET version_num = '9999'")
    with pytest.raises(FailedPreconditionError, match="newer release"):
        LogFile(postgres_log_url)


def test_replicas_that_start_at_once_on_an_empty_database_make_one_log(postgres_url: str) -> None:
    program = (
        "from tests.fakes.audit_log import *\n"
        f"with open_log({postgres_url!r}) as log: print(log.append(record(0))[0].index)"
    )
    started = [
        subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    assert [process.communicate(timeout=60)[0].strip() for process in started] == ["0"] * 3
    assert run(postgres_url, "SELECT count(*) FROM log") == [(1,)]


def test_the_tables_of_another_service_may_be_in_the_same_database(postgres_url: str) -> None:
    run(
        postgres_url,
        "CREATE TABLE alembic_version (version_num text)",
        "INSERT INTO alembic_version VALUES ('0042')",
    )
    with open_log(postgres_url) as log:
        assert log.append(record(0))[0].index == 0
    assert run(postgres_url, "SELECT version_num FROM alembic_version") == [("0042",)]


# Triggers.
@pytest.mark.parametrize("table", ["entry", "entry_0", "checkpoint"])
@pytest.mark.parametrize("role", ["", "SET session_replication_role = replica"], ids=["owner", "replica"])
@pytest.mark.parametrize("change", ["UPDATE {} SET log_id = 9", "DELETE FROM {}", "TRUNCATE {}"])
def test_not_even_the_owner_changes_an_entry_or_a_checkpoint(
    refusing: str, table: str, role: str, change: str
) -> None:
    with pytest.raises(psycopg.errors.RestrictViolation, match="never changed"):
        run(refusing, *filter(None, [role]), change.format(table))


@pytest.mark.parametrize(
    "statement",
    [
        "DROP TRIGGER entry_no_update ON entry",
        "DROP TRIGGER checkpoint_no_truncate ON checkpoint",
        "ALTER TABLE entry_0 DISABLE TRIGGER entry_no_delete",
        "ALTER TABLE checkpoint ENABLE TRIGGER checkpoint_no_delete",
        "DROP TRIGGER entry_no_truncate ON entry_0",
        "CREATE OR REPLACE FUNCTION audit_refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN RETURN OLD; END$$",
        "CREATE TRIGGER extra AFTER INSERT ON entry FOR EACH ROW EXECUTE FUNCTION audit_refuse_change('entry')",
    ],
    ids=["dropped", "dropped of checkpoint", "disabled", "origin only", "of a partition", "emptied", "extra"],
)
def test_a_log_whose_triggers_were_changed_does_not_start(postgres_log_url: str, statement: str) -> None:
    with open_log(postgres_log_url):
        pass
    run(postgres_log_url, statement)
    with pytest.raises(FailedPreconditionError, match="triggers that protect"):
        LogFile(postgres_log_url)


def test_a_log_that_comes_back_to_tables_without_triggers_writes_nothing(postgres_log_url: str) -> None:
    """Every new connection looks again, not only the first."""
    with open_log(postgres_log_url) as log:
        log.append(record(0))
        run(postgres_log_url, "DROP TRIGGER entry_no_update ON entry")
        assert isinstance(log.writer, PostgresWriter)
        log.writer._session.close()
        # Unavailable, and not a refusal of the record: writers keep it in their spools.
        with pytest.raises(UnavailableError, match="triggers that protect"):
            log.append(record(1))
        assert log.reader.head().size == 1


# Durability.
@pytest.mark.parametrize("setting", ["fsync", "full_page_writes"])
def test_a_server_that_may_lose_a_commit_is_refused(setting: str) -> None:
    with (
        own_postgres(**{setting: "off"}) as server,
        pytest.raises(FailedPreconditionError, match=f"{setting} = off"),
    ):
        LogFile(server.url())


@pytest.mark.parametrize("table", ["checkpoint", "idem", "entry_0", "tile"])
def test_tables_that_a_crash_would_empty_are_refused(postgres_log_url: str, table: str) -> None:
    run(postgres_log_url, f"ALTER TABLE {table} SET UNLOGGED")
    with pytest.raises(FailedPreconditionError, match=f"ALTER TABLE {table} SET LOGGED"):
        LogFile(postgres_log_url)


@pytest.mark.parametrize("level", ["off", "local", "remote_write"])
def test_a_default_that_commits_before_the_disk_has_it_does_not_reach_the_log(
    postgres_log_url: str, postgres_databases: Databases, level: str
) -> None:
    postgres_databases.run(
        f"ALTER DATABASE \"{name_of(postgres_log_url)}\" SET synchronous_commit = '{level}'"
    )
    with open_log(postgres_log_url) as log:
        assert isinstance(log.writer, PostgresWriter)
        connection = log.writer._begin()
        assert connection.execute("SHOW synchronous_commit").fetchone() == ("on",)
        # A pool between may hand another session on: each transaction says it for itself.
        connection.execute("ROLLBACK; SET synchronous_commit = off")
        assert log.writer._begin().execute("SHOW synchronous_commit").fetchone() == ("on",)
        log.writer._session.roll_back()
        assert log.append(record(0))[0].index == 0
    with (
        closing(open_log_store(AuditSettings(database=postgres_log_url), signer())) as store,
        store.engine.connect() as cold,
    ):
        assert cold.exec_driver_sql("SHOW synchronous_commit").scalar() == "on"


# Plans.
def test_keys_are_looked_up_one_by_one_in_tables_without_statistics(postgres_log_url: str) -> None:
    """Reading a whole table for each batch with a repeat in it took a log from 9,000 records a second to 1,700."""
    run(
        postgres_log_url,
        "INSERT INTO idem SELECT 1, substr(sha256(int8send(g)), 1, 16), g FROM generate_series(0, 50000) AS g",
    )
    with psycopg.connect(postgres_log_url, cursor_factory=psycopg.ClientCursor) as connection:
        keys = [os.urandom(16) for _ in range(400)]
        plan = connection.execute(b"EXPLAIN " + _SELECT_BY_KEYS.encode(), {"keys": keys, "log": 1}).fetchall()
    assert not [row for row in plan if "Seq Scan" in row[0]], plan


# Partitions and retention.
def test_partitions_are_made_ahead_of_the_entries(postgres_log_url: str) -> None:
    with open_log(postgres_log_url) as log:
        assert isinstance(log.writer, PostgresWriter)
        run(postgres_log_url, "ALTER TABLE entry DETACH PARTITION entry_0", "DROP TABLE entry_0")
        log.writer._bound, log.writer._partition_width = 0, 256
        for start in range(0, 700, 100):
            log.append(*(record(number) for number in range(start, start + 100)))
            (bound,) = run(
                postgres_log_url, "SELECT 256 * count(*) FROM pg_inherits WHERE inhparent = 'entry'::regclass"
            )[0]
            assert bound > start + 100
        assert log.reader.entry(699) is not None
        assert [count for _, count in log.reader.counts("type", 0)] == [700]
    with closing(Postgres(postgres_log_url).connect()) as connection:
        require_triggers(connection)
    with open_log(postgres_log_url) as log:
        assert log.append(record(700))[0].index == 700


def in_small_partitions(url: str, entries: int) -> None:
    run(
        url,
        "ALTER TABLE entry DETACH PARTITION entry_0",
        "DROP TABLE entry_0",
        "SELECT audit_extend_entry(4096, 256)",
    )
    with open_log(url) as log:
        for start in range(0, entries, 300):
            numbers = range(start, min(start + 300, entries))
            log.append(*(record(number) for number in numbers), with_proof=False)


def test_old_partitions_go_and_what_is_left_is_still_proved(postgres_log_url: str) -> None:
    in_small_partitions(postgres_log_url, 900)
    engine = Postgres(postgres_log_url).engine()
    try:
        assert first_index(engine) == 0
        assert drop_before(engine, 1, 600) == 512 == first_index(engine)
        assert drop_before(engine, 1, 600) == 512
    finally:
        engine.dispose()
    with open_log(postgres_log_url) as log:
        from services.audit.reading.log_reader import LogReading

        reading = LogReading(log.reader)
        assert log.reader.entry(511) is None
        assert reading.entry(512).proof
        assert len(reading.consistency(300, 900)[0]) > 0
        assert log.append(record(900))[0].index == 900
        assert log.reader.index_at(0) == 512
        assert run(postgres_log_url, "SELECT count(*), min(idx) FROM idem") == [(389, 512)]


def test_what_still_has_content_or_belongs_to_another_log_is_not_dropped(postgres_log_url: str) -> None:
    in_small_partitions(postgres_log_url, 300)
    engine = Postgres(postgres_log_url).engine()
    try:
        run(postgres_log_url, "INSERT INTO payload VALUES (1, 7, 'request', 'key', 'bytes')")
        with pytest.raises(FailedPreconditionError, match="entry 7 still has content"):
            drop_before(engine, 1, 300)
        run(postgres_log_url, "UPDATE payload SET ciphertext = NULL", "INSERT INTO entry SELECT 2, 1, leaf, leaf_hash, idem, type, tenant, actor, subject_key_id, trace_id, intent, rpc, tool, outcome, law, model, backend, status, producer, boot, sequence, occurred_at, recorded_at, record_digest FROM entry WHERE idx = 1")  # fmt: skip
        with pytest.raises(FailedPreconditionError, match="log 2 of this database"):
            drop_before(engine, 1, 300)
        assert first_index(engine) == 0
    finally:
        engine.dispose()


def test_the_tile_that_still_grows_is_never_dropped(postgres_log_url: str) -> None:
    in_small_partitions(postgres_log_url, 300)
    engine = Postgres(postgres_log_url).engine()
    try:
        assert drop_before(engine, 1, 10_000) == 256
    finally:
        engine.dispose()
    with open_log(postgres_log_url) as log:
        assert log.append(record(300))[0].index == 300


# Passwords and the process.
def test_a_password_is_taken_from_a_file_and_never_shown(tmp_path: Path) -> None:
    with own_postgres() as server:
        run(server.url(), "ALTER ROLE kala PASSWORD 'tr0ub4dor'")
        passfile = tmp_path / "pgpass"
        passfile.write_text(f"127.0.0.1:{server.port}:*:kala:tr0ub4dor\n")
        passfile.chmod(0o600)
        url = f"postgresql://kala@127.0.0.1:{server.port}/postgres"
        with open_log(f"{url}?passfile={quote(str(passfile))}") as log:
            assert log.append(record(0))[0].index == 0
        for wrong in ("hunter2", "hunter2&%zz", "p:w@d"):
            with pytest.raises(FailedPreconditionError) as caught:
                PostgresWriter(
                    Postgres(f"postgresql://kala:{wrong}@127.0.0.1:{server.port}/postgres"),
                    origin=ORIGIN,
                    vkey="",
                )
            shown = f"{caught.value.message} {caught.value.__cause__}"
            assert wrong not in shown
            assert "p:w" not in shown


@pytest.mark.parametrize("url", ["mysql://u:secret@h/d", "postgresql://u:secret@h/d?x=y"])
def test_a_url_that_is_none_is_refused_by_the_setting_s_name(url: str) -> None:
    with pytest.raises(FailedPreconditionError, match="KALA_AUDIT_DATABASE") as caught:
        open_log_store(AuditSettings(database=url), signer())
    assert "secret" not in caught.value.message


def test_the_migration_runs_by_itself_and_grants_roles(postgres_url: str) -> None:
    def migrate(url: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "KALA_AUDIT_DATABASE": url}
        command = [sys.executable, "-m", "services.audit.migrate", "--roles"]
        return subprocess.run(command, cwd=ROOT, env=environment, check=False, capture_output=True, text=True)

    done = migrate(postgres_url)
    assert (done.returncode, done.stderr) == (0, "")
    assert run(postgres_url, "SELECT count(*) FROM entry", role=READER) == [(0,)]
    failed = migrate("postgresql://kala:secret@127.0.0.1:1/none")
    assert failed.returncode == 1
    assert len(failed.stderr.splitlines()) == 1
    assert "secret" not in failed.stderr
