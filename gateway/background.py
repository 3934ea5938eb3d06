"""Work that must be finished although its request is gone, and is waited for when the process stops."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, Final, TypeVar

import structlog

DRAIN_SECONDS: Final = 10.0
"""Longer than an append may take, so that a record that was begun is finished before the process ends."""


T = TypeVar("T")


class Background:
    """Keeps tasks alive until they end."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()  # Any: results differ

    def keep(self, work: Coroutine[object, object, T]) -> asyncio.Task[T]:
        """Start work that outlives a cancelled caller; whoever waits for it hears of its failure."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def spawn(self, work: Coroutine[object, object, object]) -> None:
        """Start work that nobody waits for; a failure is logged."""
        self.keep(work).add_done_callback(_log_failure)

    async def drain(self) -> None:
        """Wait for everything that was started; what takes too long is cancelled."""
        if self._tasks:
            _, late = await asyncio.wait(set(self._tasks), timeout=DRAIN_SECONDS)
            for task in late:
                task.cancel()


def _log_failure(task: asyncio.Task[object]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        structlog.get_logger().error("background work failed", error=type(error).__name__, exc_info=error)
