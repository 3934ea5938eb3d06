"""One scan worker as the service sees it: started, asked one file at a time, killed when it takes too long."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from contextlib import suppress
from pathlib import Path
from typing import Final

from services.tools.code.messages import (
    HEAD,
    MAX_ANSWER_BYTES,
    Answer,
    MessageError,
    Question,
    answer_from_bytes,
    length_of,
    question_to_bytes,
)

START_SECONDS: Final = 60.0
"""Loading the engines takes a second on an idle machine."""

# What a read of the pipe is given at a time.
_BUFFER_BYTES: Final = 256 * 1024
_MODULE: Final = "services.tools.code.worker"
# Where the packages are imported from, here and in the worker.
_ROOT: Final = str(Path(__file__).resolve().parents[2])
_KEPT_VARIABLES: Final = ("LD_LIBRARY_PATH", "PYTHONHOME")


class WorkerLostError(Exception):
    """The worker ended or said what it may not; `returncode` is its exit status, negative for a signal."""

    def __init__(self, returncode: int | None) -> None:
        super().__init__(f"the scan worker ended with {returncode}")
        self.returncode = returncode


class ScanProcess:
    """One worker; made by `start`, of no use after an error or a cancellation, which kill it."""

    def __init__(
        self, process: Process, questions: asyncio.StreamWriter, answers: asyncio.StreamReader
    ) -> None:
        self._process = process
        # Process.kill would reap a worker that died, and lose what it died of.
        self._handle: int | None = os.pidfd_open(process.pid)
        self._questions = questions
        self._answers = answers
        self._is_killed = False
        self._hello = asyncio.create_task(self._greeted())

    @classmethod
    async def start(cls, *, memory_bytes: int) -> ScanProcess:
        """Start a worker; it loads its engines meanwhile, and the first question waits for that.

        Raises:
            OSError: there can be no process.
        """
        process = await asyncio.create_subprocess_exec(
            # -P: nothing is imported from the working directory.
            *(sys.executable, "-B", "-P", "-m", _MODULE, str(os.getpid()), str(memory_bytes)),
            stdin=PIPE,
            stdout=PIPE,
            stderr=None if sys.stderr else DEVNULL,
            env=_environment(),
            limit=_BUFFER_BYTES,
        )
        if process.stdin is None or process.stdout is None:
            raise OSError("the scan worker has no pipes")
        return cls(process, process.stdin, process.stdout)

    @property
    def pid(self) -> int:
        """Its process."""
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        """Whether nobody ended it and its end was not heard of yet."""
        return not self._is_killed and self._process.returncode is None

    async def ready(self) -> None:
        """Wait until it has loaded its engines; who gives up waiting leaves it as it is. Raises WorkerLostError."""
        await asyncio.shield(self._hello)

    async def ask(self, question: Question) -> Answer:
        """Have one file scanned; raises WorkerLostError."""
        try:
            with suppress(ConnectionError):
                self._questions.write(question_to_bytes(question))
                await self._questions.drain()
            return await self._read()
        except BaseException:
            self.kill()
            raise

    async def _read(self) -> Answer:
        try:
            length = length_of(await self._answers.readexactly(HEAD.size), max_bytes=MAX_ANSWER_BYTES)
            return answer_from_bytes(await self._answers.readexactly(length))
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            # Its pipe ends with it, unless it closed that itself.
            self.kill()
            raise WorkerLostError(await self._process.wait()) from error
        except MessageError as error:
            raise WorkerLostError(None) from error

    async def _greeted(self) -> None:
        try:
            async with asyncio.timeout(START_SECONDS):
                await self._read()
        except TimeoutError:
            self.kill()
            raise WorkerLostError(None) from None

    def kill(self) -> None:
        """End it at once."""
        self._is_killed = True
        if self._handle is not None:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._handle, signal.SIGKILL)

    async def aclose(self) -> None:
        """End it and wait until it is gone."""
        self.kill()
        await self._process.wait()
        # Ends with the process; nobody may be left who waits for it.
        await asyncio.gather(self._hello, return_exceptions=True)
        self._questions.close()
        handle, self._handle = self._handle, None
        if handle is not None:
            os.close(handle)


def _environment() -> dict[str, str]:
    """Nothing of the service's environment but what the interpreter needs to start and to find its packages."""
    kept = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
    places = os.pathsep.join(dict.fromkeys([_ROOT, *(place for place in sys.path if place)]))
    return {**kept, "PYTHONPATH": places, "PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"}
