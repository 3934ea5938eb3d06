"""Leases on rows of work: one replica at a time works on a row, and another goes on when it is dead.  Pure SQL building.

A holder renews its lease while it works, and every write of its names it: a replica that stood still and lost its lease
changes nothing more.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy import Connection, Row, Table, or_, select, update

from gateway.key_table import to_micros
from kala.errors import FailedPreconditionError

LEASE_LOST: Final = "LEASE_LOST"


class LeaseLostError(FailedPreconditionError):
    """Another replica works on this now, or it is gone."""

    default_reason = LEASE_LOST

    def __init__(self) -> None:
        super().__init__("another replica works on this now")


def claim(
    connection: Connection, table: Table, due: Any, *, holder: str, now: datetime, lease: timedelta
) -> Row[Any] | None:  # Any: an SQL expression, and SQLAlchemy types rows by their query
    """Take the row that is due, of nobody, and longest untouched; PostgreSQL's replicas skip each other's."""
    free = or_(table.c.lease_until.is_(None), table.c.lease_until <= to_micros(now))
    found = (
        select(table.c.id)
        .where(due, free)
        .order_by(table.c.lease_until.nulls_first(), table.c.created_at)
        .limit(1)
        .with_for_update(skip_locked=True)
    )
    taken = (
        update(table)
        .where(table.c.id == found.scalar_subquery(), free)
        .values(lease_holder=holder, lease_until=to_micros(now + lease))
        .returning(table)
    )
    return connection.execute(taken).first()


def hold(
    connection: Connection,
    table: Table,
    row_id: str,
    *,
    holder: str,
    now: datetime,
    lease: timedelta | None = None,
    values: Mapping[str, object] | None = None,
) -> Row[Any]:  # Any: SQLAlchemy types rows by their query
    """Write to a row in its holder's name, first thing in a transaction, or raise LeaseLostError; `lease` renews it."""
    written = {"lease_holder": holder, **(values or {})}
    if lease is not None:
        written["lease_until"] = to_micros(now + lease)
    held = (
        update(table)
        .where(table.c.id == row_id, table.c.lease_holder == holder, table.c.lease_until > to_micros(now))
        .values(written)
        .returning(table)
    )
    row = connection.execute(held).first()
    if row is None:
        raise LeaseLostError
    return row


def release(connection: Connection, table: Table, row_id: str, *, holder: str, until: datetime) -> None:
    """Let go of a row, which nobody takes before `until`; nothing happens when it is another's by now."""
    connection.execute(
        update(table)
        .where(table.c.id == row_id, table.c.lease_holder == holder)
        .values(lease_holder=None, lease_until=to_micros(until))
    )
