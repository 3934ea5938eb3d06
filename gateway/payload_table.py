"""The table of the data keys under which content is sealed; one per person and tenant, and none once it was destroyed."""

from __future__ import annotations

from typing import Final

from sqlalchemy import Column, LargeBinary, MetaData, String, Table

PAYLOAD_KEY: Final = Table(
    "payload_key",
    MetaData(),
    Column("tenant", String(64), primary_key=True),
    Column("subject", String(64), primary_key=True),
    Column("key_id", LargeBinary(16), nullable=False, unique=True),
    Column("kek_id", String(16), nullable=False),
    Column("wrapped", LargeBinary, nullable=False),
)
