"""A sandbox without isolation: it plays the answers that a test gives it and counts what it was asked to run."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

from services.tools.sandbox.model import (
    Ended,
    Event,
    Isolation,
    Job,
    Output,
    Prepare,
    Run,
    Status,
    Stream,
    Strength,
    Tier,
    Usage,
)


@dataclass(frozen=True)
class Answer:
    """What a run of the scripted sandbox does."""

    stdout: bytes = b"HELD\n"
    status: Status = Status.OK
    exit_code: int | None = 0
    # Written into the workspace, by name.
    files: tuple[tuple[str, bytes], ...] = ()
    # Whether it never ends by itself.
    hangs: bool = False
    # Called when the program would run.
    act: Callable[[Job], None] | None = None


Script = Callable[[Job], Answer]


class ScriptedRun:
    """A run that plays one answer."""

    def __init__(self, isolation: Isolation, job: Job, answer: Answer, prepare: Prepare | None) -> None:
        self._isolation, self._answer = isolation, answer
        self._directory = tempfile.mkdtemp(prefix="kala-scripted-")
        self._descriptor = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY)
        self._killed = asyncio.Event()
        if prepare is not None:
            prepare(self._descriptor)
        if answer.act is not None:
            answer.act(job)
        for name, content in answer.files:
            with open(os.path.join(self._directory, name), "wb") as file:  # noqa: PTH118, PTH123
                file.write(content)

    @property
    def isolation(self) -> Isolation:
        return self._isolation

    @property
    def warm(self) -> bool:
        return False

    async def events(self) -> AsyncIterator[Event]:
        if self._answer.stdout:
            yield Output(Stream.STDOUT, self._answer.stdout, 0)
        if self._answer.hangs:
            await self._killed.wait()
        status = Status.CANCELLED if self._killed.is_set() else self._answer.status
        yield Ended(status, self._answer.exit_code, None, "", Usage(output_bytes=len(self._answer.stdout)))

    async def kill(self) -> None:
        self._killed.set()

    def workspace(self) -> int:
        return self._descriptor

    async def aclose(self) -> None:
        self._killed.set()
        with contextlib.suppress(OSError):
            os.close(self._descriptor)
        shutil.rmtree(self._directory, ignore_errors=True)


def holds(job: Job) -> Answer:
    """Answer every probe as a tier does that holds it."""
    words: dict[str, str] = json.loads(job.arguments[0]) if job.arguments else {}
    program = job.source.rsplit(b"run(", 1)[-1].decode(errors="replace")
    if "'runs'" in program:
        stdout = b"HELD " + job.stdin + words["echo"].encode() + b"\n"
        return Answer(stdout, Status.ERROR, 7, files=(("output.txt", b"FROM A FILE"),))
    for name, status in (
        ("'cpu_time'", Status.CPU),
        ("'timeout'", Status.TIMEOUT),
        ("'output'", Status.OUTPUT),
    ):
        if name in program:
            return Answer(status=status, exit_code=None)
    return Answer()


@dataclass
class ScriptedSandbox:
    """A tier that answers by a script."""

    script: Script = holds
    tier: Tier = Tier.BUBBLEWRAP
    strength: Strength = Strength.STANDARD
    jobs: list[Job] = field(default_factory=list)
    closed: int = 0

    @property
    def isolation(self) -> Isolation:
        return Isolation(self.tier, self.strength, "scripted 1", ("scripted",))

    async def start(self, job: Job, prepare: Prepare | None = None) -> Run:
        self.jobs.append(job)
        return ScriptedRun(self.isolation, job, self.script(job), prepare)

    async def aclose(self) -> None:
        self.closed += 1
