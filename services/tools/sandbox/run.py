"""One run as the service sees it: its output, its samples and its end."""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Final

from services.tools.sandbox.launcher.protocol import Message, usage_from_message
from services.tools.sandbox.model import (
    OUTPUT_PIECE_BYTES,
    Ended,
    Event,
    Isolation,
    Limits,
    Output,
    Prepare,
    Sample,
    Status,
    Stream,
    Usage,
)
from services.tools.sandbox.stubs import MAX_PROGRAM_BYTES

# Events that wait for a slow consumer at most; then the run's own writes wait.
_MOST_WAITING: Final = 16
_PIPE_BYTES: Final = 64 * 1024


@dataclass(slots=True)
class _Source:
    """One stream of the run."""

    stream: Stream
    descriptor: int
    offset: int = 0


class LauncherRun:
    """A run in a launcher's sandbox; keeps the `Run` protocol."""

    def __init__(
        self,
        isolation: Isolation,
        limits: Limits,
        *,
        warm: bool,
        descriptors: Sequence[int],
        begin: Callable[[], None],
        kill: Callable[[Status, str], None],
        closed: Callable[[LauncherRun], None],
        dispose: Callable[[int], None] | None = None,
    ) -> None:
        self._isolation = isolation
        self._limits = limits
        self._warm = warm
        self._stdin, stdout, stderr, self._code, self._workspace, self._first = descriptors
        self._begin = begin
        self._tell_kill = kill
        self._on_closed = closed
        self._dispose = dispose
        self._loop = asyncio.get_running_loop()
        self._born = self._loop.time()
        self._sources = {
            Stream.STDOUT: _Source(Stream.STDOUT, stdout),
            Stream.STDERR: _Source(Stream.STDERR, stderr),
        }
        self._reading = False
        self._waiting: deque[Event] = deque()
        self._wake = asyncio.Event()
        self._written = 0
        self._truncated = False
        self._ended: Ended | None = None
        self._over = asyncio.Event()
        self._went = False
        self._discard = False
        self._closed = False
        # How it is to end, when that was asked for.
        self._asked: tuple[Status, str] | None = None
        self._closing: asyncio.Task[None] | None = None

    @property
    def isolation(self) -> Isolation:
        """Where it takes place."""
        return self._isolation

    @property
    def warm(self) -> bool:
        """Whether a pre-warmed sandbox was used."""
        return self._warm

    @property
    def is_over(self) -> bool:
        """Whether no process of it lives."""
        return self._ended is not None

    @property
    def seconds(self) -> float:
        """How long it has been there."""
        return self._loop.time() - self._born

    def workspace(self) -> int:
        """Give the directory descriptor of /workspace."""
        return self._workspace

    # The beginning

    async def prepare(self, prepare: Prepare | None) -> None:
        """Let the caller fill the workspace, in a thread."""
        if prepare is not None:
            await asyncio.to_thread(prepare, self._workspace)

    def go(self, program: bytes, stdin: bytes) -> None:
        """Send the code. From here on, the launcher's clocks run."""
        self._went = True
        self._begin()
        if len(program) > _PIPE_BYTES:
            # Whole or not at all: one write.
            with suppress(OSError):
                fcntl.fcntl(self._code, fcntl.F_SETPIPE_SZ, MAX_PROGRAM_BYTES)
        self._code = self._feed(self._code, memoryview(program))
        self._stdin = self._feed(self._stdin, memoryview(stdin))
        self._read_on()

    def _feed(self, descriptor: int, data: memoryview) -> int:
        """Write what fits, close at the end; give -1, or the descriptor while more is to be written."""
        if descriptor < 0:
            return -1
        try:
            while data:
                data = data[os.write(descriptor, data) :]
        except BlockingIOError:
            self._loop.add_writer(descriptor, self._feed_again, descriptor, data)
            return descriptor
        except BrokenPipeError:
            # The run does not want it.
            pass
        os.close(descriptor)
        return -1

    def _feed_again(self, descriptor: int, data: memoryview) -> None:
        self._loop.remove_writer(descriptor)
        left = self._feed(descriptor, data)
        if descriptor == self._code:
            self._code = left
        else:
            self._stdin = left

    # Output

    def _read_on(self) -> None:
        if not self._reading and not self._closed:
            self._reading = True
            for source in self._sources.values():
                self._loop.add_reader(source.descriptor, self._read, source)

    def _pause(self) -> None:
        if self._reading:
            self._reading = False
            for source in self._sources.values():
                self._loop.remove_reader(source.descriptor)

    def _read(self, source: _Source) -> None:
        try:
            data = os.read(source.descriptor, OUTPUT_PIECE_BYTES)
        except BlockingIOError:
            return
        if not data:
            self._loop.remove_reader(source.descriptor)
            os.close(source.descriptor)
            del self._sources[source.stream]
            self._look_over()
            return
        left = self._limits.output_bytes - self._written
        self._written += len(data)
        if len(data) > left:
            data = data[: max(left, 0)]
            if not self._truncated:
                self._truncated = True
                self.end(Status.OUTPUT, f"wrote more than {self._limits.output_bytes} bytes, its limit")
        if data and not self._discard:
            self._waiting.append(Output(source.stream, data, source.offset))
            source.offset += len(data)
            self._wake.set()
            if len(self._waiting) >= _MOST_WAITING:
                self._pause()

    # The end

    def take(self, message: Message) -> None:
        """Take what the launcher says of this run."""
        usage = usage_from_message(message["usage"])
        if message["op"] == "sample":
            if len(self._waiting) < _MOST_WAITING and not self._discard:
                self._waiting.append(Sample(replace(usage, output_bytes=self._written)))
                self._wake.set()
            return
        status, reason, number = Status(message["status"]), message["reason"], message["signal"]
        if self._asked is not None and status is Status.ERROR and number == signal.SIGKILL:
            # It died of our signal before the launcher had read of it.
            status, reason = self._asked
        self._end_with(Ended(status, message["exit_code"], number, reason, usage))

    def _end_with(self, ended: Ended) -> None:
        if self._ended is None:
            self._ended = ended
            self._look_over()
            self._wake.set()

    def _look_over(self) -> None:
        if self._ended is not None and (not self._sources or not self._went):
            self._over.set()
            self._wake.set()

    def lose(self) -> None:
        """The launcher died: what it had started dies with it, and is waited for."""
        if self._ended is not None:
            return
        self._signal()
        self._loop.add_reader(self._first, self._look_lost)

    def _look_lost(self) -> None:
        self._loop.remove_reader(self._first)
        usage = Usage(wall_seconds=self.seconds)
        self._end_with(
            Ended(Status.LAUNCHER_LOST, None, int(signal.SIGKILL), "the launcher died, and all it ran", usage)
        )

    def _signal(self) -> None:
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._first, signal.SIGKILL)

    def end(self, status: Status, reason: str) -> None:
        """End every process of it with this status, unless it is over."""
        if self._ended is None:
            self._asked = self._asked or (status, reason)
            # The launcher makes sure of it and says what was used; one process less on the way to the end.
            self._tell_kill(status, reason)
            self._signal()

    async def kill(self) -> None:
        """End every process of the run, at once."""
        self.end(Status.CANCELLED, "the run was cancelled")

    async def events(self) -> AsyncIterator[Event]:
        """Yield output and samples as they come, and `Ended` at last."""
        while True:
            while self._waiting:
                yield self._waiting.popleft()
                if len(self._waiting) < _MOST_WAITING // 2:
                    self._read_on()
            if self._over.is_set() and self._ended is not None:
                usage = replace(self._ended.usage, output_bytes=self._written)
                yield self._finished(usage)
                return
            self._wake.clear()
            await self._wake.wait()

    def _finished(self, usage: Usage) -> Ended:
        ended = self._ended
        if ended is None:
            raise RuntimeError("the run is not over")
        if self._truncated and ended.status in {Status.OK, Status.ERROR}:
            # It ended by itself before it could be ended for it.
            reason = f"wrote more than {self._limits.output_bytes} bytes, its limit"
            ended = replace(ended, status=Status.OUTPUT, reason=reason)
        return replace(ended, usage=usage, output_truncated=self._truncated)

    async def aclose(self) -> None:
        """End the run if it lasts, and free its workspace and descriptors."""
        if self._closing is None:
            self._closing = self._loop.create_task(self._close())
        # A caller that is cancelled meanwhile leaves nothing behind.
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        self._discard = True
        self._waiting.clear()
        if self._ended is None:
            self.end(Status.CANCELLED, "the run was cancelled")
        self._read_on()
        while not self._over.is_set():
            self._wake.clear()
            self._look_over()
            if not self._over.is_set():
                await self._wake.wait()
        await self._free()

    async def _free(self) -> None:
        if self._closed:
            return
        self._closed = True
        if self._dispose is not None:
            # What cannot be deleted now is when the tier is opened again.
            with suppress(OSError):
                await asyncio.to_thread(self._dispose, self._workspace)
        self._pause()
        for source in self._sources.values():
            os.close(source.descriptor)
        self._sources.clear()
        for descriptor in (self._stdin, self._code):
            if descriptor >= 0:
                self._loop.remove_writer(descriptor)
                os.close(descriptor)
        self._stdin = self._code = -1
        os.close(self._workspace)
        os.close(self._first)
        self._workspace = self._first = -1
        self._on_closed(self)
