"""The service's side of a launcher: one process per tier, started again a few times when it dies."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from kala.errors import CancelledError, ResourceExhaustedError, UnavailableError
from services.tools.sandbox.launcher.protocol import (
    ClosedError,
    Message,
    limits_to_message,
    receive,
    send,
)
from services.tools.sandbox.model import Isolation, Job, Language, Prepare, SetupFailedError, Status
from services.tools.sandbox.run import LauncherRun
from services.tools.sandbox.stubs import program

# What a tier promises besides where the launcher found control groups.
CGROUP_CONTROL: Final = "limits.cgroup"
# A launcher that dies more often than this is not started again before some of it is forgotten.
MAX_RESTARTS: Final = 5
RESTART_WINDOW_SECONDS: Final = 60.0
_HELLO_SECONDS: Final = 60.0
_END_SECONDS: Final = 10.0
_LEAST_RETRY_SECONDS: Final = 0.1
_SHARE: Final = 0.2
# Where the packages are imported from, here and in the launcher.
_ROOT: Final = str(Path(__file__).resolve().parents[3])
_KEPT_VARIABLES: Final = ("LD_LIBRARY_PATH", "PYTHONHOME")
_SOCKET_BYTES: Final = 1024 * 1024


@dataclass(frozen=True, slots=True)
class LauncherSettings:
    """What a launcher is started with."""

    # The service's own, private; the tier keeps a few files there.
    state_directory: Path
    # Sandboxes that wait ready, by language.
    pool: Mapping[Language, int] = field(
        default_factory=lambda: {Language.PYTHON: 2, Language.JAVASCRIPT: 1, Language.SHELL: 2}
    )
    # The disk of those; a job with another limit is started cold.
    pool_disk_bytes: int = 256 * 1024 * 1024
    # Runs at one time, over all languages.
    max_running: int = 16
    # What starts Python for the launcher.
    python: tuple[str, ...] = (sys.executable,)


class LauncherSandbox:
    """A tier that a launcher runs; keeps the `Sandbox` protocol."""

    def __init__(
        self,
        isolation: Isolation,
        settings: LauncherSettings,
        options: Mapping[str, str],
        dispose: Callable[[int], None] | None = None,
    ) -> None:
        self._isolation = isolation
        self._dispose = dispose
        self._settings = settings
        self._options = options
        self._loop = asyncio.get_running_loop()
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: socket.socket | None = None
        self._hello: asyncio.Future[None] | None = None
        self._starting: dict[int, asyncio.Future[tuple[Message, list[int]]]] = {}
        self._runs: dict[int, LauncherRun] = {}
        self._taken = 0
        self._last_id = 0
        self._deaths: deque[float] = deque()
        self._usual_seconds = 1.0
        self._closed = False
        # Sandboxes that wait ready, by language; for metrics and for tests that need a warm one.
        self.parked: Counter[Language] = Counter()
        self._parked_changed = asyncio.Event()

    @classmethod
    async def open(
        cls,
        isolation: Isolation,
        settings: LauncherSettings,
        options: Mapping[str, str],
        dispose: Callable[[int], None] | None = None,
    ) -> LauncherSandbox:
        """Start the launcher and wait until it serves.

        `dispose` deletes the workspace, given its descriptor, of a run that is over; None where it goes by itself.

        Raises:
            SetupFailedError: it does not come up.
        """
        sandbox = cls(isolation, settings, options, dispose)
        try:
            await sandbox._ensure()
        except BaseException:
            await sandbox.aclose()
            raise
        return sandbox

    @property
    def isolation(self) -> Isolation:
        """What it promises."""
        return self._isolation

    @property
    def launcher_pid(self) -> int | None:
        """The launcher's process; None while there is none."""
        return None if self._process is None else self._process.pid

    async def wait_parked(self, language: Language, number: int = 1) -> None:
        """Wait until so many sandboxes of a language are ready."""
        while self.parked[language] < number:
            self._parked_changed.clear()
            await self._parked_changed.wait()

    async def start(self, job: Job, prepare: Prepare | None = None) -> LauncherRun:
        """Begin a run, as `Sandbox.start` says."""
        data = program(job)
        if self._taken >= self._settings.max_running:
            raise ResourceExhaustedError(
                f"all {self._settings.max_running} sandboxes are taken; try again shortly",
                reason="SANDBOXES_TAKEN",
                retry_after_seconds=max(_LEAST_RETRY_SECONDS, self._usual_seconds / 2),
            )
        self._taken += 1
        run: LauncherRun | None = None
        try:
            await self._ensure()
            run = await self._begin(job)
            await run.prepare(prepare)
            run.go(data, job.stdin)
        except BaseException:
            if run is not None:
                await run.aclose()
            else:
                self._taken -= 1
            raise
        return run

    async def _begin(self, job: Job) -> LauncherRun:
        self._last_id += 1
        number = self._last_id
        answer: asyncio.Future[tuple[Message, list[int]]] = self._loop.create_future()
        self._starting[number] = answer
        self._tell(
            {
                "op": "start",
                "id": number,
                "language": job.language.value,
                "disk_bytes": job.limits.disk_bytes,
                "host_directory": job.host_directory,
                "limits": limits_to_message(job.limits),
            }
        )
        try:
            message, descriptors = await asyncio.shield(answer)
        except asyncio.CancelledError:
            self._tell_kill(number, Status.CANCELLED, "the caller went away")
            answer.add_done_callback(_close_unused)
            raise
        finally:
            self._starting.pop(number, None)
        if message["op"] == "failed":
            raise SetupFailedError(message["reason"])
        if message["op"] == "lost":
            raise UnavailableError(
                "the launcher died before any of the code ran; try again",
                reason="LAUNCHER_LOST",
                retry_after_seconds=_LEAST_RETRY_SECONDS,
            )
        run = LauncherRun(
            self._isolation,
            job.limits,
            warm=bool(message["warm"]),
            descriptors=descriptors,
            begin=lambda: self._tell({"op": "go", "id": number}),
            kill=lambda status, reason: self._tell_kill(number, status, reason),
            closed=lambda run: self._forget(number, run),
            dispose=self._dispose,
        )
        self._runs[number] = run
        return run

    def _forget(self, number: int, run: LauncherRun) -> None:
        if self._runs.pop(number, None) is not None or run.is_over:
            self._taken -= 1
            self._usual_seconds += _SHARE * (run.seconds - self._usual_seconds)

    # The launcher's process

    async def _ensure(self) -> None:
        """Have a launcher that serves.

        Raises:
            UnavailableError: it died too often of late.
            SetupFailedError: it does not come up.
        """
        if self._closed:
            raise CancelledError("the sandbox is closed")
        if self._hello is None:
            self._spawn()
        hello = self._hello
        if hello is None:
            raise SetupFailedError("the launcher could not be started")
        try:
            # Not wait_for, which forgets a cancellation when its future is done.
            async with asyncio.timeout(_HELLO_SECONDS):
                await asyncio.shield(hello)
        except TimeoutError:
            self._lost()
            raise SetupFailedError(f"the launcher was not up within {_HELLO_SECONDS:g} s") from None
        except UnavailableError as error:
            raise SetupFailedError("the launcher ended before it served; its stderr says why") from error

    def _spawn(self) -> None:
        now = self._loop.time()
        while self._deaths and self._deaths[0] <= now - RESTART_WINDOW_SECONDS:
            self._deaths.popleft()
        if len(self._deaths) >= MAX_RESTARTS:
            raise UnavailableError(
                f"the launcher died {MAX_RESTARTS} times in {RESTART_WINDOW_SECONDS:g} s; see the service's log",
                reason="LAUNCHER_UNSTABLE",
                retry_after_seconds=self._deaths[0] + RESTART_WINDOW_SECONDS - now,
            )
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            ours.setblocking(False)
            for side in (ours, theirs):
                side.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SOCKET_BYTES)
            try:
                self._process = subprocess.Popen(  # noqa: S603 - this interpreter and our own module
                    [*self._settings.python, *_arguments(theirs.fileno(), self._configuration())],
                    env=_environment(),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    pass_fds=(theirs.fileno(),),
                )
            except OSError as error:
                ours.close()
                raise SetupFailedError(f"the launcher could not be started: {error}") from error
        self._channel = ours
        self._hello = self._loop.create_future()
        self._loop.add_reader(ours.fileno(), self._messages)

    def _configuration(self) -> Message:
        return {
            "tier": self._isolation.tier.value,
            "parent": os.getpid(),
            "pool": {language.value: size for language, size in self._settings.pool.items()},
            "disk_bytes": self._settings.pool_disk_bytes,
            "options": dict(self._options),
        }

    def _messages(self) -> None:
        try:
            while self._channel is not None:
                message, descriptors = receive(self._channel)
                self._take(message, descriptors)
        except BlockingIOError:
            pass
        except ClosedError:
            self._lost()

    def _take(self, message: Message, descriptors: Sequence[int]) -> None:
        operation = message["op"]
        if operation in {"started", "failed"}:
            waiting = self._starting.pop(message["id"], None)
            if waiting is not None and not waiting.done():
                waiting.set_result((message, list(descriptors)))
            else:
                for descriptor in descriptors:
                    os.close(descriptor)
        elif operation == "parked":
            self.parked = Counter({Language(name): number for name, number in message["slots"].items()})
            self._parked_changed.set()
        elif operation == "ready":
            if message.get("cgroup") and CGROUP_CONTROL not in self._isolation.controls:
                controls = tuple(sorted((*self._isolation.controls, CGROUP_CONTROL)))
                self._isolation = replace(self._isolation, controls=controls)
            if self._hello is not None and not self._hello.done():
                self._hello.set_result(None)
        elif message["id"] in self._runs:
            self._runs[message["id"]].take(message)

    def _lost(self) -> None:
        """The launcher is gone, and with it all that it had started."""
        if self._channel is None:
            return
        self._deaths.append(self._loop.time())
        self._drop_channel()
        self.parked.clear()
        for waiting in self._starting.values():
            if not waiting.done():
                waiting.set_result(({"op": "lost"}, []))
        for run in tuple(self._runs.values()):
            run.lose()

    def _drop_channel(self) -> None:
        if self._channel is not None:
            self._loop.remove_reader(self._channel.fileno())
            self._channel.close()
            self._channel = None
        if self._hello is not None and not self._hello.done():
            self._hello.set_exception(UnavailableError("the launcher ended"))
            self._hello.exception()
        self._hello = None
        process, self._process = self._process, None
        if process is not None:
            self._loop.run_in_executor(None, _end, process)

    def _tell(self, message: Message) -> None:
        try:
            if self._channel is not None:
                send(self._channel, message)
        except BlockingIOError:
            # A launcher that does not read its socket watches nothing either.
            if self._process is not None:
                self._process.kill()
        except ClosedError:
            # Its end is read in order, after all that it still said.
            pass

    def _tell_kill(self, number: int, status: Status, reason: str) -> None:
        self._tell({"op": "kill", "id": number, "status": status.value, "reason": reason})

    async def aclose(self) -> None:
        """End every run and the launcher."""
        if self._closed:
            return
        self._closed = True
        for run in tuple(self._runs.values()):
            await run.aclose()
        process = self._process
        channel, self._channel = self._channel, None
        if channel is not None:
            self._loop.remove_reader(channel.fileno())
            # It ends everything when its socket does.
            channel.close()
        for waiting in self._starting.values():
            if not waiting.done():
                waiting.set_result(({"op": "failed", "reason": "the sandbox is closed"}, []))
        self._process = None
        if process is not None:
            await asyncio.to_thread(_end, process)


def _arguments(descriptor: int, configuration: Message) -> list[str]:
    return ["-B", "-m", "services.tools.sandbox.launcher", str(descriptor), json.dumps(configuration)]


def _environment() -> dict[str, str]:
    """Give the launcher nothing of the service's environment but what its interpreter needs to start."""
    kept = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
    return {**kept, "PYTHONPATH": _ROOT, "PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"}


def _end(process: subprocess.Popen[bytes]) -> None:
    """Reap a launcher whose socket is closed; it has a while to end everything."""
    with suppress(subprocess.TimeoutExpired):
        process.wait(_END_SECONDS)
        return
    process.kill()
    process.wait()


def _close_unused(answer: asyncio.Future[tuple[Message, list[int]]]) -> None:
    if not answer.cancelled() and answer.exception() is None:
        for descriptor in answer.result()[1]:
            os.close(descriptor)
