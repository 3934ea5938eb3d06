"""PullModel: runs the process that pulls, tells its progress, and stops it when the caller goes away."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Final

from kala.common.v1.reference_pb2 import ContentReference
from kala.errors import (
    InternalError,
    InvalidArgumentError,
    NotFoundError,
    ResourceExhaustedError,
    UnavailableError,
    UnimplementedError,
)
from kala.inference.v1 import inference_pb2 as pb
from kala.offline_pull import ENDING_SECONDS, command_of, read_line
from services.common.processes import gone
from services.inference.backend import Backend, BackendFailure, Blame
from services.inference.config import InferenceSettings
from services.inference.pull.plan import parse_source
from services.inference.pull.progress import Pulled, Puller

MAX_SOURCE_CHARS: Final = 256
MAX_PULLS: Final = 2
"""At once: a disk and a line are full with one already."""

MAX_LINE_BYTES: Final = 1024 * 1024


def flags_of(settings: InferenceSettings) -> tuple[str, ...]:
    """Give the flags that make the process pull as this one is set; the token it reads itself."""
    return (
        f"--models-dir={settings.models_dir.expanduser().absolute()}",
        f"--hub-url={settings.hub_url}",
        f"--max-pull-gigabytes={settings.max_pull_gigabytes}",
    )


@dataclass(slots=True)
class Pulling:
    """Pulls of one process."""

    flags: tuple[str, ...] = ()
    """Settings of the process that pulls; what they do not name it reads as this one did."""
    _running: int = field(default=0)

    async def pull(
        self, request: pb.PullModelRequest, backend: Backend | None
    ) -> AsyncGenerator[pb.PullModelResponse]:
        """Give the messages of PullModel; `backend` is the one that shall get the model, None means the models directory."""
        if len(request.source) > MAX_SOURCE_CHARS:
            raise InvalidArgumentError("source", f"must be at most {MAX_SOURCE_CHARS} characters")
        if self._running >= MAX_PULLS:
            raise ResourceExhaustedError(f"{MAX_PULLS} models are being pulled; wait for one of them")
        steps = self._steps(request, backend)
        self._running += 1
        try:
            async with aclosing(steps):
                async for step in steps:
                    yield pb.PullModelResponse(
                        file=step.file,
                        received_bytes=step.received_bytes,
                        total_bytes=step.total_bytes,
                        files=step.files,
                    )
        finally:
            self._running -= 1

    def _steps(self, request: pb.PullModelRequest, backend: Backend | None) -> AsyncGenerator[Pulled]:
        if backend is None:
            parse_source(request.source, request.revision)  # before a process is started for nothing
            return self._in_a_process(request.source, request.revision)
        if not isinstance(backend, Puller):
            raise UnimplementedError(
                f"{backend.identity.name} cannot be told to get a model; pull it without a backend, or with the "
                "server's own command"
            )
        if not request.source:
            raise InvalidArgumentError("source", "must name a model as the server's library does")
        if request.revision:
            raise InvalidArgumentError(
                "revision", "is for pulls without a backend; put a tag into the source"
            )
        return _in_words(backend.identity.name, backend.pull(request.source))

    async def _in_a_process(self, source: str, revision: str) -> AsyncGenerator[Pulled]:
        command = command_of(source, revision=revision)
        command[-2:-2] = self.flags
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            limit=MAX_LINE_BYTES,
        )
        last: Pulled | None = None
        try:
            while process.stdout is not None and (line := await process.stdout.readline()):
                last = _pulled(line, last)
                yield last
        finally:
            await _end(process)
        if last is None or not last.files:
            raise InternalError(f"the process that pulls ended with status {process.returncode}")


async def _in_words(name: str, steps: AsyncGenerator[Pulled]) -> AsyncGenerator[Pulled]:
    try:
        async with aclosing(steps):
            async for step in steps:
                yield step
    except BackendFailure as failure:
        told = f": {failure.told}" if failure.told else ""
        problem = f"{name} {failure.detail}{told}"
        if failure.reason == "MODEL_NOT_FOUND":
            raise NotFoundError(f"{name} finds no such model{told}") from failure
        if failure.blame is Blame.CALLER:
            raise InvalidArgumentError("source", problem, reason=failure.reason) from failure
        raise UnavailableError(problem, reason=failure.reason) from failure


def _pulled(line: bytes, before: Pulled | None) -> Pulled:
    message = read_line(line)
    if "files" not in message:
        return Pulled(str(message["file"]), int(message["received_bytes"]), int(message["total_bytes"]))
    files = tuple(
        ContentReference(name=file["name"], sha256=bytes.fromhex(file["sha256"]), bytes=file["bytes"])
        for file in message["files"]
    )
    total = sum(file.bytes for file in files)
    return Pulled("" if before is None else before.file, total, total, files)


async def _end(process: asyncio.subprocess.Process) -> None:
    """Let it end, or make it; it removes the half of a file itself."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
    try:
        async with asyncio.timeout(ENDING_SECONDS):
            await gone(process)
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await gone(process)
