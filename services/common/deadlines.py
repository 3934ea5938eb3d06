"""The time left of the RPC being served, so that calls made for it never outlive it."""

from __future__ import annotations

import time
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Final, cast

if TYPE_CHECKING:
    from collections.abc import Iterator

    from services.common.peers import Context

SHAVE_SECONDS: Final = 0.05
"""Kept back at each hop, so that this part still has time to say which call was too slow (boulder keeps 20 ms)."""

# Set by the server for the task of one RPC; tasks that a handler starts inherit it.
_deadline: ContextVar[float | None] = ContextVar("kala_deadline", default=None)


def time_left(context: Context) -> float | None:
    """Give the seconds until the caller's deadline; None when it set none."""
    # The stub says float, but grpc gives None for a call without a deadline.
    return cast("float | None", context.time_remaining())


def remember_deadline(context: Context) -> None:
    """Let every call made from this task on end before the RPC of `context` does."""
    left = time_left(context)
    _deadline.set(None if left is None else time.monotonic() + left)


def bounded(timeout_seconds: float, *, shave_seconds: float = SHAVE_SECONDS) -> float:
    """Shorten a timeout to what the RPC being served leaves; unchanged outside of one."""
    deadline = _deadline.get()
    if deadline is None:
        return timeout_seconds
    return max(0.0, min(timeout_seconds, deadline - time.monotonic() - shave_seconds))


@contextmanager
def fresh_deadline() -> Iterator[None]:
    """Make calls inside independent of the RPC being served, for work that must be done after its client went away."""
    token = _deadline.set(None)
    try:
        yield
    finally:
        _deadline.reset(token)
