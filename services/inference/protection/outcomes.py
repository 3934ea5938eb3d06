"""What a failed attempt says about its backend.  Pure."""

from __future__ import annotations

import enum
from typing import Final

from services.inference.backend import BackendFailure, Blame

BREAKER_OPEN: Final = "BREAKER_OPEN"
BULKHEAD_FULL: Final = "BULKHEAD_FULL"

REFUSED_HERE: Final = frozenset({BREAKER_OPEN, BULKHEAD_FULL})
"""Reasons of attempts that never reached their backend."""

UNREACHABLE: Final = frozenset(
    {
        "CONNECTION_REFUSED",
        "CONNECTION_FAILED",
        "CONNECT_TIMED_OUT",
        "DNS_FAILED",
        "FORBIDDEN_ADDRESS",
        "TLS_FAILED",
        "UNREACHABLE",
    }
)
"""No connection: certain after the first time, and true of every model of the backend."""

KNOWN_BY_LOOKING: Final = frozenset({"MODEL_NOT_FOUND", "NO_MODEL_LOADED"})
"""A look at the backend tells these too, and tells as soon as it is no longer so; a breaker would only be late."""

TASK_NOT_SERVED: Final = "TASK_NOT_SERVED"
"""It cannot embed, rank or continue texts at all, which says nothing about its chats."""

_SAY_NOTHING: Final = REFUSED_HERE | KNOWN_BY_LOOKING | {TASK_NOT_SERVED}

BUSY: Final = "BACKEND_BUSY"


class Weight(enum.Enum):
    """How an outcome counts."""

    NOTHING = "nothing"
    """It tells nothing of the backend: a mistake of the caller, or what a look knows better."""
    FAULT = "fault"
    """The model did not answer as it should."""
    AWAY = "away"
    """The backend cannot be reached at all."""


def weigh(failure: BackendFailure) -> Weight:
    """Say how a failure counts; a mistake of the caller never does, nor what a model wrote."""
    if failure.blame is not Blame.BACKEND or failure.reason in _SAY_NOTHING:
        return Weight.NOTHING
    if failure.reason in UNREACHABLE:
        return Weight.AWAY
    if failure.reason == BUSY and failure.retry_after_seconds is None:
        # A full backend works. The next one is tried, and this one again with the next request.
        return Weight.NOTHING
    return Weight.FAULT
