"""The tables of fine-tuning jobs."""

from __future__ import annotations

from typing import Final

from sqlalchemy import BigInteger, Column, ForeignKey, Index, Integer, LargeBinary, MetaData, String, Table

METADATA = MetaData()

FINE_TUNING_JOB: Final = Table(
    "fine_tuning_job",
    METADATA,
    Column("id", String(48), primary_key=True),
    Column("tenant", String(64), nullable=False),
    Column("owner", String(128), nullable=False),  # the key's id, under which the job acts
    Column("subject", String(64), nullable=False),
    Column("model", String(256), nullable=False),
    Column("training_file", String(48), nullable=False, index=True),
    Column("validation_file", String(48), index=True),
    Column("sealed_notes", LargeBinary, nullable=False),  # request, progress and error, as JSON
    Column("status", String(32), nullable=False, index=True),
    Column("step", String(16), nullable=False),  # what is done next: see `gateway.fine_tuning.worker`
    Column("created_at", BigInteger, nullable=False),
    Column("finished_at", BigInteger),
    Column("cancel_asked_at", BigInteger),
    Column("trainer_job", String(64)),
    Column("adapter", String(128)),
    Column("fine_tuned_model", String(128)),
    Column("lease_holder", String(64)),
    Column("lease_until", BigInteger),
    Index("fine_tuning_job_by_tenant", "tenant", "created_at", "id"),
)

FINE_TUNING_EVENT: Final = Table(
    "fine_tuning_event",
    METADATA,
    Column("job_id", String(48), ForeignKey(FINE_TUNING_JOB.c.id), primary_key=True),
    Column("number", Integer, primary_key=True),  # from 1
    Column("created_at", BigInteger, nullable=False),
    Column("sealed", LargeBinary, nullable=False),  # level, type, message and data, as JSON
)
