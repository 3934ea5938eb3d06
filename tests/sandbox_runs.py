"""Runs code in a real sandbox, as a user without rights, and says what came of it."""

from __future__ import annotations

import asyncio
import ctypes
import os
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from services.tools.sandbox.bubblewrap.tier import open_bubblewrap
from services.tools.sandbox.client import LauncherSandbox, LauncherSettings
from services.tools.sandbox.model import (
    Ended,
    Job,
    Language,
    Limits,
    Output,
    Prepare,
    Run,
    Sample,
    Stream,
)
from services.tools.sandbox.run import LauncherRun
from tests.tools_runtime import UNPRIVILEGED_UID, unprivileged_directory, unprivileged_python

MIB = 1024 * 1024
LIMITS = Limits(
    wall_seconds=60,
    cpu_seconds=30,
    memory_bytes=512 * MIB,
    processes=32,
    open_files=256,
    disk_bytes=64 * MIB,
    inodes=10_000,
    file_bytes=64 * MIB,
    output_bytes=MIB,
    artifacts=10,
    artifact_bytes=MIB,
)
needs_bubblewrap = pytest.mark.skipif(
    shutil.which("bwrap") is None, reason="bubblewrap is not installed: apt-get install bubblewrap"
)


@dataclass(frozen=True, slots=True)
class Result:
    """Everything that one run said."""

    stdout: str
    stderr: str
    ended: Ended
    warm: bool
    samples: int


def job(language: Language, source: str, **changes: Any) -> Job:
    """A job with the test's limits; keywords of Limits change those, others the job."""
    limits = {name: changes.pop(name) for name in tuple(changes) if name in Limits.__dataclass_fields__}
    return Job(language, source.encode(), replace(LIMITS, **limits), **changes)


async def finish(run: Run) -> Result:
    """Read a run to its end and close it."""
    text = {Stream.STDOUT: b"", Stream.STDERR: b""}
    samples = 0
    ended: Ended | None = None
    async for event in run.events():
        if isinstance(event, Output):
            assert event.offset == len(text[event.stream])
            text[event.stream] += event.data
        elif isinstance(event, Sample):
            samples += 1
        else:
            assert ended is None
            ended = event
    assert ended is not None
    await run.aclose()
    out, error = (text[stream].decode("utf-8", "replace") for stream in (Stream.STDOUT, Stream.STDERR))
    return Result(out, error, ended, run.warm, samples)


async def execute(
    sandbox: LauncherSandbox, language: Language, source: str, prepare: Prepare | None = None, **changes: Any
) -> Result:
    """Run a program to its end."""
    return await finish(await sandbox.start(job(language, source, **changes), prepare))


def as_owner(prepare: Prepare) -> Prepare:
    """Let `prepare` make files as the user of the sandbox, where tests are root; of this thread only: setfsuid(2)."""

    def prepared(workspace: int) -> None:
        libc = ctypes.CDLL(None)
        uid, gid = (UNPRIVILEGED_UID, UNPRIVILEGED_UID) if os.geteuid() == 0 else (os.geteuid(), os.getegid())
        libc.setfsgid(gid)
        libc.setfsuid(uid)
        try:
            prepare(workspace)
        finally:
            libc.setfsuid(os.geteuid())
            libc.setfsgid(os.getegid())

    return prepared


class OwnedSandbox(LauncherSandbox):
    """A sandbox whose files are prepared by its user."""

    async def start(self, job: Job, prepare: Prepare | None = None) -> LauncherRun:
        return await super().start(job, None if prepare is None else as_owner(prepare))


@asynccontextmanager
async def bubblewrap(
    pool: dict[Language, int] | None = None, **settings: Any
) -> AsyncIterator[LauncherSandbox]:
    """The bubblewrap tier with a launcher of its own."""
    with unprivileged_directory() as directory:
        directory.chmod(0o755)
        sandbox = await open_bubblewrap(
            LauncherSettings(
                Path(directory),
                pool=pool or {},
                pool_disk_bytes=LIMITS.disk_bytes,
                python=tuple(unprivileged_python()),
                **settings,
            ),
            kind=OwnedSandbox,
        )
        try:
            yield sandbox
        finally:
            await sandbox.aclose()


async def until(condition: Callable[[], bool]) -> None:
    """Wait for something that another process does; the test's own time limit is the bound."""
    while not condition():  # noqa: ASYNC110 - no event tells of another process's state
        await asyncio.sleep(0.005)


def alive(word: str) -> bool:
    """Whether a process of this machine has the word in its command line."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if word.encode() in (entry / "cmdline").read_bytes().split(b"\0"):
                    return True
            except OSError:
                continue
    return False


def descendants_of(pid: int | None) -> set[int]:
    """Every process that it started, and theirs."""
    found: set[int] = set()
    parents = [pid]
    while parents:
        parent = parents.pop()
        try:
            text = Path(f"/proc/{parent}/task/{parent}/children").read_text()
        except OSError:
            continue
        children = [int(child) for child in text.split()]
        found.update(children)
        parents.extend(children)
    return found


def runs(pid: int) -> bool:
    """Whether it is there and no zombie."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def program_of(pid: int) -> str:
    """Its program's name; empty when it is gone."""
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def held_by(launcher: int | None) -> tuple[dict[str, int], int]:
    """What this process and a launcher hold: descriptors, processes and mounts, and the launcher's own bytes of memory."""
    proc = Path(f"/proc/{launcher}")
    counts = {
        "own descriptors": len(list(Path("/proc/self/fd").iterdir())),
        "launcher's descriptors": len(list((proc / "fd").iterdir())),
        "processes": len(descendants_of(launcher)),
        "mounts": len((proc / "mounts").read_text().splitlines()),
    }
    lines = (proc / "status").read_text().splitlines()
    return counts, next(int(line.split()[1]) for line in lines if line.startswith("RssAnon:")) * 1024
