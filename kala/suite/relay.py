"""Leads a private socket to another: a part that runs as another user reaches its peers without entering our folders.

The bytes are passed on as they are; who may connect is decided by the folder that the socket lies in.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Final

PIECE_BYTES: Final = 64 * 1024


@contextlib.asynccontextmanager
async def relays(ways: Mapping[Path, Path], *, owner: int) -> AsyncIterator[None]:
    """Listen on each socket of `ways`, which `owner` may open, and lead it to the other, while the context lasts."""
    async with contextlib.AsyncExitStack() as stack:
        for here, there in ways.items():
            here.unlink(missing_ok=True)
            stack.callback(here.unlink, missing_ok=True)
            relay = _Relay(there)
            server = await asyncio.start_unix_server(relay.serve, str(here), limit=PIECE_BYTES)
            os.chown(here, owner, owner)
            here.chmod(0o600)
            stack.push_async_callback(relay.aclose)
            stack.callback(server.close)
        yield


class _Relay:
    def __init__(self, there: Path) -> None:
        self._there = there
        self._running: set[asyncio.Task[None]] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Lead one connection; it ends when either side does."""
        task = asyncio.current_task()
        if task is not None:
            self._running.add(task)
            task.add_done_callback(self._running.discard)
        with contextlib.suppress(OSError), contextlib.closing(writer):
            far_reader, far_writer = await asyncio.open_unix_connection(str(self._there), limit=PIECE_BYTES)
            with contextlib.closing(far_writer):
                ways = [
                    asyncio.create_task(_pump(reader, far_writer)),
                    asyncio.create_task(_pump(far_reader, writer)),
                ]
                try:
                    await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    for way in ways:
                        way.cancel()
                    await asyncio.gather(*ways, return_exceptions=True)

    async def aclose(self) -> None:
        """End every connection."""
        for task in list(self._running):
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(PIECE_BYTES):
        writer.write(data)
        await writer.drain()
