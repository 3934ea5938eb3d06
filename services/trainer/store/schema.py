"""The trainer's tables: columns for look-ups, and each resource as its serialised message.

Times are microseconds since 1970, UTC. Everything has the tenant that may see it.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import (
    BigInteger,
    Column,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
)

METADATA: Final = MetaData()


def _resource(name: str, *columns: Column[object]) -> Table:
    return Table(
        name,
        METADATA,
        Column("name", Text, primary_key=True),
        Column("tenant", Text, nullable=False),
        Column("owner", Text, nullable=False),
        # Pseudonym of the person for whom it was made; empty for services.
        Column("subject", Text, nullable=False),
        Column("created_at", BigInteger, nullable=False),
        *columns,
        Column("data", LargeBinary, nullable=False),
    )


JOB: Final = _resource(
    "job",
    Column("adapter", Text, nullable=False),
    Column("state", Integer, nullable=False),
    Column("operation", Text, nullable=False),
)

# `sealed` is the cleared SealedAction and `intent` the key of its record, from which a cut job goes on.
OPERATION: Final = _resource(
    "operation",
    Column("kind", Text, nullable=False),
    Column("request_id", Text, nullable=False),
    Column("request_digest", LargeBinary, nullable=False),
    Column("principal", LargeBinary, nullable=False),
    Column("deadline_at", BigInteger, nullable=False),
    Column("ended_at", BigInteger),
    Column("sealed", LargeBinary),
    Column("intent", LargeBinary),
    Column("execution_id", LargeBinary),
)
Index(
    "operation_request",
    OPERATION.c.tenant,
    OPERATION.c.owner,
    OPERATION.c.kind,
    OPERATION.c.request_id,
    unique=True,
)
Index("operation_ended", OPERATION.c.ended_at)

# What running operations have to themselves, e.g. the name of the adapter that a job makes.
CLAIM: Final = Table(
    "claim",
    METADATA,
    Column("name", Text, primary_key=True),
    Column("operation", Text, nullable=False, index=True),
)

DATASET: Final = _resource(
    "dataset",
    Column("stem", Text, nullable=False),
    Column("version", Integer, nullable=False),
)
ADAPTER: Final = _resource(
    "adapter",
    Column("stem", Text, nullable=False),
    Column("version", Integer, nullable=False),
    Column("state", Integer, nullable=False),
    Column("base_digest", LargeBinary, nullable=False),
    Column("digest", LargeBinary, nullable=False),
)
EVALUATION: Final = _resource(
    "evaluation",
    Column("adapter", Text, nullable=False),
    Column("profile", Text, nullable=False),
    Column("outcome", Integer, nullable=False),
)
EXPORT: Final = _resource(
    "export",
    Column("adapter", Text, nullable=False),
    Column("format", Integer, nullable=False),
)
Index("evaluation_adapter", EVALUATION.c.adapter)
Index("export_adapter", EXPORT.c.adapter)
for _table in (DATASET, ADAPTER):
    _table.append_constraint(UniqueConstraint("stem", "version", name=f"{_table.name}_version"))

# What an adapter rests on: datasets and other adapters, by name.
LINEAGE: Final = Table(
    "lineage",
    METADATA,
    Column("adapter", Text, primary_key=True),
    Column("parent", Text, primary_key=True, index=True),
)

# The one list of revocations, as it was last signed.
REVOCATIONS: Final = Table(
    "revocations",
    METADATA,
    Column("serial", BigInteger, primary_key=True, autoincrement=False),
    Column("data", LargeBinary, nullable=False),
)

# Rows of persons in datasets, by pseudonym.
SUBJECT: Final = Table(
    "subject",
    METADATA,
    Column("dataset", Text, primary_key=True),
    Column("tenant", Text, nullable=False),
    Column("subject", Text, primary_key=True, index=True),
    Column("rows", BigInteger, nullable=False),
)

# Versions are never given twice, also when the one that had the number is gone.
COUNTER: Final = Table(
    "counter",
    METADATA,
    Column("stem", Text, primary_key=True),
    Column("tenant", Text, nullable=False),
    Column("last", Integer, nullable=False),
)
