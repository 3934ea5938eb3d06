"""Connections to PostgreSQL: with time limits, strict about durability, and made again after they broke."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeVar

import psycopg
import sqlalchemy
from psycopg.abc import PQGen
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy import event

from kala.errors import FailedPreconditionError, UnavailableError
from services.audit.storage.postgres_schema import SELECT_TRIGGERS, SELECT_UNLOGGED, wrong_triggers
from services.audit.storage.schema import METADATA
from services.audit.storage.store import Head

VARIABLE: Final = "KALA_AUDIT_DATABASE"
CONNECT_SECONDS: Final = 5
# A statement of the writer takes milliseconds; one of a reader may look through a whole log for gaps.
WRITE_SECONDS: Final = 10
READ_SECONDS: Final = 60
# How long to wait for rivals' locks.
LOCK_SECONDS: Final = 5
# Connections that a network swallowed are noticed within this time, while idle and while sending.
SILENT_SECONDS: Final = 10
# How much later than the server we end a statement.
ANSWER_GRACE_SECONDS: Final = 5
ANSWER_POLL_SECONDS: Final = 0.1
RETRY_AFTER_SECONDS: Final = 1.0

_SELECT_HEAD: Final = 'SELECT size, "range", root, epoch, recorded_at, key_epoch FROM head WHERE log_id = %s'

Connection = psycopg.Connection[tuple[Any, ...]]  # `Any`: columns of any type
Result = TypeVar("Result")

_NETWORK: Final[dict[str, str | int]] = {
    "connect_timeout": CONNECT_SECONDS,
    "keepalives": 1,
    "keepalives_idle": 4,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": SILENT_SECONDS * 1_000,
    "application_name": "kala-audit",
    # Of several hosts the one that takes writes; a standby may lag behind what was acknowledged.
    "target_session_attrs": "read-write",
}
# What no URL may change: names are sent and read as UTF-8, whatever the server's default is.
_FIXED: Final = {"client_encoding": "UTF8"}
# Levels of `synchronous_commit` at which a commit that returned is on disk, here or on a standby as well.
DURABLE_COMMITS: Final = ("on", "remote_apply")
_SET_LOCAL_COMMIT: Final = (
    "SELECT set_config('synchronous_commit', "
    "CASE current_setting('synchronous_commit') WHEN 'remote_apply' THEN 'remote_apply' ELSE 'on' END, true)"
)
# What the log needs of a server, by setting: else it loses commits, keeps torn pages, goes on after a failed fsync as if
# it had not failed, or reads damaged pages as empty ones.
_NEEDED: Final = {
    "fsync": "on",
    "full_page_writes": "on",
    "data_sync_retry": "off",
    "zero_damaged_pages": "off",
    "server_encoding": "UTF8",
}
_SELECT_NEEDED: Final = "SELECT " + ", ".join(f"current_setting('{name}')" for name in _NEEDED)


def parameters_of(url: str) -> dict[str, Any]:  # `Any`: as psycopg has them
    """The connection parameters of a URL, with ours where it names none; the error never shows the URL."""
    # Else what follows the first @ or / of a password is taken for a host, and errors name it.
    user_and_host = url.partition("://")[2].partition("?")[0].split("@")
    if len(user_and_host) > 2 or (len(user_and_host) == 2 and "/" in user_and_host[0]):  # noqa: PLR2004 - before and after one @
        raise FailedPreconditionError(
            f"{VARIABLE}: an @ in a user's name or password is spelled %40, and a / is spelled %2F"
        )
    try:
        # SQLAlchemy's spelling of the driver is accepted too.
        given = conninfo_to_dict(url.replace("postgresql+psycopg://", "postgresql://", 1))
    except psycopg.Error:
        # Not its text: a URL may hold a password.
        raise FailedPreconditionError(
            f"{VARIABLE}: is neither a path nor a URL such as postgresql://user@host/database"
        ) from None
    return {**_NETWORK, **given, **_FIXED}


class _LimitedConnection(psycopg.Connection[tuple[Any, ...]]):  # `Any`: columns of any type
    """Gives up on a server that took a statement and never answers: it may be stopped, or its disk may hang.

    The server's own limit ends a statement first wherever the server is well enough to do so.
    """

    answer_seconds: float = CONNECT_SECONDS

    def wait(
        self, gen: PQGen[Result], interval: float = ANSWER_POLL_SECONDS, timeout: float | None = None
    ) -> Result:
        try:
            return super().wait(gen, interval, self.answer_seconds if timeout is None else timeout)
        except psycopg.OperationalError as error:
            if self.pgconn.transaction_status != psycopg.pq.TransactionStatus.ACTIVE:
                raise
            # What became of the statement is unknown, and so is this connection's state.
            self.close()
            raise psycopg.OperationalError(f"no answer within {self.answer_seconds:.0f} s") from error


class Postgres:
    """How to connect to one database."""

    def __init__(self, url: str) -> None:
        self._parameters = parameters_of(url)

    def connect(
        self,
        *,
        statement_seconds: int | None = None,
        lock_seconds: int | None = None,
        idle_seconds: int | None = None,
        is_read_only: bool = False,
    ) -> Connection:
        """A connection without transactions of its own; the limits are the constants above unless given."""
        statement_seconds = statement_seconds or WRITE_SECONDS
        connection = _LimitedConnection.connect(**self._parameters, autocommit=True)
        try:
            connection.execute(
                f"SET statement_timeout = '{statement_seconds}s';"
                f"SET lock_timeout = '{lock_seconds or LOCK_SECONDS}s';"
                f"SET idle_in_transaction_session_timeout = '{idle_seconds or WRITE_SECONDS}s';"
                f"SET default_transaction_read_only = {'on' if is_read_only else 'off'};"
                "SET default_transaction_isolation = 'read committed'".encode()
            )
            level = connection.execute("SHOW synchronous_commit").fetchone()
            if level is None or level[0] not in DURABLE_COMMITS:
                connection.execute("SET synchronous_commit = on")
        except BaseException:
            connection.close()
            raise
        connection.answer_seconds = statement_seconds + ANSWER_GRACE_SECONDS
        return connection

    def engine(
        self, *, statement_seconds: int | None = None, lock_seconds: int | None = None
    ) -> sqlalchemy.Engine:
        """The cold paths' way in, by SQLAlchemy; its transactions are READ COMMITTED."""

        def creator() -> Connection:
            connection = self.connect(statement_seconds=statement_seconds, lock_seconds=lock_seconds)
            # SQLAlchemy expects a driver that begins transactions.
            connection.autocommit = False
            return connection

        engine = sqlalchemy.create_engine(
            "postgresql+psycopg://", creator=creator, pool_pre_ping=True, hide_parameters=True
        )
        event.listen(engine, "begin", _await_the_disk)
        return engine


