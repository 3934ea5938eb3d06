"""Bounded retention in PostgreSQL: old entries go by whole partitions, while every proof about the rest still holds.

What stays of dropped entries are the full tiles of their hashes, the checkpoints, and the receipts that others hold: a
receipt carries its leaf, and the log still proves that its present head contains what it contained then. What goes is the
leaves, the columns for look-ups and the keys that made repeats harmless. SQLite keeps everything.
"""

from __future__ import annotations

from typing import Final

from psycopg import errors
from sqlalchemy import Connection, Engine, func, select, text
from sqlalchemy.exc import ProgrammingError

from kala.errors import FailedPreconditionError
from services.audit.storage.schema import ENTRY, HEAD, PAYLOAD

# Rows of one transaction that clears what belonged to dropped entries: milliseconds each.
STEP_ROWS: Final = 10_000

_PARTITIONS: Final = text(r"""
SELECT c.relname, substring(bounds FROM 'FROM \(''(\d+)''\)')::bigint, substring(bounds FROM 'TO \(''(\d+)''\)')::bigint
FROM pg_inherits AS i JOIN pg_class AS c ON c.oid = i.inhrelid, pg_get_expr(c.relpartbound, c.oid) AS bounds
WHERE i.inhparent = 'entry'::regclass ORDER BY 2
""")


def first_index(engine: Engine) -> int:
    """The first index whose entry is not dropped."""
    with engine.connect() as connection:
        return _partitions(connection)[0][1]


def drop_before(engine: Engine, log_id: int, index: int) -> int:
    """Drops the entries of the partitions that lie wholly below `index`; returns the first index that is still there.

    Raises `FailedPreconditionError` while content of such an entry is kept, while an entry of another log would go as
    well, or when the engine's user does not own the tables. May be called again after it broke off.
    """
    try:
        first = _drop_partitions(engine, log_id, index)
        for table in ("payload", "idem"):
            while _clear(engine, table, log_id, first):
                pass
    except ProgrammingError as error:
        if isinstance(error.orig, errors.InsufficientPrivilege):
            raise FailedPreconditionError("only the owner of the log's tables drops entries") from error
        raise
    return first


def _drop_partitions(engine: Engine, log_id: int, index: int) -> int:
    """Drops what lies wholly below `index`; the first index that is still there."""
    with engine.begin() as connection:
        size = connection.execute(select(HEAD.c.size).where(HEAD.c.log_id == log_id)).scalar_one()
        partitions = _partitions(connection)
        old = [part for part in partitions[:-1] if part[2] <= min(index, size)]
        if old:
            _require_free(connection, log_id, old[-1][2])
            for name, _, _ in old:
                connection.execute(text(f'ALTER TABLE entry DETACH PARTITION "{name}"'))
                connection.execute(text(f'DROP TABLE "{name}"'))
        return partitions[len(old)][1]


def _partitions(connection: Connection) -> list[tuple[str, int, int]]:
    """Name, first index and end of each partition, oldest first."""
    return [(name, first, end) for name, first, end in connection.execute(_PARTITIONS)]


def _require_free(connection: Connection, log_id: int, end: int) -> None:
    kept = select(func.min(PAYLOAD.c.idx)).where(PAYLOAD.c.idx < end, PAYLOAD.c.ciphertext.is_not(None))
    if (place := connection.execute(kept).scalar()) is not None:
        raise FailedPreconditionError(f"entry {place} still has content; expire or erase it first")
    other = select(ENTRY.c.log_id).where(ENTRY.c.idx < end, ENTRY.c.log_id != log_id).limit(1)
    if (other_id := connection.execute(other).scalar()) is not None:
        raise FailedPreconditionError(
            f"log {other_id} of this database has entries below {end} too; logs that drop entries need their own database"
        )


def _clear(engine: Engine, table: str, log_id: int, first: int) -> bool:
    """Removes some rows of dropped entries; whether there may be more."""
    statement = text(
        f"DELETE FROM {table} WHERE ctid = ANY(ARRAY("  # noqa: S608 - one of two constants
        f"SELECT ctid FROM {table} WHERE log_id = :log AND idx < :first LIMIT :rows))"
    )
    with engine.begin() as connection:
        return (
            connection.execute(statement, {"log": log_id, "first": first, "rows": STEP_ROWS}).rowcount
            == STEP_ROWS
        )
