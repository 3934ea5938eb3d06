"""Expiry in the log's database: content first, whole entries much later, never what a legal hold keeps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from sqlalchemy import Connection, Engine, insert, select, update

from services.audit.privacy.store import expiry_cursor, lock_heads, translated
from services.audit.storage.schema import ENTRY, HEAD, LEGAL_HOLD, PAYLOAD, SINK_CURSOR, SUBJECT_KEY

# Entries of one transaction: some milliseconds in which no writer commits.
STEP_ENTRIES: Final = 500


class RetentionStore:
    """What expires in one log; blocking."""

    def __init__(self, engine: Engine, log_id: int, *, clock: Callable[[], int]) -> None:
        """`clock` gives microseconds since 1970."""
        self._engine = engine
        self._log_id = log_id
        self._clock = clock

    @property
    def can_drop_entries(self) -> bool:
        """Whether whole entries can go: PostgreSQL drops partitions, SQLite keeps every entry."""
        return self._engine.dialect.name == "postgresql"

    def index_at(self, recorded_at: int) -> int:
        """The first index recorded at or after this time, found by bisection: the times never decrease."""
        with self._reading() as connection:
            low, high = (
                0,
                connection.execute(select(HEAD.c.size).where(HEAD.c.log_id == self._log_id)).scalar_one(),
            )
            while low < high:
                middle = (low + high) // 2
                found = connection.execute(
                    select(ENTRY.c.recorded_at).where(ENTRY.c.log_id == self._log_id, ENTRY.c.idx == middle)
                ).scalar()
                # A dropped entry is older than any that is there.
                if found is None or found < recorded_at:
                    low = middle + 1
                else:
                    high = middle
        return low

    def expired_until(self) -> int:
        """The first index whose content was not looked at yet."""
        with self._reading() as connection:
            return self._cursor(connection) or 0

    def expire_step(self, first: int, until: int) -> tuple[int, int]:
        """Empties the content of the next entries of [first, until); the index it got to, and how many payloads went.

        One transaction with the cursor: a kill repeats nothing and leaves nothing out. When the cursor is not at `first`
        nothing goes: another replica was quicker, or a hold ended and what it kept comes first.
        """
        with self._changing() as connection:
            lock_heads(connection)
            cursor = self._cursor(connection)
            last = min(first + STEP_ENTRIES, until)
            if first >= last or first != (cursor or 0):
                return cursor or 0, 0
            gone = connection.execute(
                update(PAYLOAD)
                .where(
                    PAYLOAD.c.log_id == self._log_id,
                    PAYLOAD.c.idx >= first,
                    PAYLOAD.c.idx < last,
                    PAYLOAD.c.ciphertext.is_not(None),
                    PAYLOAD.c.key_id.not_in(_HELD_KEYS),
                )
                .values(ciphertext=None)
            ).rowcount
            values = {"idx": last, "updated_at": self._clock()}
            if cursor is None:
                connection.execute(insert(SINK_CURSOR).values(sink=expiry_cursor(self._log_id), **values))
            else:
                connection.execute(
                    update(SINK_CURSOR)
                    .where(SINK_CURSOR.c.sink == expiry_cursor(self._log_id))
                    .values(**values)
                )
            return last, gone

    def first_entry(self) -> int:
        """The first index whose entry is still there."""
        from services.audit.storage.postgres_retention import first_index

        with translated():
            return first_index(self._engine)

    def drop_entries(self, until: int) -> int:
        """Drops whole partitions of entries below `until`; the first index that is still there."""
        from services.audit.storage.postgres_retention import drop_before

        with translated():
            return drop_before(self._engine, self._log_id, until)

    def _cursor(self, connection: Connection) -> int | None:
        found: int | None = connection.execute(
            select(SINK_CURSOR.c.idx).where(SINK_CURSOR.c.sink == expiry_cursor(self._log_id))
        ).scalar()
        return found

    @contextmanager
    def _changing(self) -> Iterator[Connection]:
        with translated(), self._engine.begin() as connection:
            yield connection

    @contextmanager
    def _reading(self) -> Iterator[Connection]:
        with translated(), self._engine.connect() as connection:
            yield connection.execution_options(isolation_level="AUTOCOMMIT")


_HELD_KEYS: Final = (
    select(SUBJECT_KEY.c.key_id)
    .join(LEGAL_HOLD, LEGAL_HOLD.c.subject == SUBJECT_KEY.c.subject)
    .where(LEGAL_HOLD.c.released_at.is_(None))
    .scalar_subquery()
)
