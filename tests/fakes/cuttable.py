"""A line between a client and a server that a test can cut: silently, as a broken network is, and then mend."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path


class Line:
    """Passes bytes between two unix sockets while it is whole."""

    def __init__(self, there: Path) -> None:
        self._there = there
        self._whole = asyncio.Event()
        self._whole.set()
        self._connections: set[asyncio.Task[None]] = set()

    def cut(self) -> None:
        """Nothing passes any more, and nobody is told."""
        self._whole.clear()

    def mend(self) -> None:
        """What was held passes; connections that were made before the cut break, as after a reboot of a router."""
        for task in list(self._connections):
            task.cancel()
        self._whole.set()

    async def connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serves one client."""
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)
        try:
            await self._whole.wait()
            far_reader, far_writer = await asyncio.open_unix_connection(str(self._there))
        except (OSError, asyncio.CancelledError):
            writer.close()
            return
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pass(reader, far_writer))
                group.create_task(self._pass(far_reader, writer))
        except (ExceptionGroup, asyncio.CancelledError):
            pass
        finally:
            for end in (writer, far_writer):
                end.close()
                with suppress(OSError):
                    await end.wait_closed()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65_536):
            await self._whole.wait()
            writer.write(data)
            await writer.drain()
        raise ConnectionError


@asynccontextmanager
async def line(here: Path, there: Path) -> AsyncIterator[Line]:
    """A line from the socket `here` to the one `there`."""
    made = Line(there)
    server = await asyncio.start_unix_server(made.connect, str(here))
    try:
        yield made
    finally:
        server.close()
        made.mend()
        await asyncio.sleep(0)
        await asyncio.gather(*list(made._connections), return_exceptions=True)
