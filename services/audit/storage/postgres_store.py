"""The writing side of a log in PostgreSQL: any number of writers, made safe by a compare-and-swap on the head row.

One statement moves the head, if it is still where this writer saw it, and writes everything that hangs on the move.
Its row lock makes rivals wait, and whoever comes second writes nothing and builds its batch anew. That alone is the
safety argument. A writer that met a rival takes that lock before it builds, for a while: so they take turns, and no
batch is built in vain.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

import psycopg
import structlog
from psycopg import errors

from kala.audit.columns import DERIVED
from kala.audit.merkle import EMPTY_ROOT
from kala.errors import FailedPreconditionError, UnavailableError
from services.audit.migrate import migrate_postgres
from services.audit.payloads import WrappedKey
from services.audit.storage import postgres_arrays as arrays
from services.audit.storage.postgres import (
    DURABLE_COMMITS,
    Connection,
    Postgres,
    Result,
    Session,
    first_line,
    read_head,
    require_durable,
    require_triggers,
)
from services.audit.storage.postgres_schema import PARTITION_WIDTH
from services.audit.storage.store import (
    Commit,
    DuplicateKeyError,
    Head,
    HeadMovedError,
    StoreFailedError,
    require_own_log,
)

# After a rival was met, this many batches take turns.
TURNS: Final = 256
# How long a writer may be silent in its turn, stopped or cut off, before the database ends its transaction. Others wait
# no longer than that, which is less than they wait for a lock.
TURN_SECONDS: Final = 3

_COLUMNS: Final = ("idx", "leaf", "leaf_hash", *DERIVED)
_ARRAYS: Final = ", ".join(f"%({name})b" for name in _COLUMNS)
_APPEND: Final = f"""
WITH moved AS (
    UPDATE head SET size = %(size)s, "range" = %(range)s, root = %(root)s, recorded_at = %(at)s
    WHERE log_id = %(log)s AND size = %(old_size)s AND root = %(old_root)s AND key_epoch = %(key_epoch)s
      AND current_setting('fsync') = 'on' AND current_setting('full_page_writes') = 'on'
    RETURNING log_id, size, root
), known AS (
    INSERT INTO idem (log_id, idem, idx) SELECT log_id, u.* FROM moved, unnest(%(idem)b, %(idx)b) AS u
), signed AS (
    INSERT INTO checkpoint (log_id, size, root, note) SELECT log_id, size, root, %(note)s FROM moved
), keyed AS (
    INSERT INTO subject_key (key_id, subject, kek_id, wrapped, created_at)
    SELECT u.*, %(now)s FROM moved, unnest(%(key_id)b, %(subject)b, %(kek_id)b, %(wrapped)b) AS u
), sealed AS (
    INSERT INTO payload (log_id, idx, kind, key_id, ciphertext)
    SELECT log_id, u.* FROM moved, unnest(%(payload_idx)b, %(kind)b, %(payload_key)b, %(ciphertext)b) AS u
), tiled AS (
    INSERT INTO tile (log_id, level, n, width, data)
    SELECT log_id, u.* FROM moved, unnest(%(level)b, %(n)b, %(width)b, %(data)b) AS u
    ON CONFLICT (log_id, level, n) DO UPDATE SET width = excluded.width, data = excluded.data
)
INSERT INTO entry (log_id, {", ".join(_COLUMNS)}) SELECT moved.log_id, u.* FROM moved, unnest({_ARRAYS}) AS u
"""  # noqa: S608 - constants only
# Each transaction says for itself that its commit waits for the disk: neither a server's default nor a pool between
# can weaken it.
_BEGIN: Final = {
    level: f"BEGIN ISOLATION LEVEL READ COMMITTED; SET LOCAL synchronous_commit = {level}".encode()
    for level in DURABLE_COMMITS
}
# The kinds of columns that are not text.  `Any`: each takes its own kind of values.
_KINDS: Final[dict[str, Callable[[list[Any]], Any]]] = {
    **dict.fromkeys(("idem", "intent", "boot", "record_digest"), arrays.bytea),
    **dict.fromkeys(("sequence", "occurred_at", "recorded_at"), arrays.int8),
    "law": arrays.int4,
}

log = structlog.get_logger()


class PostgresWriter:
    """The writing side of the log of one origin. One thread at a time; other processes may write the same log."""

    def __init__(
        self, database: Postgres, *, origin: str, vkey: str, partition_width: int = PARTITION_WIDTH
    ) -> None:
        """Opens or creates the log; raises `FailedPreconditionError` when the database would weaken it."""
        self._session = Session(
            lambda: database.connect(idle_seconds=TURN_SECONDS), self._require_trustworthy
        )
        self._partition_width = partition_width
        # The first index that no partition takes yet, as far as this writer knows.
        self._bound = 0
        self._is_open = False
        # How many batches still take turns.
        self._turns = 0
        # Of the head as last written, for making partitions ahead.
        self._size = 0
        self._commit_level = DURABLE_COMMITS[0]
        try:
            migrate_postgres(database)
            self.log_id = _open_log(self._session.connection(), origin, vkey)
        except psycopg.Error as error:
            self._session.close()
            raise FailedPreconditionError(
                f"the database cannot be opened as a log: {first_line(error)}"
            ) from error
        except BaseException:
            self._session.close()
            raise
        self._is_open = True

    def head(self) -> Head:
        """The head as committed."""
        return self._ask(lambda connection: read_head(connection, self.log_id))

    def live_key(self, subject: str) -> WrappedKey | None:
        """The subject's data key that is not erased."""
        row = self._ask(
            lambda connection: connection.execute(
                "SELECT key_id, subject, kek_id, wrapped FROM subject_key "
                "WHERE subject = %s AND erased_at IS NULL",
                (subject,),
            ).fetchone()
        )
        return None if row is None else WrappedKey(*row)

    def take_turn(self) -> Head | None:
        """Waits for a rival to finish, if one was met lately, and keeps others waiting until `commit` or `end_turn`.

        Returns the head as it then is; None when no turn was taken.
        """
        if not self._turns:
            return None
        self._turns -= 1
        try:
            self._make_room(self._size)
            return read_head(self._begin(), self.log_id, for_update=True)
        except psycopg.Error as error:
            self._session.roll_back()
            raise StoreFailedError(f"the database does not answer: {first_line(error)}") from error

    def end_turn(self) -> None:
        """Lets others go on, if a turn was taken and nothing was committed in it."""
        if self._is_in_turn():
            self._session.roll_back()

    def commit(self, batch: Commit) -> None:
        """Writes all or nothing and returns when it is on disk."""
        try:
            if not self._is_in_turn() or batch.head.size > self._bound:
                self._make_room(batch.head.size)
            connection = self._session.connection() if self._is_in_turn() else self._begin()
            written = connection.execute(_APPEND, self._values(batch)).rowcount
            if written != len(batch.entries):
                self._session.roll_back()
                self._explain(connection, written)
            if connection.execute("COMMIT").statusmessage != "COMMIT":
                # So PostgreSQL answers, without an error, for a transaction that had failed.
                raise StoreFailedError("the database rolled the entries back")
            self._size = batch.head.size
        except errors.UniqueViolation as error:
            self._session.roll_back()
            raise self._clash(error) from error
        except (errors.SerializationFailure, errors.DeadlockDetected) as error:
            self._session.roll_back()
            self._turns = TURNS
            raise HeadMovedError("the database gave another writer's transaction precedence") from error
        except psycopg.Error as error:
            # Whether a commit that broke off took place, only the database knows: the head tells at the next try.
            self._session.roll_back()
            raise StoreFailedError(f"the database cannot write: {first_line(error)}") from error

    def settle(self) -> None:
        """Nothing to do: PostgreSQL writes its WAL back by itself."""

    def close(self) -> None:
        """Closes the connection."""
        self._session.close()

    def _ask(self, question: Callable[[Connection], Result]) -> Result:
        try:
            return self._session.read(question)
        except UnavailableError as error:
            # It fails the whole batch, and not the one record that it is asked for.
            raise StoreFailedError(error.message) from error

    def _begin(self) -> Connection:
        """Begins a transaction; over a new connection when the old one broke, since nothing was said in it yet."""
        for is_last in (False, True):
            connection = self._session.connection()
            try:
                self._session.roll_back()  # of a transaction that failed at a look-up
                connection.execute(_BEGIN[self._commit_level])
            except psycopg.OperationalError:
                self._session.close()
                if is_last:
                    raise
            else:
                return connection
        raise AssertionError  # pragma: no cover - the last try returns or raises

    def _is_in_turn(self) -> bool:
        """Whether a transaction is open; the database ends one that took too long, and a lost connection any."""
        return self._session.is_in_transaction()

    def _make_room(self, size: int) -> None:
        """Makes the partitions for entries below `size`, and well before it is needed the next one."""
        if size + self._partition_width // 2 < self._bound:
            return
        try:
            row = (
                self._session.connection()
                .execute(
                    "SELECT audit_extend_entry(%s, %s)",
                    (size + self._partition_width // 2, self._partition_width),
                )
                .fetchone()
            )
        except psycopg.Error as error:
            if size > self._bound:
                raise
            log.warning("no partition could be made ahead", error=first_line(error))
        else:
            self._bound = 0 if row is None else row[0]

    def _require_trustworthy(self, connection: Connection) -> None:
        """What every new connection must show: the server may have been changed while we were away."""
        try:
            require_durable(connection)
            require_triggers(connection)
        except FailedPreconditionError as error:
            if not self._is_open:
                raise
            # Nothing is wrong with any record: callers keep theirs until the database is what it was.
            raise StoreFailedError(error.message) from error
        arrays.register(connection)
        self._bound = 0
        row = connection.execute("SHOW synchronous_commit").fetchone()
        self._commit_level = "on" if row is None else row[0]

    def _explain(self, connection: Connection, written: int) -> None:
        """Raises what it means that not every entry was written."""
        if written:
            raise StoreFailedError(f"the database took only {written} of the entries")
        try:
            require_durable(connection)
        except FailedPreconditionError as error:
            raise StoreFailedError(error.message) from error
        self._turns = TURNS
        raise HeadMovedError("another writer moved the log's head")

    def _clash(self, error: errors.UniqueViolation) -> DuplicateKeyError | HeadMovedError | StoreFailedError:
        if error.diag.constraint_name == "idem_pkey":
            return DuplicateKeyError("an idempotency key is already in the log")
        if error.diag.constraint_name == "subject_key_live":
            # A writer of another log in this database made the subject's key first.
            return HeadMovedError("another writer made a subject's data key")
        return StoreFailedError(f"the database refused the entries: {first_line(error)}")

    def _values(self, batch: Commit) -> dict[str, Any]:  # `Any`: whatever the columns hold
        head = batch.head
        values: dict[str, Any] = {
            "log": self.log_id,
            "old_size": batch.old_size,
            "old_root": batch.old_root,
            "size": head.size,
            "range": head.range_bytes,
            "root": head.root,
            "at": head.recorded_at,
            "key_epoch": head.key_epoch,
            "note": batch.note,
            "now": time.time_ns() // 1_000,
        }
        entries = batch.entries
        values["idx"] = arrays.int8([row.index for row in entries])
        values["leaf"] = arrays.bytea([row.leaf for row in entries])
        values["leaf_hash"] = arrays.bytea([row.leaf_hash for row in entries])
        for place, name in enumerate(DERIVED):
            values[name] = _KINDS.get(name, arrays.text)([row.columns[place] for row in entries])
        keys, payloads, tiles = batch.keys, batch.payloads, batch.tiles
        values["key_id"] = arrays.text([key.key_id for key in keys])
        values["subject"] = arrays.text([key.subject for key in keys])
        values["kek_id"] = arrays.text([key.kek_id for key in keys])
        values["wrapped"] = arrays.bytea([key.wrapped for key in keys])
        values["payload_idx"] = arrays.int8([row.index for row in payloads])
        values["kind"] = arrays.text([row.kind for row in payloads])
        values["payload_key"] = arrays.text([row.key_id for row in payloads])
        values["ciphertext"] = arrays.bytea([row.ciphertext for row in payloads])
        values["level"] = arrays.int4([tile.level for tile in tiles])
        values["n"] = arrays.int8([tile.number for tile in tiles])
        values["width"] = arrays.int4([tile.width for tile in tiles])
        values["data"] = arrays.bytea([tile.data for tile in tiles])
        return values


def _open_log(connection: Connection, origin: str, vkey: str) -> int:
    """The number of the log of this origin, made on first use."""
    with connection.transaction():
        # Two writers that start at once make one log.
        connection.execute("SELECT pg_advisory_xact_lock(hashtextextended('kala.audit.log', 0))")
        row = connection.execute(
            "SELECT log_id, origin, vkey FROM log WHERE origin = %s", (origin,)
        ).fetchone()
        if row is not None:
            newest = connection.execute(
                "SELECT note FROM checkpoint WHERE log_id = %s ORDER BY size DESC LIMIT 1", (row[0],)
            ).fetchone()
            if require_own_log((row[1], row[2]), origin, vkey, None if newest is None else newest[0]):
                connection.execute("UPDATE log SET vkey = %s WHERE log_id = %s", (vkey, row[0]))
            return int(row[0])
        row = connection.execute("SELECT coalesce(max(log_id), 0) + 1 FROM log").fetchone()
        log_id = 1 if row is None else int(row[0])
        connection.execute(
            "INSERT INTO log (log_id, origin, vkey, created_at) VALUES (%s, %s, %s, %s)",
            (log_id, origin, vkey, time.time_ns() // 1_000),
        )
        connection.execute(
            'INSERT INTO head (log_id, size, "range", root, epoch, recorded_at) VALUES (%s, 0, %s, %s, 0, 0)',
            (log_id, b"", EMPTY_ROOT),
        )
        return log_id
