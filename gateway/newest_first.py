"""Pages of a tenant's things, the newest first, as OpenAI's lists have them: `after` names the last one that is known."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, Row, Table, and_, or_, select

from kala.errors import InvalidArgumentError


def newest_first(
    connection: Connection, table: Table, tenant: str, *, limit: int, after: str, noun: str
) -> Sequence[Row[Any]]:  # Any: SQLAlchemy types rows by their query
    """Read a page of a table with `id`, `tenant` and `created_at`; InvalidArgumentError where `after` is nothing there."""
    query = select(table).where(table.c.tenant == tenant).limit(limit)
    if after:
        known = select(table.c.created_at).where(table.c.id == after, table.c.tenant == tenant)
        at = connection.execute(known).scalar()
        if at is None:
            raise InvalidArgumentError("after", f"is no {noun} of your tenant; begin without it")
        earlier = and_(table.c.created_at == at, table.c.id < after)
        query = query.where(or_(table.c.created_at < at, earlier))
    return connection.execute(query.order_by(table.c.created_at.desc(), table.c.id.desc())).all()
