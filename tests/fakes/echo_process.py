"""The echo as a process of its own, wired as every service's `__main__` is."""

from __future__ import annotations

import asyncio
import os
import sys
from functools import partial

from services.common.event_loop import run
from services.common.server import serving
from services.common.settings import GrpcServerSettings, load
from services.common.telemetry import process_telemetry
from tests.fakes.echo import CALLER, EchoService, register


class EchoSettings(GrpcServerSettings):
    allowed_peers: tuple[str, ...] = (CALLER,)


async def main() -> None:
    settings = load(EchoSettings, section="tools")
    with process_telemetry("tools", settings) as telemetry:
        try:
            await _start_up()
            async with serving(
                settings, [partial(register, EchoService())], telemetry=telemetry.rpc
            ) as server:
                await server.set_serving()
                await server.run_until_signalled()
        finally:
            sys.stdout.write("closed\n")


async def _start_up() -> None:
    match os.environ.get("ECHO_START"):
        case "stuck":
            sys.stdout.write("starting\n")
            sys.stdout.flush()
            await asyncio.Event().wait()
        case "broken":
            raise ZeroDivisionError


if __name__ == "__main__":
    sys.exit(run(main()))
