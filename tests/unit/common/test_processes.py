"""Waiting for a child's end."""

from __future__ import annotations

import asyncio
import sys

from services.common.processes import gone

PLENTY = "import sys, time; sys.stdout.write('x' * 2_000_000); sys.stdout.flush(); time.sleep(600)"


async def test_a_process_is_gone_although_nobody_read_what_it_said() -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", PLENTY), stdout=asyncio.subprocess.PIPE, limit=1024
    )
    assert process.stdout is not None
    # Its reader has filled up: asyncio has stopped listening to the pipe.
    await process.stdout.readexactly(1)
    await asyncio.sleep(0.2)
    process.kill()
    async with asyncio.timeout(30):
        assert await gone(process) == -9
