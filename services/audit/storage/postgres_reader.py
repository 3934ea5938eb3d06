"""The reading side of a log in PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

from kala.audit.columns import DERIVED
from kala.audit.report import TILE_WIDTH
from kala.errors import InvalidArgumentError
from services.audit.edge import split_hashes
from services.audit.payloads import STORED_FLAG, WrappedKey
from services.audit.reading.query import Condition
from services.audit.storage.postgres import READ_SECONDS, Postgres, Session, read_head
from services.audit.storage.store import GapRow, Head, PayloadRow, StoredEntry

_SELECT_ENTRY: Final = "SELECT idx, leaf, leaf_hash, record_digest, idem FROM entry WHERE log_id = %(log)s"
_SELECT_KEY: Final = "SELECT key_id, subject, kek_id, wrapped FROM subject_key"
# Through the table of keys: it is the one index over them, whatever number of partitions there is. Each key is looked up
# by itself: of a table without statistics yet the planner would rather read the whole.
_SELECT_BY_KEYS: Final = """
SELECT e.* FROM unnest(%(keys)s::bytea[]) AS wanted(key)
CROSS JOIN LATERAL (SELECT idx FROM idem WHERE log_id = %(log)s AND idem = wanted.key LIMIT 1) AS k
CROSS JOIN LATERAL (
    SELECT idx, leaf, leaf_hash, record_digest, idem FROM entry WHERE log_id = %(log)s AND idx = k.idx LIMIT 1
) AS e
"""
# As sqlite_store.py asks it.
_SELECT_GAPS: Final = """
WITH numbered AS (
    SELECT idx, producer, boot, sequence, recorded_at, type, tenant, actor, trace_id, tool, outcome, law, model,
           lag(sequence, 1, 0::bigint) OVER (PARTITION BY producer, boot ORDER BY sequence) AS before
    FROM entry WHERE log_id = %(log)s AND idx < %(last)s
)
SELECT idx, false, producer, boot, before, sequence, recorded_at FROM numbered
WHERE sequence > before + 1{conditions}
UNION ALL
SELECT idx, true, producer, boot, 0, sequence, recorded_at FROM entry AS asked
WHERE log_id = %(log)s AND idx < %(last)s AND type LIKE '%%.intent'
  AND least(recorded_at, occurred_at) < %(before)s{conditions}
  AND NOT EXISTS (
    SELECT 1 FROM entry AS outcome
    WHERE outcome.intent = asked.idem AND outcome.type LIKE '%%.outcome' AND outcome.log_id = %(log)s
  )
