"""What the log publishes, for its RPC and its HTTP; who reads entries is put in the log, once an hour for each reader.

Once an hour, for a mirror reads thousands of bundles, and one that was recorded for each would never reach the end.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

from kala.audit.tile_paths import CHECKPOINT_PATH, TilePath
from kala.audit.v1 import audit_pb2
from kala.errors import InvalidArgumentError, KalaError, UnavailableError, VerificationError
from services.audit.own_records import OwnRecords
from services.audit.publishing.published import PublishedLog
from services.audit.reading.read_records import Reader, log_read, reader_of
from services.common.peers import Context

RECORD_TYPE: Final = "audit.tiles"
SPAN_SECONDS: Final = 3_600.0
# Readers that are remembered; one that is forgotten is only recorded again.
MAX_READERS: Final = 1_024
# Longer than a commit takes on a busy disk.
APPEND_SECONDS: Final = 10.0
RPC: Final = "GetLogResource"

_T = TypeVar("_T")


class TileReads:
    """Remembers who was recorded; lives on one event loop."""

    def __init__(self, own: OwnRecords, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._own = own
        self._monotonic = monotonic
        self._loop = asyncio.get_running_loop()
        self._recorded_at: dict[Reader, float] = {}

    async def note(self, reader: Reader) -> None:
        """Records that `reader` reads entries, unless it was within the hour; raises when that is not durable."""
        now = self._monotonic()
        last = self._recorded_at.get(reader)
        if last is not None and now - last < SPAN_SECONDS:
            return
        await log_read(self._own, RECORD_TYPE, RPC, reader, {})
        self._recorded_at.pop(reader, None)
        self._recorded_at[reader] = now
        while len(self._recorded_at) > MAX_READERS:
            del self._recorded_at[next(iter(self._recorded_at))]

    def note_from_thread(self, address: str) -> None:
        """The same for a reader of the log's own HTTP port, from one of its threads."""
        noted = asyncio.run_coroutine_threadsafe(self.note(Reader(f"http:{address}")), self._loop)
        try:
            noted.result(APPEND_SECONDS)
        except KalaError:
            raise
        except Exception as error:  # whatever it is, nothing is read that is not recorded
            noted.cancel()
            raise UnavailableError("the reading could not be recorded", reason="AUDIT_UNAVAILABLE") from error


class PublishedReads:
    """Answers the RPC; reads in a thread of its own."""

    def __init__(self, published: PublishedLog, reads: TileReads) -> None:
        self._published = published
        self._reads = reads
        self._thread = ThreadPoolExecutor(1, "audit-tiles")

    async def get(self, path: str, context: Context) -> audit_pb2.GetLogResourceResponse:
        """The resource at this path; raises `InvalidArgumentError` for what is none."""
        if path == CHECKPOINT_PATH:
            return audit_pb2.GetLogResourceResponse(
                data=(await self._do(self._published.checkpoint)).encode()
            )
        try:
            tile = TilePath.parse(path)
        except VerificationError as error:
            raise InvalidArgumentError("path", error.message) from error
        if tile.level is None:
            await self._reads.note(reader_of(context))
        return audit_pb2.GetLogResourceResponse(data=await self._do(lambda: self._published.resource(tile)))

    async def cosigned(self, size: int, note: str) -> str:
        """A checkpoint's note with the cosignatures that it has so far."""
        return note + "".join(await self._do(lambda: self._published.lines(size)))

    async def close(self) -> None:
        """Waits for the read that runs."""
        await asyncio.to_thread(self._thread.shutdown)

    async def _do(self, method: Callable[[], _T]) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, method)
