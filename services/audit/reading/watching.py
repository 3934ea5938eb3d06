"""Following the log as it grows: one poll of the head wakes all who watch, whichever replica appended.

Nothing is queued for a watcher: each reads on from where it stands when its caller has taken what was sent, so that a
slow one costs no memory. The number of watchers is bounded.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from enum import Enum
from typing import Final, TypeVar

import structlog

from kala.errors import KalaError, ResourceExhaustedError, UnavailableError
from services.audit.reading.log_reader import FoundEntry
from services.audit.reading.query import Condition
from services.audit.reading.scan import Scanner
from services.audit.storage.store import LogReader

# As soon as people notice; a look at the head takes microseconds, and none is taken while nobody watches.
POLL_SECONDS: Final = 0.1
# While the database is away.
RETRY_SECONDS: Final = 1.0
# The live pages of a team and a few mirrors. Whoever watches public checkpoints cannot take the others' places.
MAX_WATCHERS: Final = 64
RETRY_AFTER_SECONDS: Final = 5.0
# At most this many entries are held for one watcher.
READ_ENTRIES: Final = 64

log = structlog.get_logger()

_T = TypeVar("_T")


class Watched(Enum):
    """What is watched; each kind has its own places."""

    ENTRIES = "entries"
    CHECKPOINTS = "checkpoints"


class Watches:
    """Serves all watchers of one process from one reader, in one thread."""

    def __init__(
        self, reader: LogReader, *, poll_seconds: float = POLL_SECONDS, max_watchers: int = MAX_WATCHERS
    ) -> None:
        self._reader = reader
        self._scanner = Scanner(reader)
        self._poll_seconds = poll_seconds
        self._max_watchers = max_watchers
        self._thread = ThreadPoolExecutor(1, "audit-watch")
        self._present = dict.fromkeys(Watched, 0)
        self._size = 0
        self._changed = asyncio.Event()
        self._polling: asyncio.Task[None] | None = None
        self._is_stopped = False

    async def stop(self) -> None:
        """Ends every watch, as a server does that drains: their callers go on elsewhere, from where they were."""
        self._is_stopped = True
        self._changed.set()

    async def close(self) -> None:
        """Stops, and waits for the read that runs."""
        await self.stop()
        if self._polling is not None:
            self._polling.cancel()
            await asyncio.gather(self._polling, return_exceptions=True)
        await asyncio.to_thread(self._thread.shutdown)

    @contextmanager
    def place(self, kind: Watched) -> Iterator[None]:
        """A watcher's place; raises `ResourceExhaustedError` when all are taken."""
        if self._present[kind] >= self._max_watchers:
            raise ResourceExhaustedError(
                f"{self._max_watchers} watch the log's {kind.value} already",
                reason="AUDIT_TOO_MANY_WATCHERS",
                retry_after_seconds=RETRY_AFTER_SECONDS,
            )
        self._present[kind] += 1
        try:
            yield
        finally:
            self._present[kind] -= 1

    async def size(self) -> int:
        """How many entries the log has now."""
        return await self._read(lambda: self._reader.head().size)

    async def entries(
        self, conditions: Sequence[Condition], first: int, *, is_shown: Callable[[FoundEntry], bool]
    ) -> AsyncIterator[FoundEntry]:
        """Every entry from index `first` on that meets the conditions and is shown, as it is logged, without end."""
        position = first
        while True:
            size = await self._grown_beyond(position)
            while position < size:
                position, found = await self._read(lambda: self._look(conditions, position, size))  # noqa: B023 - awaited at once
                for entry in filter(is_shown, found):
                    yield entry
                self._require_running()

    async def checkpoints(self) -> AsyncIterator[str]:
        """The newest signed checkpoint, then each newer one that a poll finds: between two polls only the newest."""
        position = 0
        while True:
            await self._grown_beyond(position)
            newest = await self._read(lambda: self._reader.note(None))
            if newest is not None and newest[0] > position:
                position = newest[0]
                yield newest[1]

    def _look(
        self, conditions: Sequence[Condition], first: int, last: int
    ) -> tuple[int, Sequence[FoundEntry]]:
        found = self._scanner.scan(conditions, first=first, last=last, limit=READ_ENTRIES)
        kept = self._reader.kept_kinds([row.index for row in found.rows])
        return found.position, [FoundEntry(row, kept.get(row.index, ())) for row in found.rows]

    async def _grown_beyond(self, position: int) -> int:
        """Waits until the log has more entries than this, and says how many."""
        while True:
            self._require_running()
            if self._polling is None or self._polling.done():
                self._polling = asyncio.create_task(self._poll(), name="audit-watch-poll")
            if self._size > position:
                return self._size
            changed = self._changed
            await changed.wait()

    def _require_running(self) -> None:
        if self._is_stopped:
            raise UnavailableError(
                "this server is stopping; watch again from the next index", reason="STOPPING"
            )

    async def _poll(self) -> None:
        """Looks at the head while anybody watches."""
        while any(self._present.values()):
            try:
                size = await self.size()
            except KalaError as error:
                log.warning("watchers wait for the log's database", problem=error.message)
            except Exception:  # the edge of a task: a bug must not leave watchers waiting for ever
                log.exception("the log's head cannot be read")
            else:
                self._grow(size)
                await asyncio.sleep(self._poll_seconds)
                continue
            await asyncio.sleep(RETRY_SECONDS)

    def _grow(self, size: int) -> None:
        if size > self._size:
            self._size = size
            changed, self._changed = self._changed, asyncio.Event()
            changed.set()

    async def _read(self, method: Callable[[], _T]) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, method)
