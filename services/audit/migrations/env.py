"""Runs the migrations on the connection that `migrate.py` hands over."""

from __future__ import annotations

from alembic import context

from services.audit.storage.schema import METADATA

# Batch mode stays off: on SQLite it would rebuild tables and drop the triggers that protect them.
context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=METADATA,
    render_as_batch=False,
    version_table=context.config.attributes.get("version_table", "alembic_version"),
)
with context.begin_transaction():
    context.run_migrations()
