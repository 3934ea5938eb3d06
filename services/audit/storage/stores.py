"""Opens the log in the database that the settings name: a file of SQLite, or PostgreSQL."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, event

from kala.audit.note import Signer
from services.audit.config import AuditSettings
from services.audit.storage.sqlite_store import LOG_ID, SqliteReader, SqliteWriter
from services.audit.storage.store import LogReader, LogWriter
from services.common.database import connectable


class LogStore:
    """One log, opened: `writer` appends, `engine` serves the cold paths in SQLAlchemy core, for the rows of `log_id`.

    A transaction of the engine takes SQLite's one write lock when it begins, so that what it read still holds when it
    writes: keep it short. Read under `execution_options(isolation_level="AUTOCOMMIT")`, which locks nothing.
    """

    def __init__(
        self,
        *,
        writer: LogWriter,
        engine: Engine,
        log_id: int,
        open_reader: Callable[[], LogReader],
        stack: ExitStack,
    ) -> None:
        """`stack` closes what the store holds."""
        self.writer = writer
        self.engine = engine
        self.log_id = log_id
        self._open_reader = open_reader
        self._stack = stack

    def open_reader(self) -> LogReader:
        """A reader with a connection of its own, for one thread at a time; the store closes it."""
        return self._stack.enter_context(closing(self._open_reader()))

    def close(self) -> None:
        """Closes every reader, the engine and the writer."""
        self._stack.close()


def open_log_store(settings: AuditSettings, signer: Signer) -> LogStore:
    """Creates or opens the log of `signer`; raises `FailedPreconditionError` when its database would weaken it."""
    if "://" in settings.database:
        return _open_postgres(settings.database, signer)
    return _open_sqlite(Path(settings.database).expanduser(), signer)


def _open_postgres(url: str, signer: Signer) -> LogStore:
    from services.audit.storage.postgres import Postgres
    from services.audit.storage.postgres_reader import PostgresReader
    from services.audit.storage.postgres_store import PostgresWriter

    database = Postgres(url)
    writer = PostgresWriter(database, origin=signer.verifier.name, vkey=str(signer.verifier))
    engine = database.engine()
    stack = ExitStack()
    stack.callback(writer.close)
    stack.callback(engine.dispose)
    return LogStore(
        writer=writer,
        engine=engine,
        log_id=writer.log_id,
        open_reader=lambda: PostgresReader(database, log_id=writer.log_id),
        stack=stack,
    )


def _open_sqlite(path: Path, signer: Signer) -> LogStore:
    with ExitStack() as undo:
        writer = SqliteWriter(path, origin=signer.verifier.name, vkey=str(signer.verifier))
        undo.enter_context(closing(writer))
        engine = connectable(str(path), variable="KALA_AUDIT_DATABASE")
        undo.callback(engine.dispose)
        event.listen(engine, "connect", _set_up)
        event.listen(engine, "begin", _begin)
        stack = undo.pop_all()
    return LogStore(
        writer=writer, engine=engine, log_id=LOG_ID, open_reader=lambda: SqliteReader(path), stack=stack
    )


def _set_up(connection: Any, _record: object) -> None:  # Any: the driver's connection
    # Without it sqlite3 begins transactions by itself, and only at the first write.
    connection.isolation_level = None
    cursor = connection.cursor()
    cursor.execute("PRAGMA secure_delete = ON")
    cursor.close()


def _begin(connection: Connection) -> None:
    if connection.get_execution_options().get("isolation_level") != "AUTOCOMMIT":
        connection.exec_driver_sql("BEGIN IMMEDIATE")
