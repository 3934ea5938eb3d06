"""A process beside the service, in a session of its own, that no other work shares and that dies with the service."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

from services.trainer.executors.model import Attached, Task
from services.trainer.work.bounds import LIFELINE, holder_of
from services.trainer.work.ended import Ended
from services.trainer.work.log_lines import MAX_TEXT_BYTES, LogWriter

GRACE_SECONDS: Final = 10.0
"""From SIGTERM to SIGKILL: time for a checkpoint of a small model."""

PASSED: Final = (
    "PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "TZ", "PYTHONPATH", "VIRTUAL_ENV", "LD_LIBRARY_PATH",
    "CUDA_VISIBLE_DEVICES", "CUDA_HOME", "NVIDIA_VISIBLE_DEVICES", "SSL_CERT_FILE",
)  # fmt: skip
"""What a process may see of the service's environment: no secret of any part is among them."""


class LocalExecutor:
    """Runs `python -m services.trainer.work`."""

    def __init__(
        self, *, environ: Mapping[str, str] | None = None, grace_seconds: float = GRACE_SECONDS
    ) -> None:
        given = os.environ if environ is None else environ
        self._environ = {name: given[name] for name in PASSED if name in given}
        self._grace_seconds = grace_seconds

    async def run(self, task: Task, attached: Attached) -> Ended:  # noqa: ARG002 - it runs nowhere else
        """Run the folder's work to its end; cancelled, end its whole process group first."""
        end_leftover(task.folder)
        # The process holds the reading end: it sees the end of the pipe when this service is gone, however that went.
        reading, writing = os.pipe()
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "services.trainer.work",
                str(task.folder),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                start_new_session=True,
                pass_fds=(reading,),
                env=self._environment(task, reading),
                limit=MAX_TEXT_BYTES * 4,
            )
            os.close(reading)
            reading = -1
            return await self._until_end(process, task.folder)
        finally:
            if reading >= 0:
                os.close(reading)
            os.close(writing)

    async def _until_end(self, process: asyncio.subprocess.Process, folder: Path) -> Ended:
        log = await asyncio.to_thread(LogWriter, folder)
        pump = asyncio.create_task(_pump(process, log))
        try:
            exit_code = await process.wait()
        except asyncio.CancelledError:
            await self._end(process)
            raise
        finally:
            # What it left behind in its group would hold the pipe, and the machine, for ever.
            _signal_group(process.pid, signal.SIGKILL)
            with suppress(TimeoutError):
                async with asyncio.timeout(self._grace_seconds):
                    await pump
        return Ended(exit_code, log.last_lines)

    async def _end(self, process: asyncio.subprocess.Process) -> None:
        _signal_group(process.pid, signal.SIGTERM)
        try:
            async with asyncio.timeout(self._grace_seconds):
                await asyncio.shield(process.wait())
        except (TimeoutError, asyncio.CancelledError):
            _signal_group(process.pid, signal.SIGKILL)
            await process.wait()

    def _environment(self, task: Task, lifeline: int) -> dict[str, str]:
        threads = str(task.threads)
        return self._environ | {
            LIFELINE: str(lifeline),
            "PYTHONUNBUFFERED": "1",
            "PYTHONFAULTHANDLER": "1",
            "OMP_NUM_THREADS": threads,
            "MKL_NUM_THREADS": threads,
            "TOKENIZERS_PARALLELISM": "false",
            # Nothing is fetched behind the operator's back: what is used was named by digest and is on the disk.
            "HF_HUB_OFFLINE": "1",
            "HF_DATASETS_OFFLINE": "1",
            "TRANSFORMERS_OFFLINE": "1",
        }


def end_leftover(folder: Path) -> None:
    """Kill a process that an earlier life of this service left at work in the folder."""
    holder = holder_of(folder)
    if holder is None or holder == os.getpid():
        return
    with suppress(ProcessLookupError):
        group = os.getpgid(holder)
        if group == holder:
            os.killpg(group, signal.SIGKILL)
        else:
            os.kill(holder, signal.SIGKILL)


async def _pump(process: asyncio.subprocess.Process, log: LogWriter) -> None:
    if process.stdout is None:
        return
    while True:
        try:
            line = await process.stdout.readuntil(b"\n")
        except asyncio.IncompleteReadError as error:
            if error.partial:
                log.write(error.partial)
            return
        except asyncio.LimitOverrunError as error:
            line = await process.stdout.readexactly(error.consumed)
        log.write(line)


def _signal_group(pid: int, number: signal.Signals) -> None:
    # The pid leads its own session, and its group outlives it as long as one member does.
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)
