"""What is SQLite's alone: strict about durability, one process at a time, and able to go on after a failed write.

What holds in either database is in tests/service/audit/test_stores.py.
"""

from __future__ import annotations

import itertools
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine, inspect

import services.audit
from kala.audit.database import verify_database
from kala.audit.receipt import verify_receipt
from kala.audit.verify import TamperedError
from kala.errors import (
    DataLossError,
    FailedPreconditionError,
    UnavailableError,
)
from services.audit.migrate import HEAD_REVISION, TRIGGERS, migrate_sqlite, require_triggers
from services.audit.storage import sqlite_store
from services.audit.storage.schema import METADATA
from services.audit.storage.sqlite_store import SqliteWriter
from tests.fakes.audit_log import NOW, ORIGIN, LogFile, open_log, record, signer


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "audit.db"


@pytest.fixture
def log(path: Path) -> Iterator[LogFile]:
    with open_log(path) as opened:
        yield opened


def test_the_migrations_make_what_the_metadata_says(path: Path) -> None:
    migrate_sqlite(path)
    script = ScriptDirectory(str(Path(services.audit.__file__).parent / "migrations"))
    assert script.get_current_head() == HEAD_REVISION
    fresh = create_engine("sqlite://")
    METADATA.create_all(fresh)
    migrated = create_engine(f"sqlite:///{path}")
    try:
        found, expected = inspect(migrated), inspect(fresh)
        assert set(found.get_table_names()) == set(expected.get_table_names()) | {"alembic_version"}
        for table in expected.get_table_names():
            assert [str(c) for c in found.get_columns(table)] == [str(c) for c in expected.get_columns(table)]
            assert _spelled(found.get_indexes(table)) == _spelled(expected.get_indexes(table))
            assert found.get_pk_constraint(table) == expected.get_pk_constraint(table)
    finally:
        fresh.dispose()
        migrated.dispose()


def _spelled(indexes: list[Any]) -> list[object]:
    """Indexes with their conditions as text: SQLAlchemy's clauses compare by identity."""
    return [
        {**index, "dialect_options": {k: str(v) for k, v in index["dialect_options"].items()}}
        for index in indexes
    ]


def test_a_current_database_is_left_alone_and_a_newer_one_refused(path: Path) -> None:
    migrate_sqlite(path)
    before = path.read_bytes()
    migrate_sqlite(path)
    assert path.read_bytes() == before
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(FailedPreconditionError, match="newer release"):
        migrate_sqlite(path)


def test_a_migration_that_died_half_way_leaves_no_half_of_a_log(path: Path) -> None:
    path.with_name("audit.db.new").write_bytes(b"half")
    migrate_sqlite(path)
    assert path.stat().st_mode & 0o077 == 0
    with open_log(path) as log:
        assert log.append(record(0))[0].index == 0


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE entry SET tenant = 'x'",
        "DELETE FROM entry",
        "UPDATE checkpoint SET note = ''",
        "DELETE FROM checkpoint",
    ],
)
def test_the_database_itself_refuses_to_change_an_entry_or_a_checkpoint(
    log: LogFile, path: Path, statement: str
) -> None:
    log.append(record(0))
    with (
        closing(sqlite3.connect(path)) as database,
        pytest.raises(sqlite3.IntegrityError, match="never changed"),
    ):
        database.execute(statement)


@pytest.mark.parametrize(
    "statement",
    [
        "DROP TRIGGER entry_no_update",
        "CREATE TRIGGER extra AFTER INSERT ON entry BEGIN SELECT 1; END",
        "DROP TRIGGER entry_no_delete; CREATE TRIGGER entry_no_delete BEFORE DELETE ON entry BEGIN SELECT 1; END",
    ],
)
def test_a_log_without_its_triggers_does_not_start(path: Path, statement: str) -> None:
    with open_log(path):
        pass
    with closing(sqlite3.connect(path)) as database:
        database.executescript(statement)
        with pytest.raises(FailedPreconditionError, match="triggers"):
            require_triggers(database)
    with pytest.raises(FailedPreconditionError, match="triggers"):
        LogFile(path)
    assert len(TRIGGERS) == 4


