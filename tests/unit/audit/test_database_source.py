"""A log kept in SQLite gives the same tiles as a mirror of it."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from kala.audit.compare import Relation, TileView, compare
from kala.audit.database import verify_database
from kala.audit.database_source import DatabaseSource
from kala.audit.mirror import read_checkpoint, verify_tiles
from kala.audit.report import TamperedError, UnverifiableError
from tests.fakes.audit_log import fill, signer
from tests.fakes.mirrors import Mirror

TRUSTED = [signer().verifier]


@pytest.fixture
def log(tmp_path: Path) -> Path:
    fill(tmp_path / "audit.db", [300, 300])
    return tmp_path / "audit.db"


def test_every_file_of_a_mirror_comes_from_the_database_too(log: Path) -> None:
    with closing(sqlite3.connect(log)) as database:
        leaves = [bytes(row[0]) for row in database.execute("SELECT leaf FROM entry ORDER BY idx")]
    with closing(DatabaseSource(log)) as source:
        for path, data in Mirror(leaves).files.items():
            assert source.read(path) == data, path
        assert verify_tiles(source, TRUSTED).entries == 600


def test_a_checkpoint_of_before_is_compared_with_the_log_itself(log: Path) -> None:
    with closing(sqlite3.connect(log)) as database, closing(DatabaseSource(log)) as source:
        (note,) = database.execute("SELECT note FROM checkpoint WHERE size = 300").fetchone()
        newest, _ = read_checkpoint(source, TRUSTED)
        older, _ = read_checkpoint(_Shown(note), TRUSTED)
        assert compare(older, newest, TileView(source)).relation is Relation.CONSISTENT


class _Shown:
    def __init__(self, note: str) -> None:
        self._note = note.encode()

    def read(self, _path: str) -> bytes:
        return self._note

    def expect(self, _path: str) -> None:
        pass


ENDLESS = (
    "WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n) SELECT {} FROM {}_, n WHERE n.i < 0"
)


@pytest.mark.parametrize("table", ["log", "head", "entry", "checkpoint", "payload", "tile"])
def test_a_view_in_a_table_s_place_is_not_read(log: Path, table: str) -> None:
    """A view may go on for ever, or make values of a gigabyte: the verifier hung, or took all memory."""
    with closing(sqlite3.connect(log)) as database:
        kinds = ("trigger", "view")
        for kind, name in database.execute(
            "SELECT type, name FROM sqlite_master WHERE type IN (?, ?)", kinds
        ).fetchall():
            database.execute(f"DROP {kind} {name}")
        columns = ", ".join(f'"{row[1]}"' for row in database.execute(f"PRAGMA table_info({table})"))
        database.execute(f"ALTER TABLE {table} RENAME TO {table}_")
        database.execute(f"CREATE VIEW {table} AS {ENDLESS.format(columns, table)}")
        database.commit()
    with pytest.raises(TamperedError, match=f"{table} is no table of stored rows"):
        verify_database(log, TRUSTED)
    with pytest.raises(TamperedError, match=f"{table} is no table of stored rows"):
        DatabaseSource(log)


def test_a_computed_column_is_not_read(log: Path) -> None:
    with closing(sqlite3.connect(log)) as database:
        database.execute("ALTER TABLE entry ADD COLUMN more AS (zeroblob(1000000000))")
    with pytest.raises(TamperedError, match="entry is no table of stored rows"):
        verify_database(log, TRUSTED)


@pytest.mark.parametrize("size", [65_536, 1 << 27], ids=["longer than any", "larger than is read"])
def test_a_leaf_that_is_too_long_is_the_first_bad_one(log: Path, size: int) -> None:
    """It ended the quick check with an OverflowError, as a bug."""
    with closing(sqlite3.connect(log)) as database:
        for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            database.execute(f"DROP TRIGGER {name}")
        database.execute("UPDATE entry SET leaf = zeroblob(?) WHERE idx = 299", (size,))
        database.commit()
    with closing(DatabaseSource(log)) as source, pytest.raises(TamperedError):
        verify_tiles(source, TRUSTED)
    with pytest.raises(TamperedError, match=r"entry 29[89]"):
        verify_database(log, TRUSTED)


def test_what_the_database_does_not_have_is_not_there(log: Path) -> None:
    with closing(DatabaseSource(log)) as source:
        for path in ("tile/0/002.p/89", "tile/entries/003", "tile/3/000.p/1"):
            assert source.read(path) is None


def test_a_file_that_is_no_log_is_unverifiable(tmp_path: Path) -> None:
    with pytest.raises(UnverifiableError, match="not a file"):
        DatabaseSource(tmp_path / "missing")
    (tmp_path / "x.db").write_bytes(b"SQLite format 3\0" + b"x" * 2_000)
    with (
        pytest.raises(TamperedError, match="the database: "),
        closing(DatabaseSource(tmp_path / "x.db")) as source,
    ):
        source.read("checkpoint")


@pytest.mark.parametrize("value", ["7", "'text'", "1000000000000", "x'00'"])
def test_a_row_that_holds_something_else_is_named(log: Path, value: str) -> None:
    with closing(sqlite3.connect(log, isolation_level=None)) as database:
        for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            database.execute(f"DROP TRIGGER {name}")
        database.execute(f"UPDATE entry SET leaf = {value} WHERE idx = 300")
    with closing(DatabaseSource(log)) as source, pytest.raises(TamperedError) as caught:
        verify_tiles(source, TRUSTED)
    assert caught.value.first_bad_index == 300
