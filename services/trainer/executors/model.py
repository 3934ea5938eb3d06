"""What every executor does: run the process of one folder to its end, or end it when it is no longer wanted."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from kala.trainer.v1 import job_pb2
from services.trainer.work.ended import Ended

LET_GO: Final = "the service is being stopped"
"""Message of the cancellation at the service's stop: work on another machine goes on, and its executor lets go of it."""

Attached = Callable[[str], Awaitable[None]]
"""Is told the id under which work runs elsewhere, as soon as there is one."""


@dataclass(frozen=True, slots=True)
class Task:
    """One piece of work, whose folder holds its order."""

    folder: Path
    threads: int
    placement: job_pb2.Placement
    """Workers and what each may use; empty for one local process."""
    elsewhere_id: str = ""
    """Where an earlier life of the service left it running; empty when it is to be started."""


class Executor(Protocol):
    """Runs work."""

    async def run(self, task: Task, attached: Attached) -> Ended:
        """Run it to its end. Cancelled, it ends every process of the work first.

        Cancelled with LET_GO, it may leave work on another machine running, which the next service takes up by its id.
        Log lines go into the folder's `log.jsonl`. Raises UnavailableError where nothing can be run now.
        """
        ...
