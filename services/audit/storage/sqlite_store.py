"""The log in SQLite: one writing connection with strict durability, and reading connections beside it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from kala.audit.columns import DERIVED
from kala.audit.merkle import EMPTY_ROOT
from kala.audit.report import TILE_WIDTH
from kala.errors import FailedPreconditionError, InvalidArgumentError, UnavailableError
from services.audit.edge import split_hashes
from services.audit.migrate import migrate_sqlite, require_triggers
from services.audit.payloads import STORED_FLAG, WrappedKey
from services.audit.reading.query import Condition
from services.audit.storage.sqlite_queries import SELECT_GAPS, clauses_of, index_for
from services.audit.storage.store import (
    Commit,
    DuplicateKeyError,
    EntryRow,
    GapRow,
    Head,
    HeadMovedError,
    PayloadRow,
    StoredEntry,
    StoreFailedError,
    require_own_log,
)

LOG_ID: Final = 1
SYNCHRONOUS_FULL: Final = 2
# Longer than any reader holds a lock that matters to the writer; readers never block it in WAL mode.
BUSY_TIMEOUT_MS: Final = 5_000
# 16 MiB of WAL before it is written back: rarer and larger than SQLite's default, so fewer slow commits.
WAL_AUTOCHECKPOINT_PAGES: Final = 4_000

_ENTRY_COLUMNS: Final = ("log_id", "idx", "leaf", "leaf_hash", *DERIVED)
_INSERT_ENTRY: Final = (
    f"INSERT INTO entry ({', '.join(_ENTRY_COLUMNS)}) VALUES ({', '.join('?' * len(_ENTRY_COLUMNS))})"  # noqa: S608 - constants only
)
_MOVE_HEAD: Final = (
    'UPDATE head SET size = ?, "range" = ?, root = ?, recorded_at = ? '
    "WHERE log_id = ? AND size = ? AND root = ? AND epoch = ? AND key_epoch = ?"
)
_READ_COLUMNS: Final = "idx, leaf, leaf_hash, record_digest, idem"
_SELECT_ENTRY: Final = f"SELECT {_READ_COLUMNS} FROM entry WHERE log_id = 1"  # noqa: S608 - constants only
_SELECT_KEY: Final = "SELECT key_id, subject, kek_id, wrapped FROM subject_key"


class WriterLock:
    """Holds the file lock that keeps a second process from writing the same log; the system frees it at any death."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._descriptor)
            raise FailedPreconditionError(f"another process writes this log: {path} is locked") from error

    def release(self) -> None:
        """Lets the next process write."""
        os.close(self._descriptor)


