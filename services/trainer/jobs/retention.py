"""What is thrown away and when: checkpoints a day after their job's end, folders and operations after a month."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

from kala.errors import NotFoundError
from services.trainer.jobs.states import CHECKPOINTS
from services.trainer.names import OPERATIONS, number_of, numbered
from services.trainer.operations import Operations
from services.trainer.places import Places
from services.trainer.store.store import Store

CHECKPOINT_SECONDS: Final = 86_400.0
"""After a job's end its checkpoints stay for a day, as the contract says."""


KEPT_AFTER_ERASURE: Final = frozenset({"log.jsonl", "events.jsonl", "sequence", "reports", "lock"})
"""What of a job's folder holds no rows of datasets and nothing that was made from single rows."""


async def forget_rows(folder: Path) -> None:
    """Remove everything of a job's folder that may hold rows of its datasets, e.g. drafts that were made from them."""

    def work() -> None:
        for path in folder.glob("*"):
            if path.name in KEPT_AFTER_ERASURE:
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)

    await asyncio.to_thread(work)


class Retention:
    """Sweeps the folders of work."""

    def __init__(
        self, store: Store, places: Places, operations: Operations, *, clock: Callable[[], float] = time.time
    ) -> None:
        self._store = store
        self._places = places
        self._operations = operations
        self._clock = clock

    async def sweep(self) -> None:
        """Throw away what is over."""
        for name in await self._operations.sweep():
            await _remove(self._places.work(number_of(OPERATIONS, name)))
        oldest = (self._clock() - CHECKPOINT_SECONDS) * 1e6
        for folder in await asyncio.to_thread(_with_checkpoints, self._places.work_root):
            # A folder whose operation is not known is somebody's who knows why: it stays.
            with suppress(NotFoundError):
                row = await self._store.operations.get(numbered(OPERATIONS, folder.name), None)
                if row.ended_at is not None and row.ended_at < oldest:
                    await _remove(folder / CHECKPOINTS)


def _with_checkpoints(root: Path) -> list[Path]:
    return sorted(path.parent for path in root.glob(f"*/{CHECKPOINTS}"))


async def _remove(path: Path) -> None:
    await asyncio.to_thread(shutil.rmtree, path, ignore_errors=True)
