"""Operations in SQL: what was asked, by whom, under which clearance, and how it ended."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from google.longrunning import operations_pb2
from sqlalchemy import Connection, Row, delete, insert, select, update

from kala.common.v1.clearance_pb2 import Principal, SealedAction
from kala.errors import AlreadyExistsError, NotFoundError
from services.trainer.store.rows import Part, list_
from services.trainer.store.schema import CLAIM, OPERATION

T = TypeVar("T")


class Transaction(Protocol):
    """Does something in one transaction, in a thread."""

    def __call__(self, work: Callable[[Connection], T], /) -> Awaitable[T]:
        """Do it."""
        ...


@dataclass(frozen=True, slots=True)
class OperationRow:
    """One operation."""

    name: str
    kind: str
    principal: Principal
    request_id: str
    request_digest: bytes
    created_at: int
    """Microseconds since 1970, as the other times."""
    deadline_at: int
    operation: operations_pb2.Operation
    ended_at: int | None = None
    sealed: SealedAction | None = None
    intent: bytes = b""
    """Key of the record that says that it began."""
    execution_id: bytes = b""


class OperationRows:
    """The tables `operation` and `claim`."""

    def __init__(self, run: Transaction) -> None:
        self._run = run

    async def insert(self, row: OperationRow, claims: Sequence[str]) -> None:
        """Write a new operation with what it claims; AlreadyExistsError when another one has a claim."""

        def work(sql: Connection) -> None:
            for name in claims:
                holder = sql.execute(select(CLAIM.c.operation).where(CLAIM.c.name == name)).scalar()
                if holder is not None:
                    raise AlreadyExistsError(
                        f"{name} is being made by {holder}; wait for its end or cancel it",
                        reason="IN_PROGRESS",
                    )
                sql.execute(insert(CLAIM).values(name=name, operation=row.name))
            sql.execute(insert(OPERATION).values(**_values(row)))

        await self._run(work)

    async def mark_begun(self, row: OperationRow) -> None:
        """Write under which record the work began."""
        values = {"intent": row.intent, "execution_id": row.execution_id}
        await self._run(
            lambda sql: sql.execute(update(OPERATION).where(OPERATION.c.name == row.name).values(**values))
        )

    async def remove(self, name: str) -> None:
        """Forget an operation that never began, with what it claimed."""

        def work(sql: Connection) -> None:
            sql.execute(delete(CLAIM).where(CLAIM.c.operation == name))
            sql.execute(delete(OPERATION).where(OPERATION.c.name == name))

        await self._run(work)

    async def update(self, operation: operations_pb2.Operation, *, ended_at: int | None = None) -> None:
        """Write how an operation stands; one that has ended gives back what it claimed."""

        def work(sql: Connection) -> None:
            values: dict[str, Any] = {"data": operation.SerializeToString()}  # Any: SQL values
            if ended_at is not None:
                values["ended_at"] = ended_at
                sql.execute(delete(CLAIM).where(CLAIM.c.operation == operation.name))
            sql.execute(update(OPERATION).where(OPERATION.c.name == operation.name).values(**values))

        await self._run(work)

    async def get(self, name: str, tenant: str | None) -> OperationRow:
        """Read one; NotFoundError when there is none for this tenant."""
        query = select(OPERATION).where(OPERATION.c.name == name)
        if tenant is not None:
            query = query.where(OPERATION.c.tenant == tenant)
        row = await self._run(lambda sql: sql.execute(query).first())
        if row is None:
            raise NotFoundError(f"there is no {name}")
        return _row_of(row)

    async def list(self, tenant: str, *, limit: int, after: bytes) -> Part[operations_pb2.Operation]:
        """List a tenant's, the newest first."""
        return await self._run(
            lambda sql: list_(sql, OPERATION, operations_pb2.Operation, tenant, limit=limit, after=after)
        )

    async def find(self, principal: Principal, kind: str, request_id: str) -> OperationRow | None:
        """The operation that this principal asked for under this id; None when there is none."""
        query = select(OPERATION).where(
            OPERATION.c.tenant == principal.tenant,
            OPERATION.c.owner == principal.id,
            OPERATION.c.kind == kind,
            OPERATION.c.request_id == request_id,
        )
        row = await self._run(lambda sql: sql.execute(query).first())
        return None if row is None else _row_of(row)

    async def unfinished(self) -> Sequence[OperationRow]:
        """Operations that have not ended, the oldest first."""
        query = select(OPERATION).where(OPERATION.c.ended_at.is_(None)).order_by(OPERATION.c.created_at)
        found = await self._run(lambda sql: sql.execute(query).all())
        return [_row_of(row) for row in found]

    async def remove_ended(self, before: int) -> Sequence[str]:
        """Forget operations that ended before a time, and name them."""

        def work(sql: Connection) -> list[str]:
            old = OPERATION.c.ended_at < before
            names = list(sql.scalars(select(OPERATION.c.name).where(old)))
            sql.execute(delete(OPERATION).where(old))
            return names

        return await self._run(work)


def _values(row: OperationRow) -> dict[str, Any]:  # Any: SQL values
    return {
        "name": row.name,
        "tenant": row.principal.tenant,
        "owner": row.principal.id,
        "subject": row.principal.subject,
        "created_at": row.created_at,
        "kind": row.kind,
        "request_id": row.request_id,
        "request_digest": row.request_digest,
        "principal": row.principal.SerializeToString(deterministic=True),
        "deadline_at": row.deadline_at,
        "ended_at": row.ended_at,
        "sealed": None if row.sealed is None else row.sealed.SerializeToString(),
        "intent": row.intent,
        "execution_id": row.execution_id,
        "data": row.operation.SerializeToString(),
    }


def _row_of(row: Row[Any]) -> OperationRow:  # Any: SQLAlchemy types rows by their query
    return OperationRow(
        name=row.name,
        kind=row.kind,
        principal=Principal.FromString(row.principal),
        request_id=row.request_id,
        request_digest=row.request_digest,
        created_at=row.created_at,
        deadline_at=row.deadline_at,
        operation=operations_pb2.Operation.FromString(row.data),
        ended_at=row.ended_at,
        sealed=None if row.sealed is None else SealedAction.FromString(row.sealed),
        intent=row.intent or b"",
        execution_id=row.execution_id or b"",
    )