class SqliteWriter:
    """The writing side of a log in one SQLite file. One thread at a time."""

    def __init__(self, path: Path, *, origin: str, vkey: str) -> None:
        """Opens or creates the log; raises `FailedPreconditionError` when the database would weaken it."""
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._lock = WriterLock(path.with_name(f"{path.name}.lock"))
        try:
            migrate_sqlite(path)
            self._db = _connect(path)
            _require_durable(self._db)
            require_triggers(self._db)
            self._epoch = self._take_over(origin, vkey)
        except sqlite3.DatabaseError as error:
            self._lock.release()
            raise FailedPreconditionError(f"{path} cannot be opened as a log: {error}") from error
        except BaseException:
            self._lock.release()
            raise

    def head(self) -> Head:
        """The head as committed; raises `UnavailableError` for ever once another process took the log over."""
        head = read_head(self._db)
        if head.epoch != self._epoch:
            raise UnavailableError("another process took the log over", reason="AUDIT_FENCED")
        return head

    def live_key(self, subject: str) -> WrappedKey | None:
        """The subject's data key that is not erased."""
        row = self._db.execute(
            f"{_SELECT_KEY} WHERE subject = ? AND erased_at IS NULL", (subject,)
        ).fetchone()
        return None if row is None else WrappedKey(*row)

    def commit(self, batch: Commit) -> None:
        """Writes all or nothing and returns when it is on disk."""
        head = batch.head
        try:
            with self._transaction() as db:
                moved = db.execute(
                    _MOVE_HEAD,
                    (
                        head.size,
                        head.range_bytes,
                        head.root,
                        head.recorded_at,
                        LOG_ID,
                        batch.old_size,
                        batch.old_root,
                        self._epoch,
                        head.key_epoch,
                    ),
                )
                if moved.rowcount != 1:
                    raise HeadMovedError("another writer moved the log's head")
                db.executemany(_INSERT_ENTRY, map(_entry_values, batch.entries))
                self._write_rest(db, batch)
        except sqlite3.IntegrityError as error:
            if "entry.idem" in str(error):
                raise DuplicateKeyError("an idempotency key is already in the log") from error
            raise StoreFailedError(f"the database refused the entries: {error}") from error
        except sqlite3.Error as error:
            raise StoreFailedError(f"the database cannot write: {error}") from error

    def take_turn(self) -> Head | None:
        """None: there is no other writer."""
        return None

    def end_turn(self) -> None:
        """Nothing to do."""

    def settle(self) -> None:
        """Writes the WAL back into the file and empties it; does nothing while a reader is in the way or the disk is full."""
        self._db.execute("PRAGMA busy_timeout = 0")
        # Nothing is lost when it fails: what is committed stays in the WAL until the next time.
        with contextlib.suppress(sqlite3.OperationalError):
            self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        self._db.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")

    def close(self) -> None:
        """Writes the WAL back into the file, so that a copy of the file alone is the whole log; frees the lock."""
        try:
            self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            self._db.close()
        finally:
            self._lock.release()

    def _write_rest(self, db: sqlite3.Connection, batch: Commit) -> None:
        head = batch.head
        db.execute("INSERT INTO checkpoint VALUES (?, ?, ?, ?)", (LOG_ID, head.size, head.root, batch.note))
        if batch.keys:
            now = time.time_ns() // 1_000
            db.executemany(
                "INSERT INTO subject_key (key_id, subject, kek_id, wrapped, created_at) VALUES (?, ?, ?, ?, ?)",
                [(key.key_id, key.subject, key.kek_id, key.wrapped, now) for key in batch.keys],
            )
        if batch.payloads:
            db.executemany(
                "INSERT INTO payload VALUES (?, ?, ?, ?, ?)",
                [(LOG_ID, row.index, row.kind, row.key_id, row.ciphertext) for row in batch.payloads],
            )
        if batch.tiles:
            db.executemany(
                "INSERT INTO tile VALUES (?, ?, ?, ?, ?) "
                "ON CONFLICT DO UPDATE SET width = excluded.width, data = excluded.data",
                [(LOG_ID, *tile) for tile in batch.tiles],
            )

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield self._db
            self._db.execute("COMMIT")
        except BaseException:
            # A full disk makes SQLite roll back by itself; a second ROLLBACK would raise.
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise

    def _take_over(self, origin: str, vkey: str) -> int:
        """Makes the log's rows on first use, and starts a new epoch that shuts out any writer before."""
        with self._transaction() as db:
            row = db.execute("SELECT origin, vkey FROM log WHERE log_id = ?", (LOG_ID,)).fetchone()
            if row is None:
                db.execute(
                    "INSERT INTO log VALUES (?, ?, ?, ?)", (LOG_ID, origin, vkey, time.time_ns() // 1_000)
                )
                db.execute("INSERT INTO head VALUES (?, 0, ?, ?, 0, 0, 0)", (LOG_ID, b"", EMPTY_ROOT))
            else:
                newest = db.execute("SELECT note FROM checkpoint ORDER BY size DESC LIMIT 1").fetchone()
                if require_own_log((row[0], row[1]), origin, vkey, None if newest is None else newest[0]):
                    db.execute("UPDATE log SET vkey = ? WHERE log_id = ?", (vkey, LOG_ID))
            db.execute("UPDATE head SET epoch = epoch + 1 WHERE log_id = ?", (LOG_ID,))
            return read_head(db).epoch


class SqliteReader:
    """The reading side; owns one connection and is used by one thread at a time."""

    def __init__(self, path: Path) -> None:
        self._db = _connect(path)
        self._db.execute("PRAGMA query_only = ON")

    def head(self) -> Head:
        """The head as committed."""
        return read_head(self._db)

    def entry(self, index: int) -> StoredEntry | None:
        """The entry at this index."""
        row = self._db.execute(f"{_SELECT_ENTRY} AND idx = ?", (index,)).fetchone()
        return None if row is None else StoredEntry(*row)

    def by_keys(self, keys: Iterable[bytes]) -> dict[bytes, StoredEntry]:
        """The entries with these idempotency keys."""
        found = (self._db.execute(f"{_SELECT_ENTRY} AND idem = ?", (key,)).fetchone() for key in keys)
        return {row[4]: StoredEntry(*row) for row in found if row is not None}

    def hashes(self, level: int, first: int, last: int) -> list[bytes]:
        """The hashes [first, last), all of one tile, of a tile level."""
        if level == 0 and last - first < TILE_WIDTH:
            rows = self._db.execute(
                "SELECT leaf_hash FROM entry WHERE log_id = ? AND idx >= ? AND idx < ? ORDER BY idx",
                (LOG_ID, first, last),
            )
            return [row[0] for row in rows]
        row = self._db.execute(
            "SELECT data FROM tile WHERE log_id = ? AND level = ? AND n = ?",
            (LOG_ID, level, first // TILE_WIDTH),
        ).fetchone()
        offset = first % TILE_WIDTH
        return [] if row is None else split_hashes(row[0])[offset : offset + last - first]

    def note(self, size: int | None) -> tuple[int, str] | None:
        """The signed checkpoint of this size, or the newest, with its size."""
        where, values = ("", ()) if size is None else (" AND size = ?", (size,))
        sql = f"SELECT size, note FROM checkpoint WHERE log_id = 1{where} ORDER BY size DESC LIMIT 1"  # noqa: S608 - constants only
        # `Any`: rows of sqlite3 are untyped.
        row: tuple[Any, ...] | None = self._db.execute(sql, values).fetchone()
        return None if row is None else (row[0], row[1])

    def payloads(self, index: int) -> list[PayloadRow]:
        """The payload rows of an entry."""
        rows = self._db.execute(
            "SELECT idx, kind, key_id, ciphertext FROM payload WHERE log_id = ? AND idx = ? ORDER BY kind",
            (LOG_ID, index),
        )
        return [PayloadRow(*row) for row in rows]

    def kept_kinds(self, indexes: Sequence[int]) -> dict[int, list[str]]:
        """The kinds of the payloads whose plaintext is still kept, per entry; see `LogReader`."""
        kept: dict[int, list[str]] = {}
        sql = "SELECT kind FROM payload WHERE log_id = ? AND idx = ? AND substr(ciphertext, 1, 1) = ? ORDER BY kind"
        for index in indexes:
            kinds = [row[0] for row in self._db.execute(sql, (LOG_ID, index, STORED_FLAG))]
            if kinds:
                kept[index] = kinds
        return kept

    def key(self, key_id: str) -> WrappedKey | None:
        """A data key by its id."""
        row = self._db.execute(f"{_SELECT_KEY} WHERE key_id = ?", (key_id,)).fetchone()
        return None if row is None else WrappedKey(*row)

    def newest_key(self) -> WrappedKey | None:
        """The data key that was made last."""
        row = self._db.execute(f"{_SELECT_KEY} ORDER BY rowid DESC LIMIT 1").fetchone()
        return None if row is None else WrappedKey(*row)

    def query(
        self, conditions: Sequence[Condition], *, first: int, last: int, limit: int, descending: bool
    ) -> list[StoredEntry]:
        """The entries of [first, last) that meet all conditions, in order of index, at most `limit`."""
        clauses, values = clauses_of(conditions)
        index = index_for(self._db, conditions, first=first, last=last)
        order = "DESC" if descending else "ASC"
        rows = self._db.execute(
            f"SELECT {_READ_COLUMNS} FROM entry{index} WHERE log_id = 1 AND idx >= ? AND idx < ?{clauses} "  # noqa: S608 - constants only
            f"ORDER BY idx {order} LIMIT ?",
            (first, last, *values, limit),
        )
        return [StoredEntry(*row) for row in rows]

    def index_at(self, recorded_at: int) -> int:
        """The first index recorded at or after this time, found by bisection: the times never decrease."""
        low, high = 0, self.head().size
        while low < high:
            middle = (low + high) // 2
            row = self._db.execute(
                "SELECT recorded_at FROM entry WHERE log_id = ? AND idx = ?", (LOG_ID, middle)
            ).fetchone()
            if row is not None and row[0] < recorded_at:
                low = middle + 1
            else:
                high = middle
        return low

    def gaps(
        self,
        conditions: Sequence[Condition] = (),
        *,
        last: int,
        intents_before: int,
        limit: int,
        offset: int,
    ) -> list[GapRow]:
        """What is missing among the entries below `last`; see `LogReader`."""
        values: dict[str, int | str] = {
            "log": LOG_ID,
            "last": last,
            "before": intents_before,
            "limit": limit,
            "offset": offset,
        }
        clauses = ""
        for number, condition in enumerate(conditions):
            names = [f"c{number}_{place}" for place in range(len(condition.values))]
            values.update(zip(names, condition.values, strict=True))
            clauses += f" AND {condition.column} IN ({', '.join(f':{name}' for name in names)})"
        rows = self._db.execute(SELECT_GAPS.format(conditions=clauses), values)
        return [GapRow(row[0], bool(row[1]), *row[2:]) for row in rows]

    def counts(self, column: str, first: int, conditions: Sequence[Condition] = ()) -> list[tuple[str, int]]:
        """How many entries from index `first` on have each value of a derived column; nulls are left out."""
        if column not in DERIVED:
            raise InvalidArgumentError("column", f"{column} is not a derived column")
        clauses, values = clauses_of(conditions)
        rows = self._db.execute(
            f"SELECT {column}, count(*) FROM entry "  # noqa: S608 - the names are of DERIVED
            f"WHERE log_id = ? AND idx >= ? AND {column} IS NOT NULL{clauses} GROUP BY 1 ORDER BY 1",
            (LOG_ID, first, *values),
        )
        return [(str(value), count) for value, count in rows]

    def close(self) -> None:
        """Closes the connection."""
        self._db.close()


def read_head(db: sqlite3.Connection) -> Head:
    """The head row; raises `FailedPreconditionError` when the database holds no log."""
    row = db.execute(
        'SELECT size, "range", root, epoch, recorded_at, key_epoch FROM head WHERE log_id = ?', (LOG_ID,)
    ).fetchone()
    if row is None:
        raise FailedPreconditionError("the database holds no log")
    return Head(*row)


def _entry_values(row: EntryRow) -> tuple[int | str | bytes | None, ...]:
    return (LOG_ID, row.index, row.leaf, row.leaf_hash, *row.columns)


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    connection.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    # What is destroyed, a wrapped key above all, must not live on in unused parts of pages.
    connection.execute("PRAGMA secure_delete = ON")
    connection.execute(f"PRAGMA wal_autocheckpoint = {WAL_AUTOCHECKPOINT_PAGES}")
    if sys.platform == "darwin":
        # fsync on macOS does not reach the platter without it.
        connection.execute("PRAGMA fullfsync = ON")
        connection.execute("PRAGMA checkpoint_fullfsync = ON")
    return connection


def _require_durable(connection: sqlite3.Connection) -> None:
    """Refuses a database that would acknowledge before the disk has it."""
    expected: list[tuple[str, str | int]] = [("journal_mode", "wal"), ("synchronous", SYNCHRONOUS_FULL)]
    if sys.platform == "darwin":
        expected.append(("fullfsync", 1))
    for pragma, value in expected:
        found = connection.execute(f"PRAGMA {pragma}").fetchone()[0]
        if found != value:
            raise FailedPreconditionError(
                f"the database answers {pragma} = {found!r}, and the log needs {value!r}"
            )
