"""A database is copied before a release changes its shape, and only then."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from kala.errors import FailedPreconditionError
from kala.suite.backups import Database, back_up_before_migration, back_up_before_release, heads_of, schema_of


def make_database(path: Path, revision: str) -> None:
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("CREATE TABLE alembic_version (version_num TEXT)")
        connection.execute("INSERT INTO alembic_version VALUES (?)", (revision,))
        connection.execute("CREATE TABLE entry (leaf BLOB)")
        connection.execute("INSERT INTO entry VALUES (x'01')")


def test_the_newest_revision_is_found_without_importing_the_service() -> None:
    heads = heads_of("services.audit")
    assert len(heads) == 1


def test_a_current_database_is_not_copied(tmp_path: Path) -> None:
    (head,) = heads_of("services.audit")
    make_database(tmp_path / "audit.db", head)
    assert (
        back_up_before_migration([Database(tmp_path / "audit.db", "services.audit")], tmp_path, stamp="t")
        == []
    )


def test_an_older_database_is_copied_whole(tmp_path: Path) -> None:
    make_database(tmp_path / "audit.db", "0000")
    (copy,) = back_up_before_migration(
        [Database(tmp_path / "audit.db", "services.audit")], tmp_path, stamp="t"
    )
    assert copy.name == "audit-0000-t.db"
    with closing(sqlite3.connect(copy)) as connection:
        assert connection.execute("SELECT leaf FROM entry").fetchall() == [(b"\x01",)]


@pytest.mark.parametrize("content", [None, b""], ids=["absent", "empty"])
def test_no_database_needs_no_copy(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "audit.db"
    if content is not None:
        path.write_bytes(content)
    assert schema_of(path) is None
    assert back_up_before_migration([Database(path, "services.audit")], tmp_path, stamp="t") == []


def test_a_small_database_is_copied_once_per_release(tmp_path: Path) -> None:
    make_database(tmp_path / "gateway.db", "-")
    database = tmp_path / "gateway.db"
    assert back_up_before_release(database, tmp_path, release="0.1.0", stamp="a") == []
    assert back_up_before_release(database, tmp_path, release="0.1.0", stamp="b") == []
    (copy,) = back_up_before_release(database, tmp_path, release="0.2.0", stamp="c")
    assert copy.name == "gateway-0.1.0-c.db"
    assert back_up_before_release(database, tmp_path, release="0.2.0", stamp="d") == []


def test_a_damaged_database_stops_the_start_and_is_named(tmp_path: Path) -> None:
    (tmp_path / "audit.db").write_bytes(b"this is no database" * 100)
    with pytest.raises(FailedPreconditionError, match=r"audit\.db"):
        schema_of(tmp_path / "audit.db")