def _await_the_disk(connection: sqlalchemy.Connection) -> None:
    """Lets a transaction say for itself that its commit waits for the disk, as the writer's do.

    An erasure that is certified and a hold that is in force must not be lost either.
    """
    if connection.get_execution_options().get("isolation_level") != "AUTOCOMMIT":
        connection.exec_driver_sql(_SET_LOCAL_COMMIT)


class Session:
    """One connection for one thread, which is made again when it broke."""

    def __init__(
        self,
        connect: Callable[[], Connection],
        prepare: Callable[[Connection], None] | None = None,
    ) -> None:
        """`prepare` is called with each new connection; what it raises is raised to the caller."""
        self._connect = connect
        self._prepare = prepare
        self._connection: Connection | None = None

    def connection(self) -> Connection:
        """The connection, made anew if there is none; raises `psycopg.Error` when there can be none."""
        if self._connection is not None and not self._connection.broken and not self._connection.closed:
            return self._connection
        self.close()
        connection = self._connect()
        try:
            if self._prepare is not None:
                self._prepare(connection)
        except BaseException:
            connection.close()
            raise
        self._connection = connection
        return connection

    def read(self, question: Callable[[Connection], Result]) -> Result:
        """The answer to a question that may be asked twice: over a new connection when the old one broke.

        Raises `UnavailableError` when the database does not answer.
        """
        for is_last in (False, True):
            try:
                return question(self.connection())
            except psycopg.OperationalError as error:
                if is_last or (self._connection is not None and not self._connection.broken):
                    raise unavailable(error) from error
            except psycopg.Error as error:
                raise unavailable(error) from error
        raise AssertionError  # pragma: no cover - the last try returns or raises

    def is_in_transaction(self) -> bool:
        """Whether a transaction is open in which nothing failed."""
        connection = self._connection
        return (
            connection is not None
            and connection.info.transaction_status == psycopg.pq.TransactionStatus.INTRANS
        )

    def roll_back(self) -> None:
        """Ends the transaction that is open, if any; a connection that cannot is given up."""
        connection = self._connection
        if connection is None:
            return
        try:
            if connection.info.transaction_status != psycopg.pq.TransactionStatus.IDLE:
                connection.execute("ROLLBACK")
        except psycopg.Error:
            self.close()

    def close(self) -> None:
        """Closes the connection; the next question makes a new one."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


def unavailable(error: psycopg.Error) -> UnavailableError:
    """What a caller is told when the database fails."""
    return UnavailableError(
        f"the log's database does not answer: {first_line(error)}",
        reason="AUDIT_UNAVAILABLE",
        retry_after_seconds=RETRY_AFTER_SECONDS,
    )


def first_line(error: psycopg.Error) -> str:
    """An error's message without its detail, which may quote a row."""
    return error.diag.message_primary or str(error).partition("\n")[0] or type(error).__name__


def require_durable(connection: Connection) -> None:
    """Raises `FailedPreconditionError` when a commit that returned could be lost, damage hidden, or a name not kept."""
    found = connection.execute(_SELECT_NEEDED.encode()).fetchone()
    for (setting, needed), value in zip(_NEEDED.items(), found or (), strict=True):
        if value != needed:
            raise FailedPreconditionError(
                f"the database has {setting} = {value}, and the log needs '{needed}'"
            )
    level = connection.execute("SHOW synchronous_commit").fetchone()
    if level is None or level[0] not in DURABLE_COMMITS:
        raise FailedPreconditionError(
            f"the database answers synchronous_commit = {level and level[0]}, and the log needs 'on'"
        )
    tables = [*METADATA.tables, "idem"]
    unlogged = [row[0] for row in connection.execute(SELECT_UNLOGGED, [tables])]
    if unlogged:
        raise FailedPreconditionError(
            f"a crash empties tables that are not logged: ALTER TABLE {unlogged[0]} SET LOGGED"
        )


def require_triggers(connection: Connection) -> None:
    """Raises `FailedPreconditionError` unless the triggers that protect the log are exactly the expected ones."""
    wrong = wrong_triggers(connection.execute(SELECT_TRIGGERS).fetchall())
    if wrong:
        raise FailedPreconditionError(
            f"the triggers that protect the log are not as they should be: {', '.join(wrong)}"
        )


def read_head(connection: Connection, log_id: int, *, for_update: bool = False) -> Head:
    """The head row, locked until the transaction ends if told; `FailedPreconditionError` when there is no such log."""
    lock = " FOR UPDATE" if for_update else ""
    row = connection.execute((_SELECT_HEAD + lock).encode(), (log_id,)).fetchone()
    if row is None:
        raise FailedPreconditionError("the database holds no log")
    return Head(*row)