ORDER BY 1, 2 LIMIT %(limit)s OFFSET %(offset)s
"""

Row = tuple[Any, ...]  # `Any`: columns of any type


class PostgresReader:
    """The reading side of one log; owns one connection and is used by one thread at a time.

    A question over a connection that broke is asked once more over a new one; `UnavailableError` when that fails too.
    """

    def __init__(self, database: Postgres, *, log_id: int) -> None:
        self._session = Session(lambda: database.connect(statement_seconds=READ_SECONDS, is_read_only=True))
        self._log_id = log_id

    def head(self) -> Head:
        """The head as committed."""
        return self._session.read(lambda connection: read_head(connection, self._log_id))

    def entry(self, index: int) -> StoredEntry | None:
        """The entry at this index."""
        rows = self._ask(f"{_SELECT_ENTRY} AND idx = %(idx)s", idx=index)
        return StoredEntry(*rows[0]) if rows else None

    def by_keys(self, keys: Iterable[bytes]) -> dict[bytes, StoredEntry]:
        """The entries with these idempotency keys."""
        rows = self._ask(_SELECT_BY_KEYS, keys=list(keys))
        return {row[4]: StoredEntry(*row) for row in rows}

    def hashes(self, level: int, first: int, last: int) -> list[bytes]:
        """The hashes [first, last), all of one tile, of a tile level; a full tile outlives its entries."""
        number, offset = divmod(first, TILE_WIDTH)
        if level == 0 and last - first + offset < TILE_WIDTH:
            rows = self._ask(
                "SELECT leaf_hash FROM entry "
                "WHERE log_id = %(log)s AND idx >= %(first)s AND idx < %(last)s ORDER BY idx",
                first=first,
                last=last,
            )
            if len(rows) == last - first:
                return [row[0] for row in rows]
        rows = self._ask(
            "SELECT data FROM tile WHERE log_id = %(log)s AND level = %(level)s AND n = %(n)s",
            level=level,
            n=number,
        )
        return split_hashes(rows[0][0])[offset : offset + last - first] if rows else []

    def note(self, size: int | None) -> tuple[int, str] | None:
        """The signed checkpoint of this size, or the newest, with its size."""
        where = "" if size is None else " AND size = %(size)s"
        rows = self._ask(
            f"SELECT size, note FROM checkpoint WHERE log_id = %(log)s{where} ORDER BY size DESC LIMIT 1",  # noqa: S608 - constants only
            size=size,
        )
        return (rows[0][0], rows[0][1]) if rows else None

    def payloads(self, index: int) -> list[PayloadRow]:
        """The payload rows of an entry."""
        rows = self._ask(
            "SELECT idx, kind, key_id, ciphertext FROM payload "
            "WHERE log_id = %(log)s AND idx = %(idx)s ORDER BY kind",
            idx=index,
        )
        return [PayloadRow(*row) for row in rows]

    def kept_kinds(self, indexes: Sequence[int]) -> dict[int, list[str]]:
        """The kinds of the payloads whose plaintext is still kept, per entry; see `LogReader`."""
        rows = self._ask(
            "SELECT idx, kind FROM payload WHERE log_id = %(log)s AND idx = ANY(%(indexes)s) "
            'AND substr(ciphertext, 1, 1) = %(flag)s ORDER BY idx, kind COLLATE "C"',
            indexes=list(indexes),
            flag=STORED_FLAG,
        )
        kept: dict[int, list[str]] = {}
        for index, kind in rows:
            kept.setdefault(index, []).append(kind)
        return kept

    def key(self, key_id: str) -> WrappedKey | None:
        """A data key by its id."""
        rows = self._ask(f"{_SELECT_KEY} WHERE key_id = %(key_id)s", key_id=key_id)
        return WrappedKey(*rows[0]) if rows else None

    def newest_key(self) -> WrappedKey | None:
        """The data key that was made last."""
        rows = self._ask(f"{_SELECT_KEY} ORDER BY created_at DESC LIMIT 1")
        return WrappedKey(*rows[0]) if rows else None

    def query(
        self, conditions: Sequence[Condition], *, first: int, last: int, limit: int, descending: bool
    ) -> list[StoredEntry]:
        """The entries of [first, last) that meet all conditions, in order of index, at most `limit`."""
        clauses, values = _where(conditions)
        order = "DESC" if descending else "ASC"
        rows = self._ask(
            f"{_SELECT_ENTRY} AND idx >= %(first)s AND idx < %(last)s{clauses} "
            f"ORDER BY idx {order} LIMIT %(limit)s",
            first=first,
            last=last,
            limit=limit,
            **values,
        )
        return [StoredEntry(*row) for row in rows]

    def index_at(self, recorded_at: int) -> int:
        """The first index recorded at or after this time, found by bisection: the times never decrease."""
        low, high = 0, self.head().size
        while low < high:
            middle = (low + high) // 2
            rows = self._ask(
                "SELECT recorded_at FROM entry WHERE log_id = %(log)s AND idx = %(idx)s", idx=middle
            )
            # What was dropped by retention is older than anything that is there.
            if not rows or rows[0][0] < recorded_at:
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
        clauses, values = _where(conditions)
        rows = self._ask(
            _SELECT_GAPS.format(conditions=clauses),
            last=last,
            before=intents_before,
            limit=limit,
            offset=offset,
            **values,
        )
        return [GapRow(*row) for row in rows]

    def counts(self, column: str, first: int, conditions: Sequence[Condition] = ()) -> list[tuple[str, int]]:
        """How many entries from index `first` on have each value of a derived column; nulls are left out."""
        if column not in DERIVED:
            raise InvalidArgumentError("column", f"{column} is not a derived column")
        clauses, values = _where(conditions)
        rows = self._ask(
            f"SELECT {column}, count(*) FROM entry "  # noqa: S608 - the names are of DERIVED
            f"WHERE log_id = %(log)s AND idx >= %(first)s AND {column} IS NOT NULL{clauses} GROUP BY 1",
            first=first,
            **values,
        )
        return [(str(value), count) for value, count in sorted(rows)]

    def close(self) -> None:
        """Closes the connection."""
        self._session.close()

    def _ask(self, sql: str, **values: object) -> list[Row]:
        """The rows of one statement, in the driver's binary form."""
        given = {"log": self._log_id, **values}
        return self._session.read(
            lambda connection: connection.execute(sql.encode(), given, binary=True).fetchall()
        )


def _where(conditions: Sequence[Condition]) -> tuple[str, dict[str, list[int | str] | int | str]]:
    """The conditions as SQL to put after others, and the values of its parameters.

    One value is compared with `=`: only so is an index known to give its entries in the order of the log.
    """
    clauses: list[str] = []
    values: dict[str, list[int | str] | int | str] = {}
    for number, condition in enumerate(conditions):
        is_one = len(condition.values) == 1
        clauses.append(
            f" AND {condition.column} = " + (f"%(c{number})s" if is_one else f"ANY(%(c{number})s)")
        )
        values[f"c{number}"] = condition.values[0] if is_one else list(condition.values)
    return "".join(clauses), values
