"""The tables of limits, usage and mutable settings."""

from __future__ import annotations

from typing import Final

from sqlalchemy import BigInteger, Column, Connection, MetaData, String, Table, Text

METADATA = MetaData()

KEY_LIMITS: Final = Table(
    "key_limits",
    METADATA,
    Column("key_id", String(32), primary_key=True),
    Column("limits", Text, nullable=False),  # JSON, see KeyLimits.to_json
)

BUDGET_USE: Final = Table(
    "budget_use",
    METADATA,
    Column("key_id", String(64), primary_key=True),
    Column("unit", String(16), primary_key=True),
    Column("period", String(8), primary_key=True),
    Column("begun", String(16), primary_key=True),  # the window: 2026-01-02, 2026-01 or total
    Column("used", BigInteger, nullable=False),  # settled and set aside
)

MODEL_CHARS: Final = 256
USAGE: Final = Table(
    "key_usage",
    METADATA,
    Column("key_id", String(64), primary_key=True),
    Column("model", String(MODEL_CHARS), primary_key=True),
    Column("minute", BigInteger, primary_key=True),  # since 1970
    Column("tenant", String(64), nullable=False),
    Column("actor", String(64), nullable=False, index=True),  # the key's pseudonym, by which it is erased
    Column("requests", BigInteger, nullable=False),
    Column("not_allowed", BigInteger, nullable=False),
    Column("input_tokens", BigInteger, nullable=False),
    Column("output_tokens", BigInteger, nullable=False),
    Column("cost_micros", BigInteger),  # NULL while no price is configured
)

SETTING: Final = Table(
    "setting",
    METADATA,
    Column("name", String(128), primary_key=True),
    Column("value_json", Text, nullable=False),
    Column("changed_at", BigInteger, nullable=False),  # microseconds since 1970
)


def create(connection: Connection) -> None:
    """Create the tables."""
    METADATA.create_all(connection)
