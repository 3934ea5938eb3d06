"""Keeps the cosignatures that witnesses gave, on SQLite and PostgreSQL alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, TypeVar

from sqlalchemy import Connection, Engine, case, delete, func, insert, select
from sqlalchemy.exc import IntegrityError, SQLAlchemyError

from kala.audit.cosignature import Witness
from kala.errors import UnavailableError
from services.audit.storage.schema import COSIGNATURE

# Sizes whose cosignatures are kept: a newer one vouches for all before it, so older ones are of use only for a while.
KEPT_SIZES: Final = 1_000

_T = TypeVar("_T")


class CosignatureStore:
    """The cosignatures of one log under one policy; blocking, safe from several threads."""

    def __init__(
        self, engine: Engine, log_id: int, *, policy: Sequence[Sequence[Witness]] = (), required: int = 0
    ) -> None:
        """`policy` lists the keys of each witness; a checkpoint may be published when `required` of them cosigned it."""
        self._engine = engine.execution_options(isolation_level="AUTOCOMMIT")
        self._log_id = log_id
        self._of_log = COSIGNATURE.c.log_id == log_id
        self._number = {str(key): number for number, keys in enumerate(policy) for key in keys}
        self._required = required

    def add(self, size: int, key: Witness, line: str) -> None:
        """Keeps one line of the checkpoint of this size; one that is there already stays as it is."""
        row = {"log_id": self._log_id, "size": size, "key": str(key), "line": line}
        try:
            with self._engine.connect() as connection:
                connection.execute(insert(COSIGNATURE), row)
        except IntegrityError:
            return
        except SQLAlchemyError as error:
            raise _unavailable(error) from error

    def lines(self, size: int) -> Sequence[str]:
        """The lines of the checkpoint of this size, in order of their keys."""
        found = (
            select(COSIGNATURE.c.line)
            .where(self._of_log, COSIGNATURE.c.size == size)
            .order_by(COSIGNATURE.c.key)
        )
        return self._do(lambda connection: [str(line) for line in connection.scalars(found)])

    def size_of(self, key: Witness) -> int:
        """The newest size that this key cosigned; 0 for none."""
        newest = select(func.max(COSIGNATURE.c.size)).where(self._of_log, COSIGNATURE.c.key == str(key))
        return self._do(lambda connection: int(connection.scalar(newest) or 0))

    def publishable(self) -> int | None:
        """The newest size that as many witnesses cosigned as the policy wants; None for the newest of all.

        -1, a size that no checkpoint has, while there is none.
        """
        if not self._required:
            return None
        witness = case(self._number, value=COSIGNATURE.c.key)
        newest = (
            select(COSIGNATURE.c.size)
            .where(self._of_log, COSIGNATURE.c.key.in_(list(self._number)))
            .group_by(COSIGNATURE.c.size)
            .having(func.count(witness.distinct()) >= self._required)
            .order_by(COSIGNATURE.c.size.desc())
            .limit(1)
        )
        found = self._do(lambda connection: connection.scalar(newest))
        return -1 if found is None else int(found)

    def prune(self) -> None:
        """Forgets the cosignatures of all but the newest `KEPT_SIZES` sizes; that of the published one stays."""
        oldest = (
            select(COSIGNATURE.c.size)
            .where(self._of_log)
            .distinct()
            .order_by(COSIGNATURE.c.size.desc())
            .offset(KEPT_SIZES)
            .limit(1)
        )
        last, published = self._do(lambda connection: connection.scalar(oldest)), self.publishable()
        if last is not None:
            gone = delete(COSIGNATURE).where(
                self._of_log, COSIGNATURE.c.size <= last, COSIGNATURE.c.size != (published or -1)
            )
            self._do(lambda connection: connection.execute(gone))

    def _do(self, work: Callable[[Connection], _T]) -> _T:
        try:
            with self._engine.connect() as connection:
                return work(connection)
        except SQLAlchemyError as error:
            raise _unavailable(error) from error


def _unavailable(error: SQLAlchemyError) -> UnavailableError:
    # Its kind alone: the text of a database's error may hold a password.
    return UnavailableError(
        f"the database of cosignatures failed: {type(error).__name__}", reason="AUDIT_UNAVAILABLE"
    )
