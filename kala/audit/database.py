"""Verification of a log kept in SQLite, reading the file directly and never writing it.

Covered, byte for byte: leaves, their stored hashes and derived columns, payload ciphertexts, tiles, the head row, the
log's row, every signed checkpoint. `PRAGMA integrity_check` covers the b-trees around them. Not covered, because
nothing in a proof rests on it: unused space and free pages, wrapped data keys (`subject_key`), the writer's epoch,
the text of the schema. A damaged `-wal` file makes SQLite drop its newest transactions silently; only a pinned
checkpoint shows that.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Final

from kala.audit.columns import DERIVED
from kala.audit.note import Verifier
from kala.audit.report import LogReport, StoredPayload, TamperedError, UnverifiableError
from kala.audit.tile_check import TileCheck
from kala.audit.verify import LogChecker

# One SQLite file holds one log.
LOG_ID: Final = 1
# No row of a log is as long; what is computed instead of stored may be endless.
MAX_VALUE_BYTES: Final = 64 * 1024 * 1024
# Entries between two reports of progress.
PROGRESS_STEP: Final = 1_000

_ENTRIES: Final = (
    f"SELECT idx, leaf, leaf_hash, {', '.join(DERIVED)} FROM entry WHERE log_id = {LOG_ID} ORDER BY idx"  # noqa: S608 - constants only
)
_CHECKPOINTS: Final = f"SELECT size, root, note FROM checkpoint WHERE log_id = {LOG_ID} ORDER BY size"  # noqa: S608
_PAYLOADS: Final = (
    f"SELECT idx, kind, key_id, ciphertext FROM payload WHERE log_id = {LOG_ID} ORDER BY idx, kind"  # noqa: S608
)
_HEAD: Final = f'SELECT size, root, "range", recorded_at FROM head WHERE log_id = {LOG_ID}'  # noqa: S608
_LOG: Final = f"SELECT origin, vkey FROM log WHERE log_id = {LOG_ID}"  # noqa: S608

# The tables that could hold rows of another log, which no proof here would cover.
_TABLES: Final = ("log", "head", "entry", "checkpoint", "payload", "tile")

# How `PRAGMA integrity_check` names a row that an index does not hold.
_LOST_ROW: Final = re.compile(r"row (?P<row>\d+) missing from index (?P<index>\w+)")

OnProgress = Callable[[int, int], None]


def verify_database(
    path: Path,
    trusted: Sequence[Verifier],
    *,
    pinned: str | None = None,
    on_progress: OnProgress | None = None,
    check_integrity: bool = True,
) -> LogReport:
    """Returns what the log in this file proves, or raises `TamperedError` naming the first bad entry.

    `pinned` is a signed checkpoint of an earlier run, kept outside the file. `on_progress(done, total)` is called every
    thousand entries. `UnverifiableError` means that there is no log here or that the keys are not its own.
    A live log may be read: the check sees one snapshot.
    """
    if not path.is_file():
        raise UnverifiableError(f"{path} is not a file")
    if not trusted:
        raise UnverifiableError("a log is verified with its public key: none was given")
    with unreadable(lambda: 0), closing(connect(path)) as connection:
        return _DatabaseCheck(connection, trusted, pinned, on_progress).run(check_integrity=check_integrity)


def connect(path: Path) -> sqlite3.Connection:
    """A connection that cannot write, to a log that may be in use."""
    # Without a WAL no process has the log open: `immutable` then reads even from a read-only directory and leaves no
    # files. With one, possibly of a live log, SQLite must see it.
    mode = "mode=ro" if path.with_name(f"{path.name}-wal").exists() else "immutable=1"
    connection = sqlite3.connect(f"{path.resolve().as_uri()}?{mode}", uri=True, isolation_level=None)
    connection.execute("PRAGMA trusted_schema = OFF")
    connection.execute("PRAGMA cell_size_check = ON")
    connection.execute("PRAGMA query_only = ON")
    connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MAX_VALUE_BYTES)
    try:
        _require_stored(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def _require_stored(connection: sqlite3.Connection) -> None:
    """Raises `TamperedError` when a table computes what it holds: a view never need come to its end."""
    kinds = {row[1]: row[2] for row in connection.execute("PRAGMA main.table_list")}
    for table in _TABLES:
        # What is not there at all is told where it is looked for.
        kind = kinds.get(table, "table")
        computed = connection.execute("SELECT 1 FROM pragma_table_xinfo(?) WHERE hidden", (table,))
        if kind != "table" or computed.fetchone() is not None:
            raise TamperedError(None, f"{table} is no table of stored rows")


@contextmanager
def unreadable(index: Callable[[], int | None]) -> Iterator[None]:
    """Turns SQLite's complaint about a damaged page into the entry that was being read."""
    try:
        yield
    except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
        if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_CANTOPEN:
            raise UnverifiableError(f"the database cannot be opened: {error}") from error
        raise TamperedError(index(), f"the database cannot be read here: {error}") from error


