"""How each backend and each tool fared over a window of time: the control plane's counts.

They come from the view `agent_run_status`, one row per run; `agent_run` shows the same runs with what was asked and what
came of it. Both databases have both (migrations/versions/v0003_agent_run.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    Engine,
    Integer,
    MetaData,
    Select,
    Table,
    Text,
    case,
    func,
    select,
)
from sqlalchemy.exc import DBAPIError

from kala.errors import InvalidArgumentError, UnavailableError
from services.audit.reading.query import Condition
from services.audit.storage.schema import ENTRY, HEAD

OK: Final = "ok"

# No part of METADATA: it is a view, and nothing may create it as a table.
RUNS: Final = Table(
    "agent_run_status",
    MetaData(),
    Column("log_id", Integer),
    Column("idx", BigInteger),
    Column("attempt", Integer),
    Column("recorded_at", BigInteger),
    *(Column(name, Text) for name in ("type", "tenant", "actor", "trace_id", "outcome")),
    Column("law", Integer),
    *(Column(name, Text) for name in ("model", "tool", "status")),
)


@dataclass(frozen=True, slots=True)
class PipelineRuns:
    """The runs of one backend or tool; `last_run_at` is when its last one was logged, in microseconds since 1970."""

    name: str
    succeeded: int
    failed: int
    last_run_at: int
    is_last_ok: bool


class Pipelines:
    """Counts runs. Every method blocks; any thread may call it."""

    def __init__(self, engine: Engine, log_id: int) -> None:
        self._engine = engine
        self._log_id = log_id

    def since(self, recorded_at: int, conditions: Sequence[Condition] = ()) -> list[PipelineRuns]:
        """The runs of the entries recorded at or after this time that meet all conditions, by name.

        Raises `UnavailableError` while the database does not answer.
        """
        try:
            return self._since(recorded_at, conditions)
        except DBAPIError as error:
            raise UnavailableError(
                "the log's database does not answer", reason="AUDIT_UNAVAILABLE"
            ) from error

    def _since(self, recorded_at: int, conditions: Sequence[Condition]) -> list[PipelineRuns]:
        with self._engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            size = self._size(connection)
            first = self._index_at(connection, recorded_at, size)
            wanted = [RUNS.c.log_id == self._log_id, RUNS.c.idx >= first, RUNS.c.idx < size]
            for condition in conditions:
                if condition.column not in RUNS.c:
                    raise InvalidArgumentError("filter", f"{condition.column} is no column of a run")
                wanted.append(RUNS.c[condition.column].in_(condition.values))
            good = func.sum(case((RUNS.c.status == OK, 1), else_=0))
            counted = (
                select(RUNS.c.tool, good, func.count(), func.max(RUNS.c.idx))
                .where(*wanted)
                .group_by(RUNS.c.tool)
                .order_by(RUNS.c.tool)
            )
            found = []
            for name, succeeded, total, last in connection.execute(counted):
                row = connection.execute(self._run(name, last)).one()
                found.append(PipelineRuns(name, succeeded, total - succeeded, row[0], row[1] == OK))
            return found

    def _run(self, name: str, index: int) -> Select[int, str]:
        """When and how the last run of this name at one entry ended."""
        return (
            select(RUNS.c.recorded_at, RUNS.c.status)
            .where(RUNS.c.log_id == self._log_id, RUNS.c.idx == index, RUNS.c.tool == name)
            .order_by(RUNS.c.attempt.desc())
            .limit(1)
        )

    def _size(self, connection: Connection) -> int:
        size = connection.scalar(select(HEAD.c.size).where(HEAD.c.log_id == self._log_id))
        if size is None:
            raise UnavailableError("the database holds no log", reason="AUDIT_UNAVAILABLE")
        return int(size)

    def _index_at(self, connection: Connection, recorded_at: int, size: int) -> int:
        """The first index recorded at or after this time, found by bisection: the times never decrease."""
        low, high = 0, size
        while low < high:
            middle = (low + high) // 2
            found = connection.scalar(
                select(ENTRY.c.recorded_at).where(ENTRY.c.log_id == self._log_id, ENTRY.c.idx == middle)
            )
            # An entry that is not there is one that retention dropped: older than all that are.
            if found is None or found < recorded_at:
                low = middle + 1
            else:
                high = middle
        return low
