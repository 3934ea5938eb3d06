"""The tables of stored conversations."""

from __future__ import annotations

from sqlalchemy import Connection, MetaData

from gateway.payload_table import PAYLOAD_KEY

METADATA = MetaData()


def create(connection: Connection) -> None:
    """Create the tables, that of the data keys included: nothing is stored of people before this step."""
    PAYLOAD_KEY.create(connection)
    METADATA.create_all(connection)