class _DatabaseCheck:
    """One pass over one database."""

    def __init__(
        self,
        connection: sqlite3.Connection,
        trusted: Sequence[Verifier],
        pinned: str | None,
        on_progress: OnProgress | None,
    ) -> None:
        self._db = connection
        self._trusted = trusted
        self._on_progress = on_progress
        self._tiles = TileCheck(connection)
        self._checker = LogChecker(trusted, pinned, self._tiles.take)

    def run(self, *, check_integrity: bool) -> LogReport:
        self._db.execute("BEGIN")
        self._check_log_row()
        with unreadable(lambda: self._checker.size):
            self._walk()
            self._check_head()
        report = self._checker.finish()
        with unreadable(lambda: None):
            self._tiles.finish()
            self._check_no_other_log()
            if check_integrity:
                self._check_integrity()
        return report

    def _check_log_row(self) -> None:
        row = self._db.execute(_LOG).fetchone()
        if row is None:
            raise UnverifiableError("the database holds no log")
        if row[1] in {str(verifier) for verifier in self._trusted} and row[0] == row[1].partition("+")[0]:
            return
        newest = self._db.execute(f"{_CHECKPOINTS} DESC LIMIT 1").fetchone()
        names = {verifier.name for verifier in self._trusted}
        if newest is None or not isinstance(newest[2], str) or newest[2].partition("\n")[0] not in names:
            raise UnverifiableError(f"the log is {row[0]!r}, and none of the given keys is its own")
        raise TamperedError(0, "the log's row does not name the key that was given")

    def _walk(self) -> None:
        checker, total = self._checker, self._claimed_size()
        checkpoints = self._db.execute(_CHECKPOINTS)
        checkpoint = checkpoints.fetchone()
        payloads = _Grouped(self._db.execute(_PAYLOADS))
        for index, leaf, stored_hash, *columns in self._db.execute(_ENTRIES):
            while checkpoint is not None and not _is_above(checkpoint[0], checker.size):
                checkpoint = self._take_checkpoint(checkpoint, checkpoints)
            if index != checker.size or not isinstance(leaf, bytes):
                raise TamperedError(
                    checker.size, f"the next row is entry {index!r}" if leaf else "the leaf is gone"
                )
            checker.take(leaf, stored_hash, tuple(columns), payloads.take(index))
            if self._on_progress is not None and checker.size % PROGRESS_STEP == 0:
                self._on_progress(checker.size, total)
        while checkpoint is not None:
            checkpoint = self._take_checkpoint(checkpoint, checkpoints)
        if payloads.rest is not None:
            raise TamperedError(checker.size, "a payload belongs to no entry")
        if self._on_progress is not None:
            self._on_progress(checker.size, total)

    # `Any`: rows of sqlite3 are untyped, and a tampered one may hold anything.
    def _take_checkpoint(self, row: tuple[Any, ...], rows: sqlite3.Cursor) -> tuple[Any, ...] | None:
        size, root, note = row
        if not (isinstance(size, int) and isinstance(root, bytes) and isinstance(note, str)):
            raise TamperedError(self._checker.size, "a checkpoint's row holds values of the wrong kind")
        self._checker.take_checkpoint(size, root, note)
        return rows.fetchone()  # type: ignore[no-any-return] # as above

    def _claimed_size(self) -> int:
        row = self._db.execute(_HEAD).fetchone()
        return row[0] if row is not None and isinstance(row[0], int) else 0

    def _check_head(self) -> None:
        checker = self._checker
        head = self._db.execute(_HEAD).fetchone()
        if head is None or head[0] != checker.size:
            claimed = None if head is None else head[0]
            first = min(claimed, checker.size) if isinstance(claimed, int) else checker.size
            raise TamperedError(first, f"the head claims {claimed} entries, and there are {checker.size}")
        if head[1:] != (checker.root(), checker.range_bytes, checker.recorded_at):
            raise TamperedError(max(checker.size - 1, 0), "the head does not follow from the entries")

    def _check_no_other_log(self) -> None:
        for table in _TABLES:
            # Two comparisons, so that the primary key answers: `<>` would read the whole table.
            query = f"SELECT 1 FROM {table} WHERE log_id < {LOG_ID} OR log_id > {LOG_ID} LIMIT 1"  # noqa: S608 - constants only
            if self._db.execute(query).fetchone() is not None:
                raise TamperedError(None, f"the table {table} holds rows of another log")

    def _check_integrity(self) -> None:
        problems = [row[0] for row in self._db.execute("PRAGMA integrity_check")]
        if problems != ["ok"]:
            raise TamperedError(self._first_lost_row(problems), f"the file is damaged: {problems[0]}")

    def _first_lost_row(self, problems: list[str]) -> int | None:
        """The first entry that an index of SQLite's own no longer finds; None when the damage concerns no entry."""
        found = []
        for match in filter(None, (_LOST_ROW.search(problem) for problem in problems)):
            for table in ("entry", "payload"):
                if match["index"].startswith((f"{table}_", f"sqlite_autoindex_{table}_")):
                    # Rows are only ever added, so the row is found by its number without the damaged index.
                    query = f"SELECT idx FROM {table} NOT INDEXED WHERE rowid = ?"  # noqa: S608 - constants only
                    found += [row[0] for row in self._db.execute(query, (int(match["row"]),))]
        return min(found, default=None)


class _Grouped:
    """Payload rows, taken per entry while both run in order of index."""

    def __init__(self, rows: sqlite3.Cursor) -> None:
        self._rows = rows
        self.rest: tuple[Any, ...] | None = rows.fetchone()  # `Any`: untyped rows of sqlite3

    def take(self, index: int) -> list[StoredPayload]:
        taken: list[StoredPayload] = []
        while self.rest is not None and not _is_above(self.rest[0], index):
            row_index, kind, key_id, ciphertext = self.rest
            if (
                row_index != index
                or not isinstance(kind, str)
                or not isinstance(ciphertext, (bytes, type(None)))
            ):
                raise TamperedError(index, "a payload's row holds values that belong to no entry")
            taken.append(StoredPayload(kind, key_id, ciphertext))
            self.rest = self._rows.fetchone()
        return taken


def _is_above(value: object, limit: int) -> bool:
    return isinstance(value, int) and value > limit