@pytest.mark.parametrize(
    "pragma", ["PRAGMA synchronous = NORMAL", "PRAGMA synchronous = OFF", "PRAGMA journal_mode = DELETE"]
)
def test_a_database_that_would_acknowledge_too_early_is_refused(
    path: Path, pragma: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect = sqlite_store._connect

    def weakened(where: Path) -> sqlite3.Connection:
        connection = connect(where)
        connection.execute(pragma)
        return connection

    monkeypatch.setattr(sqlite_store, "_connect", weakened)
    with pytest.raises(FailedPreconditionError, match="the log needs"):
        LogFile(path)


def test_a_second_process_is_kept_out_and_let_in_after_the_first(path: Path) -> None:
    with open_log(path), pytest.raises(FailedPreconditionError, match="another process"):
        SqliteWriter(path, origin=ORIGIN, vkey="")
    with open_log(path):
        pass


def test_a_log_is_not_opened_under_another_name(path: Path) -> None:
    with open_log(path):
        pass
    with pytest.raises(FailedPreconditionError, match="holds the log"):
        SqliteWriter(path, origin="other.test", vkey="")


def test_a_writer_that_was_taken_over_never_writes_again(log: LogFile, path: Path) -> None:
    """The file lock may fail on a network disk; the epoch in the head row does not."""
    log.append(record(0))
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("UPDATE head SET epoch = epoch + 1")
    for number in (1, 2):
        with pytest.raises(UnavailableError, match="took the log over"):
            log.append(record(number))
    assert log.reader.head().size == 1


def test_a_full_disk_loses_nothing_that_was_acknowledged_and_the_log_goes_on(
    log: LogFile, path: Path
) -> None:
    acknowledged = [log.append(record(number)) for number in range(20)]
    (pages,) = log.writer._db.execute("PRAGMA page_count").fetchone()
    log.writer._db.execute(f"PRAGMA max_page_count = {pages}")
    failed = 0
    for number in itertools.count(100):
        try:
            acknowledged.append(log.append(*(record(number * 50 + step) for step in range(50))))
        except UnavailableError:
            failed += 1
            if failed == 3:
                break
    log.writer._db.execute("PRAGMA max_page_count = 1000000")
    acknowledged.append(log.append(record(99)))
    indexes = [one.index for answers in acknowledged for one in answers]
    assert indexes == list(range(len(indexes)))
    assert verify_database(path, [signer().verifier]).entries == len(indexes)


def test_time_never_runs_backwards_in_the_log(path: Path) -> None:
    with open_log(path) as log:
        log.clock = iter([NOW + 50, NOW + 10, NOW + 60])
        for number in range(3):
            log.append(record(number))
        times = [row[0] for row in log.reader._db.execute("SELECT recorded_at FROM entry ORDER BY idx")]
    assert times == [NOW + 50, NOW + 50, NOW + 60]
    assert verify_database(path, [signer().verifier]).entries == 3


@pytest.mark.parametrize("sizes", [(1,) * 5, (255, 1, 1), (256,), (257, 300), (600, 1)])
def test_a_reopened_log_continues_its_tree(path: Path, sizes: tuple[int, ...]) -> None:
    numbers = itertools.count()
    for size in sizes:
        with open_log(path) as log:
            answers = log.append(*(record(next(numbers)) for _ in range(size)))
            assert [verify_receipt(one.proof, [signer().verifier]).index for one in answers] == [
                one.index for one in answers
            ]
    assert verify_database(path, [signer().verifier]).entries == sum(sizes)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE head SET root = zeroblob(32)",
        'UPDATE head SET "range" = zeroblob(64)',
        "DELETE FROM tile WHERE level = 1",
        "UPDATE tile SET data = zeroblob(32) WHERE level = 1",
    ],
)
def test_a_log_whose_tree_is_damaged_does_not_start(path: Path, statement: str) -> None:
    with open_log(path) as log:
        log.append(*(record(number) for number in range(300)))
    with closing(sqlite3.connect(path)) as database, database:
        database.execute(statement)
    with pytest.raises(DataLossError):
        LogFile(path)
    with pytest.raises(TamperedError):
        verify_database(path, [signer().verifier])


def test_a_checkpoint_of_one_size_is_signed_once(log: LogFile, path: Path) -> None:
    log.append(record(0))
    with closing(sqlite3.connect(path)) as database, pytest.raises(sqlite3.IntegrityError, match="UNIQUE"):
        database.execute("INSERT INTO checkpoint SELECT * FROM checkpoint")
