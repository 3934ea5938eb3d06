"""Opens the trainer's database, SQLite or PostgreSQL, and brings it to the schema of this release."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from sqlalchemy import Connection, Engine, inspect, text
from sqlalchemy.exc import SQLAlchemyError

from kala.errors import FailedPreconditionError, UnavailableError
from services.common.database import connectable, lock_schema

HEAD_REVISION: Final = "0001"
"""The newest migration; a database of another revision is migrated at start or, if newer, refused."""


def open_engine(database: str | Path) -> Engine:
    """Open the database, a URL or a file's path, at the newest schema; the caller disposes of the engine."""
    engine = connectable(str(database), variable="KALA_TRAINER_DATABASE")
    with translated():
        with engine.connect() as connection:
            is_current = _revision(connection) == HEAD_REVISION
        if not is_current:
            _upgrade(engine)
    return engine


@contextmanager
def translated() -> Iterator[None]:
    """Raise what the database raises as UnavailableError, without its statements and values."""
    try:
        yield
    except SQLAlchemyError as error:
        raise UnavailableError(
            "the trainer's database does not answer", reason="DATABASE_UNAVAILABLE"
        ) from error


def _revision(connection: Connection) -> str | None:
    if not inspect(connection).has_table("alembic_version"):
        return None
    return connection.execute(text("SELECT version_num FROM alembic_version")).scalar()


def _upgrade(engine: Engine) -> None:
    from alembic import command
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    with engine.begin() as connection:
        lock_schema(connection, "trainer")
        revision = _revision(connection)
        if revision is not None and revision not in known:
            raise FailedPreconditionError(
                f"the trainer's database has schema {revision}, which is of a newer release of KALA"
            )
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
