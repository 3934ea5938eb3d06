"""What stands on the gateway's core: every feature that a gateway opens."""

from __future__ import annotations

from typing import Final

from gateway.feature import Feature, Opener
from gateway.files.feature import open_files
from gateway.limits.service import open_usage

__all__ = ["FEATURES", "Feature", "Opener"]

FEATURES: Final[tuple[Opener, ...]] = (open_files, open_usage)
"""In the order in which they are opened; closed in reverse."""
