"""One model server as a child of this process: started, watched, started again when it ends, and stopped with us."""

from __future__ import annotations

import asyncio
import contextlib
import enum
import os
import signal
import socket
import sys
from asyncio.subprocess import PIPE, STDOUT, Process
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

import structlog

from services.inference.backend import Backend, LoadState, ModelInfo, State, Status
from services.inference.base_url import BaseUrl
from services.inference.router import SERVER_STARTING
from services.inference.started.command import LOOPBACK, Command, MissingError

log: Final = structlog.get_logger()

TETHER: Final = Path(__file__).parent / "tether.py"

START_SECONDS: Final = 600.0
"""Reading the largest models from a slow disk; mlx_lm.server stays without listening when its port is taken."""

LISTEN_CHECK_SECONDS: Final = 0.2

GRACE_SECONDS: Final = 5.0
"""How long a server may take to end when it is told to."""

FIRST_PAUSE_SECONDS: Final = 1.0
LONGEST_PAUSE_SECONDS: Final = 60.0
"""Between the end of a server and its next start, doubled each time: a model that does not load must not eat a machine."""

MAX_LINE_CHARS: Final = 200


class Movable(Backend, Protocol):
    """A backend whose address is known only when its server is started."""

    def move(self, base: BaseUrl) -> None:
        """Ask there from now on."""
        ...


class Phase(enum.Enum):
    """Where a server is in its life."""

    WAITING = "waiting"
    STARTING = "starting"
    LISTENING = "listening"
    ENDED = "ended"


@dataclass(frozen=True, slots=True)
class _Ended:
    """How one life of a server ended."""

    has_listened: bool
    how: str


@dataclass(slots=True)
class StartedServer:
    """One server; `run` keeps it running until it is cancelled, and then stops it."""

    name: str
    command: Command
    backend: Movable
    environ: Mapping[str, str] = field(repr=False)
    changed: Callable[[], None] = lambda: None
    """Called when there is something new to see of it."""
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    _phase: Phase = Phase.WAITING
    _problem: Status | None = None
    _last_line: str = ""
    _process: Process | None = field(default=None)

    @property
    def pid(self) -> int | None:
        """The process that runs now, None where none does."""
        return None if self._process is None else self._process.pid

    def status(self) -> Status | None:
        """Say why it does not answer; None while it listens and should."""
        if self._phase is Phase.LISTENING:
            return None
        if self._problem is not None:
            return self._problem
        model = ModelInfo(self.command.model_name, LoadState.LOADING)
        detail = f"is being started with {model.id}; wait for it"
        return Status(State.LOADING, detail, (model,), reason=SERVER_STARTING)

    async def run(self) -> None:
        """Keep it running; ends only by cancellation, after the server has ended."""
        pause = FIRST_PAUSE_SECONDS
        while True:
            try:
                line = self.command.line(port := _free_port())
            except MissingError as missing:
                self._failed(missing.reason, str(missing))
                # Somebody may install it or fetch the model meanwhile.
                await self.sleep(LONGEST_PAUSE_SECONDS)
                continue
            ended = await self._live(line, port)
            pause = FIRST_PAUSE_SECONDS if ended.has_listened else pause
            self._failed("SERVER_ENDED", f"{ended.how}; it is started again in {pause:g} s")
            await self.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)

    async def _live(self, line: list[str], port: int) -> _Ended:
        """Start it and wait for its end."""
        self._phase, self._problem, self._last_line = Phase.STARTING, None, ""
        self.backend.move(BaseUrl("http", LOOPBACK, port))
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, str(TETHER), str(os.getpid()), *line),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=PIPE,
            stderr=STDOUT,
            env=dict(self.environ),
            start_new_session=True,
        )
        self._process = process
        log.info("server_started", backend=self.name, pid=process.pid, port=port)
        reading = asyncio.create_task(self._read(process))
        listening = asyncio.create_task(self._await_port(port))
        try:
            return await self._watch(process, listening)
        finally:
            listening.cancel()
            await _stop(process)
            self._process = None
            reading.cancel()
            await asyncio.gather(reading, listening, return_exceptions=True)

    async def _watch(self, process: Process, listening: asyncio.Task[None]) -> _Ended:
        ending = asyncio.create_task(process.wait())
        too_long = asyncio.ensure_future(self.sleep(START_SECONDS))
        try:
            await asyncio.wait({ending, listening, too_long}, return_when=asyncio.FIRST_COMPLETED)
            if ending.done():
                log.warning("server_failed_to_start", backend=self.name, last_line=self._last_line)
                how = f"ended with exit code {process.returncode} before it listened, as the log says"
                return _Ended(has_listened=False, how=how)
            if not listening.done():
                return _Ended(has_listened=False, how=f"did not listen within {START_SECONDS:g} s")
            self._phase = Phase.LISTENING
            log.info("server_listens", backend=self.name, pid=process.pid)
            self.changed()
            code = await asyncio.shield(ending)
            return _Ended(has_listened=True, how=f"ended with exit code {code}")
        finally:
            ending.cancel()
            too_long.cancel()

    async def _read(self, process: Process) -> None:
        # Reading on keeps it from blocking; once it serves, its lines may quote prompts, and none is kept.
        assert process.stdout is not None  # noqa: S101 - it was asked for
        while piece := await process.stdout.read(64 * 1024):
            if self._phase is Phase.STARTING:
                lines = [line for line in piece.decode("utf-8", "replace").splitlines() if line.strip()]
                self._last_line = lines[-1].strip()[:MAX_LINE_CHARS] if lines else self._last_line

    async def _await_port(self, port: int) -> None:
        while True:
            with contextlib.suppress(OSError):
                _, writer = await asyncio.open_connection(LOOPBACK, port)
                writer.close()
                return
            await asyncio.sleep(LISTEN_CHECK_SECONDS)

    def _failed(self, reason: str, problem: str) -> None:
        model = ModelInfo(self.command.model_name, LoadState.NOT_LOADED)
        self._phase = Phase.ENDED
        self._problem = Status(State.ERROR, problem, (model,), reason=reason)
        log.warning("server_not_running", backend=self.name, reason=reason, problem=problem)
        self.changed()


async def _stop(process: Process) -> None:
    """End it and whatever it started, gently first."""
    if process.returncode is not None:
        return
    _signal_group(process, signal.SIGTERM)
    try:
        async with asyncio.timeout(GRACE_SECONDS):
            await process.wait()
    except TimeoutError:
        _signal_group(process, signal.SIGKILL)
        await process.wait()


def _signal_group(process: Process, number: signal.Signals) -> None:
    # Its session is its own (start_new_session), so its group is nobody else's.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port: int = probe.getsockname()[1]
        return port
