"""What stands on the gateway's core: every feature that a gateway opens."""

from __future__ import annotations

from typing import Final

from gateway.feature import Feature, Opener
from gateway.files.feature import open_files

__all__ = ["FEATURES", "Feature", "Opener"]

FEATURES: Final[tuple[Opener, ...]] = (open_files,)
"""In the order in which they are opened; closed in reverse."""
