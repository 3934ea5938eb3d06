"""Processes of the trainer with their libraries loaded: forked from a server that loads them once, in place of seconds at each start.

What runs is the real work, in a process and a session of its own, which can be killed. What a cold start does is tested with
`tests.fakes.training_jobs.start` and with the service's own executor.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path

from services.trainer.executors.local import GRACE_SECONDS
from services.trainer.executors.model import Attached, Task
from services.trainer.work.ended import Ended
from services.trainer.work.log_lines import LogWriter

LIBRARIES = ("torch", "peft", "transformers.models.gpt_neox.modeling_gpt_neox")
ENVIRONMENT = {
    "GLOO_SOCKET_IFNAME": "lo",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "PYTHONWARNINGS": "ignore",
}


@cache
def _server() -> ForkServerContext:
    """Start the server with the environment that the libraries read while they are loaded; it ends with this process."""
    from multiprocessing import forkserver

    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(LIBRARIES))
    before = {name: os.environ.get(name) for name in ENVIRONMENT}
    os.environ.update(ENVIRONMENT)
    try:
        forkserver.ensure_running()
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
    return context


class WarmProcess:
    """A function's run in a process and a session of its own; as much of `subprocess.Popen` as tests need."""

    def __init__(self, run: Callable[..., object], *arguments: object) -> None:
        self._reading, writing = multiprocessing.Pipe(duplex=False)
        self._process: ForkServerProcess = _server().Process(target=_run, args=(writing, run, arguments))
        self._process.start()
        writing.close()

    @property
    def returncode(self) -> int | None:
        """How it ended; None while it runs, negative for a signal."""
        return self._process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Signal its whole group."""
        assert self._process.pid is not None
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def lines(self) -> list[bytes]:
        """Read its outputs to their end, which is the end of everything that holds them."""
        with open(os.dup(self._reading.fileno()), "rb") as outputs:  # noqa: PTH123 - a descriptor
            return outputs.read().splitlines()

    def communicate(self, timeout: float | None = None) -> tuple[bytes, None]:
        """Wait for its end; gives what it wrote."""
        lines = self.lines()
        self._process.join(timeout)
        self._reading.close()
        return b"\n".join(lines), None


def _run(writing: Connection, run: Callable[..., object], arguments: tuple[object, ...]) -> None:
    os.setsid()
    for descriptor in (1, 2):
        os.dup2(writing.fileno(), descriptor)
    writing.close()
    run(*arguments)


def start_warm(folder: Path) -> WarmProcess:
    """Begin the work of a folder."""
    return WarmProcess(_work, folder)


def _work(folder: Path) -> None:
    from services.trainer.work.__main__ import main

    sys.exit(main([str(folder)]))


class WarmExecutor:
    """Runs the work of a trainer's service like its local executor."""

    async def run(self, task: Task, attached: Attached) -> Ended:
        process = await asyncio.to_thread(start_warm, task.folder)
        end = asyncio.create_task(asyncio.to_thread(process.communicate))
        try:
            written, _ = await asyncio.shield(end)
        except asyncio.CancelledError:
            process.send_signal(signal.SIGTERM)
            await asyncio.wait({end}, timeout=GRACE_SECONDS)
            process.kill()
            await end
            raise
        log = LogWriter(task.folder)
        for line in written.splitlines():
            log.write(line)
        assert process.returncode is not None
        return Ended(process.returncode, log.last_lines)
