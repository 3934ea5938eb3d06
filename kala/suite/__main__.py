"""The supervisor as a process of its own: what `kala up --detach` and private suites start.

It reports through `run/suite.json` and writes what it has to say to its standard error.
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import sys
from pathlib import Path

from kala.errors import KalaError
from kala.suite.layout import StateLayout
from kala.suite.ports import LOOPBACK
from kala.suite.record import SuiteRecord
from kala.suite.suite import SuiteOptions, run_suite

EXIT_FAILED = 1


def main(argv: list[str] | None = None) -> int:
    """Run a suite until it is told to stop; 0 after an orderly stop, 1 when it could not run."""
    parser = argparse.ArgumentParser(prog="python -m kala.suite")
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--host", default=LOOPBACK)
    parser.add_argument("--port", type=int)
    parser.add_argument(
        "--until-stdin-closes",
        action="store_true",
        help="stop when the process that started this one is gone",
    )
    parser.add_argument(
        "--ephemeral", action="store_true", help="delete the state directory after an orderly stop"
    )
    arguments = parser.parse_args(argv)
    options = SuiteOptions(StateLayout.at(arguments.state), host=arguments.host, port=arguments.port)
    stop_when = _until_stdin_closes if arguments.until_stdin_closes else None
    try:
        asyncio.run(run_suite(options, on_ready=_ready, say=_say, stop_when=stop_when))
    except KalaError as error:
        _say(error.message)
        return EXIT_FAILED
    if arguments.ephemeral:
        # Keys and records of somebody who may have been killed and deletes nothing any more.
        shutil.rmtree(arguments.state, ignore_errors=True)
    return 0


async def _until_stdin_closes(stop: asyncio.Event) -> None:
    """The other end of the pipe is closed by the kernel however its holder ends, so nothing is left behind."""
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    await reader.read()
    stop.set()


async def _ready(record: SuiteRecord) -> None:
    _say(f"ready at {record.gateway_url}")


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
