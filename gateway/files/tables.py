"""The tables of files: a row each, their sealed parts, and what room a tenant's files take."""

from __future__ import annotations

from typing import Final

from sqlalchemy import BigInteger, Column, ForeignKey, Index, Integer, LargeBinary, MetaData, String, Table

METADATA = MetaData()

FILE: Final = Table(
    "file",
    METADATA,
    Column("id", String(48), primary_key=True),
    Column("tenant", String(64), nullable=False),
    Column("owner", String(128), nullable=False),  # the key's id
    Column("subject", String(64), nullable=False),
    Column("state", String(16), nullable=False),  # "uploading" or "ready"
    Column("purpose", String(32), nullable=False),  # empty while uploading
    Column("sealed_name", LargeBinary, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("parts", Integer, nullable=False),
    Column("sha256", LargeBinary(32), nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger, index=True),
    Index("file_by_tenant", "tenant", "created_at", "id"),
    Index("file_by_subject", "tenant", "subject"),
)

FILE_PART: Final = Table(
    "file_part",
    METADATA,
    Column("file_id", String(48), ForeignKey(FILE.c.id), primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("sealed", LargeBinary, nullable=False),
)

FILE_ROOM: Final = Table(
    "file_room",
    METADATA,
    Column("tenant", String(64), primary_key=True),
    Column("bytes", BigInteger, nullable=False),
)
