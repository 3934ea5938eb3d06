"""The tables of limits, usage and mutable settings."""

from __future__ import annotations

from sqlalchemy import Connection, MetaData

METADATA = MetaData()


def create(connection: Connection) -> None:
    """Create the tables."""
    METADATA.create_all(connection)
