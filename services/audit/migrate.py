"""Brings a log's database to the schema of this release; `python -m services.audit.migrate` does it beforehand."""

from __future__ import annotations

import argparse
import sqlite3
import sys
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from kala.errors import FailedPreconditionError, KalaError
from services.audit.storage.postgres_schema import ROLES, VERSION_TABLE, role_statements

if TYPE_CHECKING:  # imported only where something is to be migrated: starting stays quick
    from alembic.config import Config
    from sqlalchemy import Connection

    from services.audit.storage.postgres import Postgres

# The newest migration; a database of another revision is migrated at start or, if newer, refused.
HEAD_REVISION: Final = "0004"
# A new index over a large log takes minutes.
MIGRATE_SECONDS: Final = 3_600


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
    from sqlalchemy import create_engine

    _require_known(_revision(path), str(path))
    engine = create_engine(f"sqlite:///{path}")
    try:
        with engine.begin() as connection:
            _run(connection)
    finally:
        engine.dispose()


def migrate_postgres(database: Postgres) -> None:
    """Creates or upgrades the log's tables, in one transaction; when they are current they are left alone.

    Raises `FailedPreconditionError` when they are of a newer release, or when this role may not change them.
    Replicas that start at once wait for the first. Rights of roles are granted apart: `grant_roles`.
    """
    from sqlalchemy.exc import DBAPIError

    with closing(database.connect()) as present:
        if _postgres_revision(lambda sql: present.execute(sql.encode())) == HEAD_REVISION:
            return
    engine = database.engine(statement_seconds=MIGRATE_SECONDS, lock_seconds=MIGRATE_SECONDS)
    try:
        with engine.begin() as connection:
            connection.exec_driver_sql(
                "SELECT pg_advisory_xact_lock(hashtextextended('kala.audit.migrate', 0))"
            )
            revision = _postgres_revision(connection.exec_driver_sql)
            _require_known(revision, "the database")
            if revision != HEAD_REVISION:
                _run(connection, version_table=VERSION_TABLE)
    except DBAPIError as error:
        raise FailedPreconditionError(
            f"the log's tables are not those of this release and cannot be changed: "
            f"{str(error.orig).partition(chr(10))[0]}; run `python -m services.audit.migrate` as their owner"
        ) from error
    finally:
        engine.dispose()


def grant_roles(database: Postgres) -> None:
    """Makes the roles of `postgres_schema.ROLES` where they are missing, and gives each exactly its rights."""
    with closing(database.connect()) as connection, connection.transaction():
        rows = connection.execute(
            "SELECT relname FROM pg_class "
            "WHERE relkind IN ('r', 'p', 'v') AND relnamespace = current_schema()::regnamespace"
        )
        for statement in role_statements({row[0] for row in rows}):
            connection.execute(statement.encode())


def _postgres_revision(
    execute: Callable[[str], Any],
) -> str | None:  # `Any`: psycopg's or SQLAlchemy's cursor
    if execute(f"SELECT to_regclass('{VERSION_TABLE}')").fetchone()[0] is None:
        return None
    row = execute(f"SELECT version_num FROM {VERSION_TABLE}").fetchone()  # noqa: S608 - a constant
    return None if row is None else str(row[0])


def _require_known(revision: str | None, name: str) -> None:
    """Raises `FailedPreconditionError` for a revision that is not among ours."""
    from alembic.script import ScriptDirectory

    known = {script.revision for script in ScriptDirectory.from_config(_config()).walk_revisions()}
    if revision is not None and revision not in known:
        raise FailedPreconditionError(f"{name} has schema {revision}, which is of a newer release of KALA")


def _run(connection: Connection, **attributes: str) -> None:
    from alembic import command

    config = _config()
    config.attributes.update(attributes, connection=connection)
    command.upgrade(config, "head")


def _config() -> Config:
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    return config


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


def main() -> None:
    """Migrate the database that KALA_AUDIT_DATABASE names: before the service starts, or as the tables' owner."""
    import psycopg

    from services.audit.config import SECTION, AuditSettings
    from services.audit.storage.postgres import Postgres, first_line
    from services.common.settings import load

    parser = argparse.ArgumentParser(prog="python -m services.audit.migrate", description=main.__doc__)
    parser.add_argument(
        "--roles", action="store_true", help=f"make the roles {', '.join(ROLES)} and grant their rights"
    )
    asked, flags = parser.parse_known_args()
    url = load(AuditSettings, section=SECTION, argv=flags).database
    if "://" not in url:
        migrate_sqlite(Path(url).expanduser())
        return
    database = Postgres(url)
    try:
        migrate_postgres(database)
        if asked.roles:
            grant_roles(database)
    except psycopg.Error as error:
        raise FailedPreconditionError(f"the database refuses: {first_line(error)}") from error


if __name__ == "__main__":
    try:
        main()
    except KalaError as problem:
        sys.exit(problem.message)
