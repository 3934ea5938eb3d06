"""Adds what erasure, holds, sinks and witnesses remember; none of it is part of the log, and no proof rests on it."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Creates the tables of `schema.py` that 0001 did not have."""
    # Writers compare it with the head's size: one that remembers keys from before an erasure writes nothing with them.
    op.add_column("head", sa.Column("key_epoch", sa.BigInteger, nullable=False, server_default="0"))
    op.create_table(
        "cosignature",
        sa.Column("log_id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("size", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("key", sa.Text, primary_key=True),
        sa.Column("line", sa.Text, nullable=False),
    )
    op.create_table(
        "legal_hold",
        sa.Column("hold_id", sa.Text, primary_key=True),
        sa.Column("subject", sa.Text, nullable=False),
        sa.Column("placed_at", sa.BigInteger, nullable=False),
        sa.Column("released_at", sa.BigInteger),
    )
    op.create_index("legal_hold_subject", "legal_hold", ["subject"])
    op.create_table(
        "erasure",
        sa.Column("request_id", sa.LargeBinary, primary_key=True),
        sa.Column("subject", sa.Text, nullable=False),
        sa.Column("erased_at", sa.BigInteger, nullable=False),
        sa.Column("certificate", sa.LargeBinary),
        sa.Column("signature", sa.Text),
        sa.Column("idx", sa.BigInteger),
    )
    op.create_index("payload_key", "payload", ["key_id"])
    op.create_table(
        "sink_cursor",
        sa.Column("sink", sa.Text, primary_key=True),
        sa.Column("idx", sa.BigInteger, nullable=False),
        sa.Column("updated_at", sa.BigInteger, nullable=False),
    )
