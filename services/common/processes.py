"""Waits for child processes to end."""

from __future__ import annotations

import asyncio
from asyncio.subprocess import Process
from contextlib import suppress
from typing import Final

_PIECE_BYTES: Final = 65_536


async def gone(process: Process) -> int:
    """Wait until a process that ends has ended, throwing away what it still said; returns its status.

    `process.wait()` alone may wait for ever: asyncio hears of the end only behind the end of every pipe, and does not
    read on from a pipe whose buffer is full. Nobody else may be reading.
    """
    await asyncio.gather(*(_discard(pipe) for pipe in (process.stdout, process.stderr) if pipe is not None))
    return await process.wait()


async def _discard(pipe: asyncio.StreamReader) -> None:
    with suppress(OSError):
        while await pipe.read(_PIECE_BYTES):
            pass
