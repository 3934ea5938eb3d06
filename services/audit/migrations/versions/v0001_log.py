"""Creates the log's tables and the triggers that keep entries and checkpoints as they are."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

from services.audit.storage import postgres_schema

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

PROTECTED = ("entry", "checkpoint")


def upgrade() -> None:
    """Creates everything; there is no way down from a log."""
    is_postgres = op.get_bind().dialect.name == "postgresql"
    _create_log_and_head()
    _create_entry(is_partitioned=is_postgres)
    _create_rest()
    if is_postgres:
        for statement in postgres_schema.CREATE:
            op.execute(statement)
        return
    for table in PROTECTED:
        for event in ("UPDATE", "DELETE"):
            op.execute(
                f"CREATE TRIGGER {table}_no_{event.lower()} BEFORE {event} ON {table} "
                f"BEGIN SELECT RAISE(ABORT, 'the rows of {table} are never changed'); END"
            )


def _key(name: str, kind: type[sa.BigInteger | sa.Integer | sa.Text] = sa.BigInteger) -> sa.Column[Any]:
    # `Any`: a column of whichever kind.
    return sa.Column(name, kind(), primary_key=True, autoincrement=False)


def _create_partial_index(
    name: str, table: str, column: str, condition: str, *, unique: bool = False
) -> None:
    where = sa.text(condition)
    op.create_index(name, table, [column], unique=unique, sqlite_where=where, postgresql_where=where)


def _create_log_and_head() -> None:
    op.create_table(
        "log",
        _key("log_id", sa.Integer),
        sa.Column("origin", sa.Text, nullable=False),
        sa.Column("vkey", sa.Text, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "head",
        _key("log_id", sa.Integer),
        sa.Column("size", sa.BigInteger, nullable=False),
        sa.Column("range", sa.LargeBinary, nullable=False),
        sa.Column("root", sa.LargeBinary, nullable=False),
        sa.Column("epoch", sa.BigInteger, nullable=False),
        sa.Column("recorded_at", sa.BigInteger, nullable=False),
    )


def _create_entry(*, is_partitioned: bool) -> None:
    op.create_table(
        "entry",
        _key("log_id", sa.Integer),
        _key("idx"),
        sa.Column("leaf", sa.LargeBinary, nullable=False),
        sa.Column("leaf_hash", sa.LargeBinary, nullable=False),
        sa.Column("idem", sa.LargeBinary, nullable=False),
        sa.Column("type", sa.Text, nullable=False),
        sa.Column("tenant", sa.Text, nullable=False),
        *(sa.Column(name, sa.Text) for name in ("actor", "subject_key_id", "trace_id")),
        sa.Column("intent", sa.LargeBinary),
        *(sa.Column(name, sa.Text) for name in ("rpc", "tool", "outcome")),
        sa.Column("law", sa.Integer),
        *(sa.Column(name, sa.Text) for name in ("model", "backend", "status")),
        sa.Column("producer", sa.Text, nullable=False),
        sa.Column("boot", sa.LargeBinary, nullable=False),
        sa.Column("sequence", sa.BigInteger, nullable=False),
        sa.Column("occurred_at", sa.BigInteger, nullable=False),
        sa.Column("recorded_at", sa.BigInteger, nullable=False),
        sa.Column("record_digest", sa.LargeBinary, nullable=False),
        postgresql_partition_by="RANGE (idx)",
    )
    if not is_partitioned:  # a unique index of a partitioned table must hold what it is partitioned by
        op.create_index("entry_idem", "entry", ["log_id", "idem"], unique=True)
    for name, column in (("entry_trace", "trace_id"), ("entry_intent", "intent"), ("entry_actor", "actor")):
        _create_partial_index(name, "entry", column, f"{column} IS NOT NULL")


def _create_rest() -> None:
    op.create_table(
        "checkpoint",
        _key("log_id", sa.Integer),
        _key("size"),
        sa.Column("root", sa.LargeBinary, nullable=False),
        sa.Column("note", sa.Text, nullable=False),
    )
    op.create_table(
        "payload",
        _key("log_id", sa.Integer),
        _key("idx"),
        _key("kind", sa.Text),
        sa.Column("key_id", sa.Text, nullable=False),
        sa.Column("ciphertext", sa.LargeBinary),
    )
    op.create_table(
        "subject_key",
        _key("key_id", sa.Text),
        sa.Column("subject", sa.Text, nullable=False),
        sa.Column("wrapped", sa.LargeBinary),
        sa.Column("kek_id", sa.Text, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("erased_at", sa.BigInteger),
    )
    _create_partial_index("subject_key_live", "subject_key", "subject", "erased_at IS NULL", unique=True)
    op.create_table(
        "tile",
        _key("log_id", sa.Integer),
        _key("level", sa.Integer),
        _key("n"),
        sa.Column("width", sa.Integer, nullable=False),
        sa.Column("data", sa.LargeBinary, nullable=False),
    )
