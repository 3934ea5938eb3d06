"""The tables of files and batches."""

from __future__ import annotations

from sqlalchemy import Connection, MetaData

METADATA = MetaData()


def create(connection: Connection) -> None:
    """Create the tables."""
    METADATA.create_all(connection)
