"""The tables of batches; with them, in one step of the schema, those of files and fine-tuning jobs."""

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
)

from gateway.files import tables as files
from gateway.fine_tuning import tables as fine_tuning

METADATA = MetaData()

BATCH: Final = Table(
    "batch",
    METADATA,
    Column("id", String(48), primary_key=True),
    Column("tenant", String(64), nullable=False),
    Column("owner", String(128), nullable=False),  # the key's id, under which every line acts
    Column("subject", String(64), nullable=False),
    Column("endpoint", String(64), nullable=False),
    Column("input_file_id", String(48), nullable=False, index=True),
    Column("sealed_notes", LargeBinary, nullable=False),  # metadata and errors, as JSON
    Column("status", String(16), nullable=False, index=True),
    Column("created_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger, nullable=False),
    Column("in_progress_at", BigInteger),
    Column("finalizing_at", BigInteger),
    Column("completed_at", BigInteger),
    Column("failed_at", BigInteger),
    Column("expired_at", BigInteger),
    Column("cancelling_at", BigInteger),
    Column("cancelled_at", BigInteger),
    Column("output_file_id", String(48)),
    Column("error_file_id", String(48)),
    Column("output_seconds", Integer),  # how long output is kept
    Column("total", Integer, nullable=False),
    Column("completed", Integer, nullable=False),
    Column("failed", Integer, nullable=False),
    Column("input_tokens", BigInteger, nullable=False),
    Column("output_tokens", BigInteger, nullable=False),
    Column("lease_holder", String(64)),
    Column("lease_until", BigInteger),
    Index("batch_by_tenant", "tenant", "created_at", "id"),
)

BATCH_LINE: Final = Table(
    "batch_line",
    METADATA,
    Column("batch_id", String(48), ForeignKey(BATCH.c.id), primary_key=True),
    Column("number", Integer, primary_key=True),  # from 1, as in the file
    Column("start", BigInteger, nullable=False),  # bytes of the input file
    Column("length", Integer, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("succeeded", Boolean),  # unset until it is done
    Column("sealed_result", LargeBinary),
)

BATCH_PERSON: Final = Table(
    "batch_person",
    METADATA,
    Column("batch_id", String(48), ForeignKey(BATCH.c.id), primary_key=True),
    Column("subject", String(64), primary_key=True, index=True),
)


def create(connection: Connection) -> None:
    """Create the tables."""
    files.METADATA.create_all(connection)
    METADATA.create_all(connection)
    fine_tuning.METADATA.create_all(connection)
