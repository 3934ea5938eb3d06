"""Opens a service's SQL database: a file of SQLite, private and durable, or a URL of any other."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.exc import ArgumentError

from kala.errors import FailedPreconditionError

BUSY_SECONDS: Final = 5
"""How long SQLite waits for another transaction; ours last milliseconds."""


def connectable(database: str, *, variable: str) -> Engine:
    """Make an engine for a URL or a file's path; FailedPreconditionError names `variable`, never the URL's password."""
    if "://" in database:
        try:
            return create_engine(database, pool_pre_ping=True, hide_parameters=True)
        except (ArgumentError, ImportError) as error:
            # Not its text: a URL may hold a password.
            raise FailedPreconditionError(
                f"{variable}: is no URL of a database whose driver is installed"
            ) from error
    path = Path(database).expanduser()
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        # Made here so that it is private from its first byte.
        path.touch(mode=0o600)
    except OSError as error:
        raise FailedPreconditionError(f"database {path} cannot be opened: {error.strerror}") from error
    engine = create_engine(f"sqlite:///{path}", connect_args={"timeout": BUSY_SECONDS}, hide_parameters=True)
    event.listen(engine, "connect", _set_up_sqlite)
    return engine


def lock_schema(connection: Connection, service: str) -> None:
    """Let one process at a time change a service's schema, until the transaction ends: replicas start together."""
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql("BEGIN IMMEDIATE")
    else:
        connection.execute(text("SELECT pg_advisory_xact_lock(hashtext(:name))"), {"name": f"kala.{service}"})


def _set_up_sqlite(connection: Any, _record: object) -> None:  # Any: the driver's connection
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.close()
