"""Creates the trainer's tables."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Creates everything."""
    _resource("job", _text("adapter"), _number("state"), _text("operation"))
    _create_operations()
    _resource("dataset", _text("stem"), _number("version"), unique=("stem", "version"))
    _resource(
        "adapter",
        _text("stem"),
        _number("version"),
        _number("state"),
        _bytes("base_digest"),
        _bytes("digest"),
        unique=("stem", "version"),
    )
    _resource("evaluation", _text("adapter"), _text("profile"), _number("outcome"))
    _resource("export", _text("adapter"), _number("format"))
    op.create_index("evaluation_adapter", "evaluation", ["adapter"])
    op.create_index("export_adapter", "export", ["adapter"])
    _create_rest()


def _text(name: str) -> sa.Column[Any]:  # Any: a column of whichever type
    return sa.Column(name, sa.Text, nullable=False)


def _number(name: str) -> sa.Column[Any]:  # Any: as above
    return sa.Column(name, sa.Integer, nullable=False)


def _bytes(name: str) -> sa.Column[Any]:  # Any: as above
    return sa.Column(name, sa.LargeBinary, nullable=False)


def _resource(name: str, *columns: sa.Column[Any], unique: tuple[str, ...] = ()) -> None:  # Any: as above
    op.create_table(
        name,
        sa.Column("name", sa.Text, primary_key=True),
        *(_text(column) for column in ("tenant", "owner", "subject")),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        *columns,
        _bytes("data"),
        *([sa.UniqueConstraint(*unique, name=f"{name}_version")] if unique else []),
    )


def _create_operations() -> None:
    _resource(
        "operation",
        _text("kind"),
        _text("request_id"),
        _bytes("request_digest"),
        _bytes("principal"),
        sa.Column("deadline_at", sa.BigInteger, nullable=False),
        sa.Column("ended_at", sa.BigInteger),
        *(sa.Column(name, sa.LargeBinary) for name in ("sealed", "intent", "execution_id")),
    )
    op.create_index("operation_request", "operation", ["tenant", "owner", "kind", "request_id"], unique=True)
    op.create_index("operation_ended", "operation", ["ended_at"])
    op.create_table("claim", sa.Column("name", sa.Text, primary_key=True), _text("operation"))
    op.create_index("ix_claim_operation", "claim", ["operation"])


def _create_rest() -> None:
    op.create_table(
        "lineage",
        sa.Column("adapter", sa.Text, primary_key=True),
        sa.Column("parent", sa.Text, primary_key=True),
    )
    op.create_index("ix_lineage_parent", "lineage", ["parent"])
    op.create_table(
        "revocations",
        sa.Column("serial", sa.BigInteger, primary_key=True, autoincrement=False),
        _bytes("data"),
    )
    op.create_table(
        "subject",
        sa.Column("dataset", sa.Text, primary_key=True),
        _text("tenant"),
        sa.Column("subject", sa.Text, primary_key=True),
        sa.Column("rows", sa.BigInteger, nullable=False),
    )
    op.create_index("ix_subject_subject", "subject", ["subject"])
    op.create_table("counter", sa.Column("stem", sa.Text, primary_key=True), _text("tenant"), _number("last"))
