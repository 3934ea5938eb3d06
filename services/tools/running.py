"""What one run leaves in this process while it lasts: its output's digests, the order to end it, work after its caller."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any, Final

import structlog

from kala.errors import KalaError
from services.common.deadlines import fresh_deadline
from services.tools.sandbox.model import Output, Run, Stream

MAX_KEPT_OUTPUT_BYTES: Final = 256 * 1024
"""Of each stream, for the result that a model reads; the caller gets all of it as events."""

log: Final = structlog.get_logger()


@dataclass(slots=True)
class Printed:
    """What a run wrote: digests of all of it, and its beginning for the result."""

    digests: dict[Stream, Any] = field(  # Any: hashlib's objects have no public type
        default_factory=lambda: {stream: hashlib.sha256() for stream in Stream}
    )
    kept: dict[Stream, bytearray] = field(default_factory=lambda: {stream: bytearray() for stream in Stream})

    def add(self, output: Output) -> None:
        """Take one piece."""
        self.digests[output.stream].update(output.data)
        kept = self.kept[output.stream]
        kept += output.data[: MAX_KEPT_OUTPUT_BYTES - len(kept)]


@dataclass(slots=True)
class Ending:
    """Ends a run whose workspace is being deleted, also one that has not begun yet."""

    is_over: bool = False
    run: Run | None = None
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    def end(self) -> None:
        """End it, now or as soon as it begins."""
        self.is_over = True
        if self.run is not None:
            self._kill(self.run)

    def attach(self, run: Run) -> None:
        """Name the run that has begun."""
        self.run = run
        if self.is_over:
            self._kill(run)

    def _kill(self, run: Run) -> None:
        task = asyncio.get_running_loop().create_task(run.kill())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


class Background:
    """Work that must be done although its caller has gone."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def keep(
        self, work: Coroutine[Any, Any, None]
    ) -> None:  # Any: a coroutine's other two types mean nothing here
        """Do it, whatever becomes of the call that asked for it."""
        task = asyncio.get_running_loop().create_task(_independent(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def drain(self) -> None:
        """Wait for all of it."""
        while self._tasks:
            await asyncio.wait(list(self._tasks))


async def _independent(work: Coroutine[Any, Any, None]) -> None:  # Any: as above
    with fresh_deadline():
        try:
            await work
        except KalaError as error:
            log.error("execution_not_recorded", problem=error.message)  # noqa: TRY400 - its own words
