"""One run in a pod: reads its log, believes no size in it, and frees everything at the end."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final

from kala.errors import KalaError, UnavailableError
from services.tools.sandbox.kubernetes import files
from services.tools.sandbox.kubernetes.api import KubernetesApi
from services.tools.sandbox.kubernetes.frames import Frame, FrameReader, Kind
from services.tools.sandbox.kubernetes.manifest import Json
from services.tools.sandbox.model import (
    OUTPUT_PIECE_BYTES,
    Ended,
    Event,
    Isolation,
    Job,
    Output,
    Sample,
    Status,
    Stream,
    Usage,
)

# Above this a workspace stays in its pod: logs are rotated at 10 MiB.
RESULT_BYTES: Final = 4 * 1024 * 1024
# What a log may hold beyond output and files, in base64: usage lines and the end.
_LOG_SLACK_BYTES: Final = 1024 * 1024
# How long after its wall time the runner may take to write its end.
_END_SECONDS: Final = 30.0
_LOG_TRIES: Final = 3


class KubernetesRun:
    """A run whose pod runs."""

    def __init__(
        self, api: KubernetesApi, isolation: Isolation, job: Job, *, name: str, pod: str, folder: Path
    ) -> None:
        self._api, self._isolation, self._job = api, isolation, job
        self._name, self._pod, self._folder = name, pod, folder
        self._workspace = os.open(folder / "out", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._stack = AsyncExitStack()
        self._killed = False
        self._began = time.monotonic()
        self._offsets = dict.fromkeys(Stream, 0)
        self._packed = bytearray()

    def keep(self, stack: AsyncExitStack) -> None:
        """Take over what must be freed at the end."""
        self._stack = stack

    @property
    def isolation(self) -> Isolation:
        return self._isolation

    @property
    def warm(self) -> bool:
        return False

    def workspace(self) -> int:
        return self._workspace

    async def kill(self) -> None:
        """Delete the pod at once; nodes take their own time for it."""
        self._killed = True
        await self._api.delete(self._name, self._pod)

    async def aclose(self) -> None:
        self._killed = True
        if self._workspace >= 0:
            os.close(self._workspace)
            self._workspace = -1
        await self._stack.aclose()

    async def events(self) -> AsyncIterator[Event]:
        """Read the pod's log to its end."""
        limits, end = self._job.limits, None
        deadline = self._began + limits.wall_seconds + _END_SECONDS
        reader, frames = FrameReader(), None
        try:
            frames = self._frames(reader, deadline)
            async for frame in frames:
                if frame.kind is Kind.END:
                    end = _parsed(frame.data)
                    break
                for event in self._told(frame):
                    yield event
                if self._written > limits.output_bytes:
                    # The runner should have ended it; it is not believed.
                    await self.kill()
                    end = {
                        "status": Status.OUTPUT.value,
                        "reason": "it wrote more than is allowed",
                        "truncated": True,
                    }
                    break
        except TimeoutError:
            await self.kill()
            end = {"status": Status.TIMEOUT.value, "reason": "no end came in its time"}
        finally:
            if frames is not None:
                await frames.aclose()
        yield await self._ended(end, reader.noise)

    @property
    def _written(self) -> int:
        return sum(self._offsets.values())

    async def _frames(self, reader: FrameReader, deadline: float) -> AsyncGenerator[Frame, None]:
        limit = 2 * (self._job.limits.output_bytes + RESULT_BYTES) + _LOG_SLACK_BYTES
        seen = 0
        for attempt in range(_LOG_TRIES):
            skip = seen
            try:
                async with self._api.log(self._pod, limit) as pieces:
                    iterator = aiter(pieces)
                    while True:
                        async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
                            piece = await anext(iterator, None)
                        if piece is None:
                            return
                        # A log that is followed anew begins at its beginning.
                        fresh, skip = piece[skip:], max(0, skip - len(piece))
                        seen += len(fresh)
                        for frame in reader.feed(fresh):
                            yield frame
            except UnavailableError:
                if attempt == _LOG_TRIES - 1 or self._killed:
                    return
            except KalaError:
                return

    def _told(self, frame: Frame) -> list[Event]:
        if frame.kind is Kind.FILES:
            if len(self._packed) + len(frame.data) <= RESULT_BYTES:
                self._packed += frame.data
            return []
        if frame.kind is Kind.USAGE:
            return [Sample(_usage(_parsed(frame.data), self._written))]
        stream = Stream.STDOUT if frame.kind is Kind.STDOUT else Stream.STDERR
        told: list[Event] = []
        room = max(0, self._job.limits.output_bytes - self._written)
        for offset in range(0, min(room, len(frame.data)), OUTPUT_PIECE_BYTES):
            piece = frame.data[:room][offset : offset + OUTPUT_PIECE_BYTES]
            told.append(Output(stream, piece, self._offsets[stream] + offset))
        self._offsets[stream] += len(frame.data)
        return told

    async def _ended(self, end: Json | None, noise: str) -> Ended:
        usage = Usage(wall_seconds=time.monotonic() - self._began, output_bytes=self._written)
        if end is None:
            status, reason = await self._fate(noise)
            return Ended(status, None, None, reason, usage)
        usage = _usage(end.get("usage"), self._written) if isinstance(end.get("usage"), dict) else usage
        try:
            status = Status(str(end.get("status")))
        except ValueError:
            return Ended(Status.LAUNCHER_LOST, None, None, "the runner ended with words of its own", usage)
        reason = str(end.get("reason") or "")[:400]
        if trouble := await self._take_files(complete=end.get("files_complete") is not False):
            # What ended it already says more than that its files were lost.
            by_itself = status in {Status.OK, Status.ERROR}
            status, reason = (Status.DISK if by_itself else status), f"{reason} {trouble}".strip()
        return Ended(
            status,
            _whole(end.get("exit_code")),
            _whole(end.get("signal")),
            reason,
            usage,
            output_truncated=end.get("truncated") is True,
        )

    async def _take_files(self, *, complete: bool) -> str:
        """Lay out the workspace that came back; gives what is wrong with it, in words."""
        if not complete:
            return f"its workspace is more than the {RESULT_BYTES:,} bytes that a pod can give back"
        try:
            await asyncio.to_thread(files.unpack, bytes(self._packed), self._folder / "out", self._job.limits)
        except files.UnpackError as error:
            return str(error)
        return ""

    async def _fate(self, noise: str) -> tuple[Status, str]:
        """Say what became of a pod whose log has no end."""
        if self._killed:
            return Status.CANCELLED, "it was ended by the caller"
        try:
            pods = await self._api.pods(self._name)
        except KalaError as error:
            return Status.LAUNCHER_LOST, f"the cluster lost it: {error}"
        for pod in pods:
            status = pod.get("status", {})
            if status.get("reason") == "DeadlineExceeded":
                return Status.TIMEOUT, "the Job's deadline ended it"
            if status.get("reason") == "Evicted":
                return Status.DISK, str(status.get("message", "the node evicted it"))[:400]
            for container in status.get("containerStatuses") or ():
                ended = container.get("state", {}).get("terminated") or {}
                if ended.get("reason") == "OOMKilled":
                    return Status.MEMORY, "the kernel ended it for memory"
        return Status.LAUNCHER_LOST, f"the pod ended without a result: {noise}"[:400]


def _parsed(data: bytes) -> Json:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _usage(told: object, output_bytes: int) -> Usage:
    said = told if isinstance(told, dict) else {}
    return Usage(
        wall_seconds=_number(said.get("wall_seconds")) or 0.0,
        cpu_seconds=_number(said.get("cpu_seconds")),
        peak_memory_bytes=_whole(said.get("peak_memory_bytes")),
        peak_processes=_whole(said.get("peak_processes")),
        disk_bytes=_whole(said.get("disk_bytes")),
        inodes=_whole(said.get("inodes")),
        output_bytes=output_bytes,
    )


def _number(value: object) -> float | None:
    ok = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e12  # noqa: PLR2004 - no run lasts so long
    return float(value) if ok and isinstance(value, int | float) else None


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**62 else None
