"""Puts in the log who reads entries by its tiles: once an hour for each reader, for a mirror reads thousands of bundles."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final

from kala.audit.v1 import audit_pb2
from kala.errors import KalaError, UnavailableError
from services.audit.own_records import OwnRecords

RECORD_TYPE: Final = "audit.tiles"
SPAN_SECONDS: Final = 3_600.0
# Readers that are remembered; one that is forgotten is only recorded again.
MAX_READERS: Final = 1_024
# Longer than a commit takes on a busy disk.
APPEND_SECONDS: Final = 10.0


class TileReads:
    """Remembers who was recorded; lives on one event loop."""

    def __init__(self, own: OwnRecords, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._own = own
        self._monotonic = monotonic
        self._loop = asyncio.get_running_loop()
        self._recorded_at: dict[str, float] = {}

    async def note(self, rpc: str, reader: str) -> None:
        """Records that `reader` reads entries, unless it was within the hour; raises when that is not durable."""
        now = self._monotonic()
        last = self._recorded_at.get(reader)
        if last is not None and now - last < SPAN_SECONDS:
            return
        record = audit_pb2.Record(type=RECORD_TYPE)
        record.action.rpc = rpc
        record.result.status = "ok"
        await self._own.append(record, {"reader": reader})
        self._recorded_at.pop(reader, None)
        self._recorded_at[reader] = now
        while len(self._recorded_at) > MAX_READERS:
            del self._recorded_at[next(iter(self._recorded_at))]

    def note_from_thread(self, reader: str) -> None:
        """The same for a reader of the log's own HTTP port, from one of its threads."""
        noted = asyncio.run_coroutine_threadsafe(self.note("HTTP GET /tile/entries", reader), self._loop)
        try:
            noted.result(APPEND_SECONDS)
        except KalaError:
            raise
        except Exception as error:  # whatever it is, nothing is read that is not recorded
            noted.cancel()
            raise UnavailableError("the reading could not be recorded", reason="AUDIT_UNAVAILABLE") from error
