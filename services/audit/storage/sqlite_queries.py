"""The longer questions to a log in SQLite: what is missing, and which index a filtered query reads.

SQLite keeps no statistics here, and without them takes the primary key for every range of indexes, which reads each
entry in it. So the index is named, and of several conditions the one that the fewest entries of the range meet is used.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Final

from services.audit.reading.query import Condition

# By column, in the order of how few entries usually share a value.
INDEXES: Final = {
    "trace_id": "entry_by_trace_id",
    "tool": "entry_by_tool",
    "law": "entry_by_law",
    "actor": "entry_by_actor",
    "outcome": "entry_by_outcome",
    "model": "entry_by_model",
    "type": "entry_by_type",
    "tenant": "entry_by_tenant",
}
# Conditions that more entries meet count as equally bad; counting so many takes 50 us.
MOST_COUNTED: Final = 512

# A producer numbers its records from 1 at each boot; 0 stands before the first. An intent is old when either clock says
# so: after a jump of the log's clock into the future, `recorded_at` would not let one become old for years.
SELECT_GAPS: Final = """
WITH numbered AS (
    SELECT idx, producer, boot, sequence, recorded_at, type, tenant, actor, trace_id, tool, outcome, law, model,
           lag(sequence, 1, 0) OVER (PARTITION BY producer, boot ORDER BY sequence) AS before
    FROM entry WHERE log_id = :log AND idx < :last
)
SELECT idx, 0, producer, boot, before, sequence, recorded_at FROM numbered
WHERE sequence > before + 1{conditions}
UNION ALL
SELECT idx, 1, producer, boot, 0, sequence, recorded_at FROM entry AS asked
WHERE log_id = :log AND idx < :last AND type LIKE '%.intent' AND min(recorded_at, occurred_at) < :before{conditions}
  AND NOT EXISTS (
    SELECT 1 FROM entry AS outcome
    WHERE outcome.intent = asked.idem AND outcome.type LIKE '%.outcome' AND outcome.log_id = :log
  )
ORDER BY 1, 2 LIMIT :limit OFFSET :offset
"""


def clauses_of(conditions: Sequence[Condition]) -> tuple[str, list[int | str]]:
    """The conditions as SQL to put after others, and the values of its question marks."""
    clauses = "".join(f" AND {c.column} IN ({', '.join('?' * len(c.values))})" for c in conditions)
    return clauses, [value for c in conditions for value in c.values]


def index_for(
    connection: sqlite3.Connection, conditions: Sequence[Condition], *, first: int, last: int
) -> str:
    """The `INDEXED BY` for a query over the entries of [first, last); empty when no condition has an index."""
    usable = sorted(
        (c for c in conditions if c.column in INDEXES), key=lambda c: list(INDEXES).index(c.column)
    )
    if not usable:
        return ""
    best = usable[0]
    if len(usable) > 1 and best.column != "trace_id":
        counts = [_count(connection, c, first=first, last=last) for c in usable]
        best = usable[counts.index(min(counts))]
    return f" INDEXED BY {INDEXES[best.column]}"


def _count(connection: sqlite3.Connection, condition: Condition, *, first: int, last: int) -> int:
    clauses, values = clauses_of([condition])
    # Without `log_id`, which no index holds: a file holds one log.
    sql = (
        f"SELECT count(*) FROM (SELECT 1 FROM entry INDEXED BY {INDEXES[condition.column]} "  # noqa: S608 - names of INDEXES
        f"WHERE idx >= ? AND idx < ?{clauses} LIMIT ?)"
    )
    row = connection.execute(sql, (first, last, *values, MOST_COUNTED)).fetchone()
    return int(row[0])
