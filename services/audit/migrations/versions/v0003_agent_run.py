"""Adds the view `agent_run`, in which every backend's and tool's run is one row."""

from __future__ import annotations

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Creates the view."""
