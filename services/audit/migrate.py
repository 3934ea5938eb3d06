"""Brings a log's database to the schema of this release."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Final

from kala.errors import FailedPreconditionError

# The newest migration; a database of another revision is migrated at start or, if newer, refused.
HEAD_REVISION: Final = "0004"


def _forbid(table: str, event: str) -> str:
    return (
        f"CREATE TRIGGER {table}_no_{event.lower()} BEFORE {event} ON {table} "
        f"BEGIN SELECT RAISE(ABORT, 'the rows of {table} are never changed'); END"
    )


# The triggers that every log must have, by name; SQLite's spelling.
TRIGGERS: Final[Mapping[str, str]] = {
    f"{table}_no_{event.lower()}": _forbid(table, event)
    for table in ("entry", "checkpoint")
    for event in ("UPDATE", "DELETE")
}


def migrate_sqlite(path: Path) -> None:
    """Creates or upgrades the database at `path`; raises `FailedPreconditionError` when it is of a newer release.

    A database that is already current is left alone, and alembic is then not even imported: starting stays quick.
    A new one is made beside its place and moved there whole, so that a crash leaves no half of a schema.
    """
    if not path.exists():
        draft = path.with_name(f"{path.name}.new")
        draft.unlink(missing_ok=True)
        draft.touch(mode=0o600, exist_ok=False)
        _upgrade(draft)
        draft.replace(path)
    elif _revision(path) != HEAD_REVISION:
        _upgrade(path)


def _upgrade(path: Path) -> None:
    from alembic import command
    from alembic.config import Config
    from alembic.script import ScriptDirectory
    from sqlalchemy import create_engine

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    revision = _revision(path)
    if revision is not None and revision not in known:
        raise FailedPreconditionError(f"{path} has schema {revision}, which is of a newer release of KALA")
    engine = create_engine(f"sqlite:///{path}")
    try:
        with engine.begin() as connection:
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
    finally:
        engine.dispose()


def require_triggers(connection: sqlite3.Connection) -> None:
    """Raises `FailedPreconditionError` unless the triggers that protect the log are exactly the expected ones."""
    rows = connection.execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'").fetchall()
    found = dict(rows)
    if found != dict(TRIGGERS):
        names = ", ".join(
            sorted(n for n in found.keys() | TRIGGERS.keys() if found.get(n) != TRIGGERS.get(n))
        )
        raise FailedPreconditionError(f"the triggers that protect the log are not as they should be: {names}")


def _revision(path: Path) -> str | None:
    if not path.exists():
        return None
    with closing(sqlite3.connect(path)) as connection:
        tables = connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'alembic_version'").fetchone()
        row = connection.execute("SELECT version_num FROM alembic_version").fetchone() if tables else None
    return None if row is None else str(row[0])
