"""What every table of resources has in common: put, get and list by tenant, as their messages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from sqlalchemy import Connection, Table, and_, insert, or_, select, update

from kala.errors import NotFoundError

M = TypeVar("M", bound=Message)

_AFTER_BYTES: Final = 8


@dataclass(frozen=True, slots=True)
class Part(Generic[M]):
    """A part of a list, and where the next one begins; empty on the last."""

    items: Sequence[M]
    next_after: bytes = b""


def micros(time: Timestamp) -> int:
    """Microseconds since 1970."""
    return time.seconds * 1_000_000 + time.nanos // 1_000


def put(
    connection: Connection, table: Table, name: str, values: Mapping[str, Any]
) -> None:  # Any: SQL values
    """Write a resource, new or not; its tenant, owner, subject and time never change."""
    fixed = {"tenant", "owner", "subject", "created_at"}
    changed = connection.execute(
        update(table)
        .where(table.c.name == name)
        .values(**{key: value for key, value in values.items() if key not in fixed})
    )
    if changed.rowcount == 0:
        connection.execute(insert(table).values(name=name, **values))


def get(connection: Connection, table: Table, kind: type[M], name: str, tenant: str | None) -> M:
    """Read a resource; NotFoundError when there is none or it is another tenant's. Tenant None is the service itself."""
    query = select(table.c.data).where(table.c.name == name)
    if tenant is not None:
        query = query.where(table.c.tenant == tenant)
    data = connection.execute(query).scalar()
    if data is None:
        raise NotFoundError(f"there is no {name}")
    return kind.FromString(data)


def list_(
    connection: Connection,
    table: Table,
    kind: type[M],
    tenant: str | None,
    *conditions: Any,  # Any: SQL expressions
    limit: int,
    after: bytes = b"",
) -> Part[M]:
    """List resources, the newest first, strictly after the position that an earlier part named."""
    query = select(table.c.name, table.c.created_at, table.c.data)
    query = query.order_by(table.c.created_at.desc(), table.c.name.desc()).limit(limit + 1)
    if tenant is not None:
        query = query.where(table.c.tenant == tenant)
    for condition in conditions:
        query = query.where(condition)
    if after:
        created, name = int.from_bytes(after[:_AFTER_BYTES], "big"), after[_AFTER_BYTES:].decode()
        query = query.where(
            or_(table.c.created_at < created, and_(table.c.created_at == created, table.c.name < name))
        )
    rows = connection.execute(query).all()
    shown = rows[:limit]
    last = shown[-1] if len(rows) > limit else None
    return Part(
        [kind.FromString(row.data) for row in shown],
        b"" if last is None else last.created_at.to_bytes(_AFTER_BYTES, "big") + last.name.encode(),
    )
