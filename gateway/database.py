"""The gateway's database: one schema in steps, SQLite on one machine and PostgreSQL for replicas.  Blocking."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from sqlalchemy import Column, Connection, Engine, Integer, MetaData, Table, event, insert, select, update
from sqlalchemy.exc import SQLAlchemyError

from gateway import batches, conversations, key_table, limits
from kala.errors import FailedPreconditionError, UnavailableError
from services.common.database import connectable, lock_schema

_VERSION: Final = Table("gateway_schema", MetaData(), Column("version", Integer, nullable=False))


def _create_keys(connection: Connection) -> None:
    key_table.API_KEY.create(connection)


MIGRATIONS: Final = (
    _create_keys,
    conversations.tables.create,
    batches.tables.create,
    limits.tables.create,
)
"""Step n leads from version n to n + 1; a released step is never changed, only followed."""


def open_database(database: str | Path) -> Engine:
    """Open a file of SQLite or a URL and bring it to the newest schema."""
    engine = connectable(str(database), variable="KALA_GATEWAY_DATABASE")
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _overwrite_what_is_deleted)
    with translated():
        _migrate(engine)
    return engine


@contextmanager
def translated() -> Iterator[None]:
    """Turn every failure of the database into UnavailableError, reason DATABASE_UNAVAILABLE."""
    try:
        yield
    except SQLAlchemyError as error:
        raise UnavailableError(
            "the gateway's database does not answer", reason="DATABASE_UNAVAILABLE"
        ) from error


def _overwrite_what_is_deleted(connection: Any, _record: object) -> None:  # Any: the driver's connection
    connection.execute("PRAGMA secure_delete = ON").close()


def _migrate(engine: Engine) -> None:
    with engine.begin() as connection:
        lock_schema(connection, "gateway")
        _VERSION.create(connection, checkfirst=True)
        version = connection.execute(select(_VERSION.c.version)).scalar()
        if version is None:
            connection.execute(insert(_VERSION).values(version=0))
            version = 0
        if version > len(MIGRATIONS):
            raise FailedPreconditionError(
                f"the gateway's database has schema {version}, newer than this release's {len(MIGRATIONS)}; upgrade KALA"
            )
        for migrate in MIGRATIONS[version:]:
            migrate(connection)
        connection.execute(update(_VERSION).values(version=len(MIGRATIONS)))
