"""Opens the trainer's database, SQLite or PostgreSQL, and brings it to the schema of this release."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from sqlalchemy import Engine, create_engine, event, inspect, text
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from kala.errors import FailedPreconditionError, UnavailableError

HEAD_REVISION: Final = "0001"
"""The newest migration; a database of another revision is migrated at start or, if newer, refused."""

BUSY_SECONDS: Final = 5
"""How long SQLite waits for another transaction; ours last milliseconds."""


def open_engine(database: str | Path) -> Engine:
    """Open the database, a URL or a file's path, at the newest schema; the caller disposes of the engine."""
    engine = _engine(str(database))
    with translated():
        if _revision(engine) != HEAD_REVISION:
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


def _engine(database: str) -> Engine:
    if "://" in database:
        try:
            return create_engine(database, pool_pre_ping=True, hide_parameters=True)
        except (ArgumentError, ImportError) as error:
            # Not its text: a URL may hold a password.
            raise FailedPreconditionError(
                "KALA_TRAINER_DATABASE: is no URL of a database whose driver is installed"
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


def _set_up_sqlite(connection: Any, _record: object) -> None:  # Any: the driver's connection
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.close()


def _revision(engine: Engine) -> str | None:
    with engine.connect() as connection:
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
    revision = _revision(engine)
    if revision is not None and revision not in known:
        raise FailedPreconditionError(
            f"the trainer's database has schema {revision}, which is of a newer release of KALA"
        )
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
