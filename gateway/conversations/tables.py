"""The tables of stored conversations.

Times are microseconds since 1970. What people said and what they were answered is sealed (`gateway/payloads.py`); ids,
times and states are not.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Connection,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
)  # fmt: skip

from gateway.payload_table import PAYLOAD_KEY

METADATA: Final = MetaData()

RESPONSE: Final = Table(
    "response",
    METADATA,
    Column("id", String(64), primary_key=True),
    Column("tenant", String(64), nullable=False),
    Column("owner", String(64), nullable=False),  # "keys/<id>"
    Column("subject", String(64), nullable=False),
    Column("previous_id", String(64)),
    Column("status", String(16), nullable=False),
    Column("is_refused", Boolean, nullable=False),  # no later turn is told of it
    Column("created_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger, nullable=False, index=True),
    Column("lease_until", BigInteger, index=True),  # of whoever works on it; null where nobody does any more
    Column("input", LargeBinary, nullable=False),
    Column("body", LargeBinary, nullable=False),
    Index("ix_response_person", "tenant", "subject"),
)

SESSION: Final = Table(
    "session",
    METADATA,
    Column("id", String(64), primary_key=True),
    Column("tenant", String(64), nullable=False),
    Column("owner", String(64), nullable=False),
    Column("subject", String(64), nullable=False),
    Column("title", LargeBinary, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger, nullable=False, index=True),
    Column("requests", Integer, nullable=False),
    Index("ix_session_owner", "tenant", "owner", "created_at", "id"),
)

SESSION_TURN: Final = Table(
    "session_turn",
    METADATA,
    Column("session_id", String(64), ForeignKey("session.id", ondelete="CASCADE"), primary_key=True),
    Column("position", Integer, primary_key=True),
    Column("tenant", String(64), nullable=False),
    Column("subject", String(64), nullable=False),
    Column("messages", LargeBinary, nullable=False),
    Index("ix_session_turn_person", "tenant", "subject"),
)


def create(connection: Connection) -> None:
    """Create the tables, that of the data keys included: nothing is stored of people before this step."""
    PAYLOAD_KEY.create(connection)
    METADATA.create_all(connection)
