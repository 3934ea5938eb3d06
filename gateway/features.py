"""What stands on the gateway's core: every feature that a gateway opens."""

from __future__ import annotations

from typing import Final

from gateway.batches.feature import open_batches
from gateway.conversations.feature import open_sessions
from gateway.feature import Feature, Opener
from gateway.files.feature import open_files
from gateway.fine_tuning.feature import open_fine_tuning
from gateway.limits.service import open_usage
from gateway.live_settings.service import open_settings
from gateway.responses.feature import open_responses

__all__ = ["FEATURES", "Feature", "Opener"]

FEATURES: Final[tuple[Opener, ...]] = (
    open_files,
    open_batches,
    open_fine_tuning,
    open_usage,
    open_sessions,
    open_responses,
    open_settings,
)
"""In the order in which they are opened; closed in reverse."""
