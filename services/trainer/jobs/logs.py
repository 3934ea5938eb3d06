"""A job's log as a stream: the old lines first, new ones as they come."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Final

from kala.trainer.v1 import trainer_pb2 as pb
from services.trainer.jobs.states import timestamp
from services.trainer.work.log_lines import LogReader

POLL_SECONDS: Final = 0.3


async def follow(
    folder: Path, *, after: int, is_over: Callable[[], bool]
) -> AsyncIterator[pb.WatchLogsResponse]:
    """Lines after this number, until nothing more can come."""
    reader = LogReader(folder, after=after)
    while True:
        # Asked before reading: what was written until the end is read once more after it.
        over = is_over()
        lines = await asyncio.to_thread(reader.read)
        for line in lines:
            yield pb.WatchLogsResponse(
                line=line.number, at=timestamp(line.at), source=line.source, text=line.text
            )
        if lines:
            continue
        if over:
            return
        await asyncio.sleep(POLL_SECONDS)
