"""Adds the indexes that filtered queries need.

Each ends in `idx`, so that a page is read in the order of the log and no further than it needs. None begins with
`log_id`: SQLite, which has no statistics here, would take any of them for every question that names the log.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

ALWAYS_SET = ("tenant", "type")
OFTEN_NULL = ("trace_id", "actor", "outcome", "law", "model", "tool")


def upgrade() -> None:
    """Creates the indexes; two take the place of those that did not end in `idx`."""
    for name in ("entry_actor", "entry_trace"):
        op.drop_index(name, table_name="entry")
    for column in ALWAYS_SET:
        op.create_index(f"entry_by_{column}", "entry", [column, "idx"])
    for column in OFTEN_NULL:
        is_set = sa.text(f"{column} IS NOT NULL")
        op.create_index(
            f"entry_by_{column}",
            "entry",
            [column, "idx"],
            sqlite_where=is_set,
            postgresql_where=is_set,
        )
