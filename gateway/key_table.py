"""The table of keys, and how times stand in the gateway's database."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final

from sqlalchemy import BigInteger, Column, LargeBinary, MetaData, String, Table

API_KEY: Final = Table(
    "api_key",
    MetaData(),
    Column("id", String(32), primary_key=True),
    Column("display_name", String(128), nullable=False),
    Column("tenant", String(64), nullable=False),
    Column("scopes", String(256), nullable=False),  # names, sorted, separated by spaces
    Column("secret_sha256", LargeBinary(32), nullable=False, unique=True),
    Column("prefix", String(16), nullable=False),
    Column("created_at", BigInteger, nullable=False, index=True),
    Column("expires_at", BigInteger),
    Column("revoked_at", BigInteger),
    Column("last_used_at", BigInteger),
)


def to_micros(time: datetime) -> int:
    """Give a time as the database keeps it: microseconds since 1970 in UTC, exact, sortable and the same everywhere."""
    whole = int(time.replace(microsecond=0).timestamp())
    return whole * 1_000_000 + time.microsecond


def from_micros(micros: int) -> datetime:
    """Read a time of the database."""
    return datetime.fromtimestamp(micros // 1_000_000, UTC).replace(microsecond=micros % 1_000_000)
