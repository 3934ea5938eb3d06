"""What backends are held to by default, and may be told otherwise by the settings."""

from __future__ import annotations

from typing import Final

LATENCY_SECONDS: Final = 5.0
"""Longest time for one token of an idle model in memory (RFC-080: a health check under 5 s)."""

IDLE_LOOKS: Final = 30
"""Looks without an answer after which an idle model is tested: five minutes at the usual interval."""
