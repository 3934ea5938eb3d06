"""A process from its first line to its last: started by settings, ended by signals."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from google.protobuf.wrappers_pb2 import StringValue

from kala import errors
from services.common.channel import open_channel
from services.common.event_loop import EXIT_ERROR, EXIT_SIGNALLED
from tests.fakes.echo import CALLER, EchoClient

REPOSITORY = Path(__file__).parents[3]

pytestmark = pytest.mark.timeout(60)


@asynccontextmanager
async def echo_process(cwd: Path, **environ: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """Start the echo on `cwd`/echo.sock and end it for certain."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.fakes.echo_process",
        cwd=cwd,
        env={
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(REPOSITORY),
            "KALA_TOOLS_ADDRESS": f"unix:{cwd}/echo.sock",
            **environ,
        },
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
async def test_a_signal_lets_running_calls_end_and_takes_no_new_ones(private: Path, number: int) -> None:
    async with (
        echo_process(private) as process,
        open_channel(f"unix:{private}/echo.sock", peer_name=CALLER) as channel,
    ):
        client = EchoClient(channel)
        talk = client.talk_call(timeout=30, wait_for_ready=True)
        await talk.write(StringValue(value="before"))
        assert (await talk.read()).value == "BEFORE"
        process.send_signal(number)
        assert isinstance(await client.first_failure(), errors.UnavailableError)
        await talk.write(StringValue(value="after"))
        assert (await talk.read()).value == "AFTER"
        await talk.done_writing()
        output, log = await asyncio.wait_for(process.communicate(), 10)
    assert process.returncode == 0, log
    assert output == b"closed\n"
    assert not (private / "echo.sock").exists()


async def test_a_second_signal_cuts_the_drain_short(private: Path) -> None:
    async with (
        echo_process(private, KALA_TOOLS_DRAIN_SECONDS="60", KALA_TOOLS_BALANCER_WAIT_SECONDS="0") as process,
        open_channel(f"unix:{private}/echo.sock", peer_name=CALLER) as channel,
    ):
        client = EchoClient(channel)
        talk = client.talk_call(timeout=30, wait_for_ready=True)
        await talk.write(StringValue(value="before"))
        await talk.read()
        process.terminate()
        assert isinstance(await client.first_failure(), errors.UnavailableError)
        process.terminate()
        output, log = await asyncio.wait_for(process.communicate(), 10)
    assert process.returncode == EXIT_SIGNALLED, log
    assert output == b"closed\n"
    assert b"Traceback" not in log


async def test_a_signal_during_start_up_closes_what_was_opened(private: Path) -> None:
    async with echo_process(private, ECHO_START="stuck") as process:
        assert process.stdout is not None
        assert await process.stdout.readline() == b"starting\n"
        process.terminate()
        output, log = await process.communicate()
    assert (process.returncode, output, log) == (EXIT_SIGNALLED, b"closed\n", b"")


async def test_a_misspelt_variable_stops_the_process_with_one_line(private: Path) -> None:
    async with echo_process(private, KALA_TOOLS_DRAIN_SECOND="1") as process:
        output, log = await process.communicate()
    assert (process.returncode, output) == (EXIT_ERROR, b"")
    assert log == (
        b"KALA_TOOLS_DRAIN_SECOND: is not a setting of tools; did you mean KALA_TOOLS_DRAIN_SECONDS?\n"
    )


async def test_a_bug_keeps_its_traceback(private: Path) -> None:
    async with echo_process(private, ECHO_START="broken") as process:
        _, log = await process.communicate()
    assert process.returncode == 1
    assert b"ZeroDivisionError" in log


async def test_a_process_logs_one_json_line_per_call(private: Path) -> None:
    async with (
        echo_process(private) as process,
        open_channel(f"unix:{private}/echo.sock", peer_name=CALLER) as channel,
    ):
        await EchoClient(channel).say("secret words", wait_for_ready=True)
        process.terminate()
        _, log = await process.communicate()
    (line,) = [json.loads(line) for line in log.splitlines()]
    assert line.pop("duration_ms") > 0
    assert line.pop("timestamp").endswith("Z")
    assert len(line.pop("trace_id")) == 32
    assert line == {
        "event": "rpc",
        "level": "info",
        "part": "tools",
        "method": "/kala.test.v1.EchoService/Say",
        "code": "OK",
        "peer": "local:gateway",
    }
