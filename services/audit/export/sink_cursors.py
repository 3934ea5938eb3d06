"""How far each sink has come, on SQLite and PostgreSQL alike, and which of several replicas feeds it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha256

from sqlalchemy import Engine, Select, func, insert, select, update
from sqlalchemy.exc import IntegrityError, SQLAlchemyError

from kala.errors import UnavailableError
from services.audit.storage.schema import SINK_CURSOR


class SinkCursors:
    """The cursors of one log's sinks; blocking, safe from several threads."""

    def __init__(self, engine: Engine, log_id: int, *, clock: Callable[[], int]) -> None:
        """`clock` gives microseconds since 1970."""
        self._engine = engine
        self._log_id = log_id
        self._clock = clock

    def position(self, sink: str, *, start: int) -> int:
        """The first index that the sink has not confirmed; a sink that is new begins at `start`."""
        name = self._name(sink)
        query = select(SINK_CURSOR.c.idx).where(SINK_CURSOR.c.sink == name)
        with _answering():
            found = self._read(query)
            if found is not None:
                return found
            row = {"sink": name, "idx": start, "updated_at": self._clock()}
            try:
                with self._engine.begin() as connection:
                    connection.execute(insert(SINK_CURSOR), row)
            except IntegrityError:
                # Another replica was first.
                return self._read(query) or 0
        return start

    def advance(self, sink: str, old: int, new: int) -> bool:
        """Confirms what lies before `new`; false when the cursor is not at `old` any more: another replica moved it."""
        moved = (
            update(SINK_CURSOR)
            .where(SINK_CURSOR.c.sink == self._name(sink), SINK_CURSOR.c.idx == old)
            .values(idx=new, updated_at=self._clock())
        )
        with _answering(), self._engine.begin() as connection:
            return connection.execute(moved).rowcount == 1

    @contextmanager
    def lease(self, sink: str) -> Iterator[bool]:
        """Whether this process feeds the sink while the context is entered.

        Two replicas that both did would deliver everything twice, and lose nothing. In SQLite there is one process.
        """
        if self._engine.dialect.name != "postgresql":
            yield True
            return
        key = int.from_bytes(
            sha256(f"kala.audit.sink\0{self._name(sink)}".encode()).digest()[:8], signed=True
        )
        with (
            _answering(),
            self._engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection,
        ):
            is_held = bool(connection.scalar(select(func.pg_try_advisory_lock(key))))
            try:
                yield is_held
            finally:
                if is_held and not connection.closed:
                    connection.execute(select(func.pg_advisory_unlock(key)))

    def _read(self, query: Select[int]) -> int | None:
        with self._engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            row = connection.execute(query).first()
            return None if row is None else int(row[0])

    def _name(self, sink: str) -> str:
        return f"{self._log_id}/{sink}"


@contextmanager
def _answering() -> Iterator[None]:
    try:
        yield
    except SQLAlchemyError as error:
        raise UnavailableError("the log's database does not answer", reason="AUDIT_UNAVAILABLE") from error
