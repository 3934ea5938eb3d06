"""An audit service that is broken on purpose, each time in one of the means by which the real one keeps its promise.

The kill test runs against it to show that its checker would notice. `AUDIT_MUTATION` says what is broken.
"""

from __future__ import annotations

import os
import sqlite3
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from services.audit import __main__ as audit_process
from services.audit.batch import BatchWriter
from services.audit.storage import postgres_store, stores
from services.audit.storage.postgres_store import PostgresWriter
from services.audit.storage.sqlite_store import SqliteReader, SqliteWriter
from services.audit.storage.store import Commit, Head, StoredEntry
from services.common.event_loop import run

HELD_BATCHES = 20


def _early(base: type[Any]) -> type[Any]:
    """A writer that keeps batches in memory and writes them a few at a time, long after they were acknowledged."""

    class EarlyWriter(base):  # type: ignore[misc] # either writer
        def __init__(self, *args: object, **options: object) -> None:
            self._held: list[Commit] = []
            super().__init__(*args, **options)

        def head(self) -> Head:
            return self._held[-1].head if self._held else super().head()  # type: ignore[no-any-return] # its head

        def commit(self, batch: Commit) -> None:
            self._held.append(batch)
            if len(self._held) >= HELD_BATCHES:
                self._write_held()

        def close(self) -> None:
            self._write_held()
            super().close()

        def _write_held(self) -> None:
            while self._held:
                super().commit(self._held[0])
                self._held.pop(0)

    return EarlyWriter


class LookupInsideWriter(SqliteWriter):
    """Looks repeats up before it rolls back, and so takes its own uncommitted rows for entries of the log."""

    seen: dict[bytes, StoredEntry] = {}  # noqa: RUF012 - the reader below looks here

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield self._db
            self._db.execute("COMMIT")
        except BaseException:
            rows = self._db.execute("SELECT idx, leaf, leaf_hash, record_digest, idem FROM entry")
            LookupInsideWriter.seen = {row[4]: StoredEntry(*row) for row in rows}
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise


def _look_inside(_reader: SqliteReader, keys: Iterable[bytes]) -> dict[bytes, StoredEntry]:
    return {key: LookupInsideWriter.seen[key] for key in keys if key in LookupInsideWriter.seen}


def _acknowledge_early() -> None:
    stores.SqliteWriter = _early(SqliteWriter)  # type: ignore[misc] # broken
    postgres_store.PostgresWriter = _early(PostgresWriter)  # type: ignore[misc] # broken


def _look_up_inside() -> None:
    stores.SqliteWriter = LookupInsideWriter  # type: ignore[misc] # broken
    SqliteReader.by_keys = _look_inside  # type: ignore[method-assign] # broken


def _move_without_comparing() -> None:
    """Neither compares the head nor minds that another entry has the index already."""
    statement = postgres_store._APPEND.replace("AND size = %(old_size)s AND root = %(old_root)s ", "")
    assert statement != postgres_store._APPEND
    for insert in ("%(idem)b, %(idx)b) AS u", "%(note)s FROM moved"):
        changed = statement.replace(insert, f"{insert} ON CONFLICT DO NOTHING")
        assert changed != statement
        statement = changed
    statement += "ON CONFLICT DO NOTHING"
    postgres_store._APPEND = statement  # type: ignore[misc] # broken

    PostgresWriter._explain = lambda *_arguments: None  # type: ignore[method-assign,assignment] # broken
    BatchWriter._require_continued = lambda _self, _head: None  # type: ignore[method-assign] # broken


def _commit_without_waiting() -> None:
    # Its own check would notice the loss at once and acknowledge nothing more.
    BatchWriter._require_continued = lambda _self, _head: None  # type: ignore[method-assign] # broken
    postgres_store._BEGIN = dict.fromkeys(  # type: ignore[misc] # broken
        postgres_store._BEGIN, b"BEGIN ISOLATION LEVEL READ COMMITTED; SET LOCAL synchronous_commit = off"
    )


MUTATIONS: dict[str, Callable[[], None]] = {
    "early": _acknowledge_early,
    "lookup_inside": _look_up_inside,
    "no_compare": _move_without_comparing,
    "no_wait": _commit_without_waiting,
}

if __name__ == "__main__":
    MUTATIONS[os.environ["AUDIT_MUTATION"]]()
    sys.exit(run(audit_process.main()))
