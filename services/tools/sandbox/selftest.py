"""The self-test of a tier: every probe really runs in it, and what cannot be shown to hold does not hold."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from kala.errors import KalaError
from services.tools.sandbox.model import Ended, Job, Language, Output, Run, Sandbox, Status, Strength
from services.tools.sandbox.probes.bait import Bait, bait, survivors
from services.tools.sandbox.probes.cases import PROBE_LIMITS, PROBES, RUNS, TIMEOUT, Probe

# Probes at one time: enough to hide their waiting, too few to crowd a small machine.
_CONCURRENCY: Final = 3
# What a tier may take beyond a probe's wall time before it counts as hanging.
_SETUP_SECONDS: Final = 60.0
_TRIES_OF_START: Final = 3
_DETAIL_CHARACTERS: Final = 300
_INPUT: Final = "from a file"
# Interpreters by language; a language that this machine lacks is not probed.
INTERPRETERS: Final = {
    Language.PYTHON: "/usr/bin/python3",
    Language.JAVASCRIPT: "/usr/bin/node",
    Language.SHELL: "/bin/bash",
}


@dataclass(frozen=True, slots=True)
class CaseReport:
    """How one probe went."""

    id: str
    description: str
    held: bool
    # What was seen, in words.
    detail: str


@dataclass(frozen=True, slots=True)
class SelfTest:
    """How a tier did; it holds when every probe did."""

    cases: tuple[CaseReport, ...]
    # From request to result of the quickest try of an empty program; None when none came to its end.
    start_seconds: float | None = None

    @property
    def held(self) -> bool:
        """Say whether every case held; no case at all is no proof."""
        return bool(self.cases) and all(case.held for case in self.cases)

    @property
    def failures(self) -> tuple[CaseReport, ...]:
        """Give the cases that did not hold."""
        return tuple(case for case in self.cases if not case.held)


@dataclass(slots=True)
class _Seen:
    """What came out of a run."""

    output: bytes
    ended: Ended | None
    result: bytes


async def self_test(
    sandbox: Sandbox,
    *,
    host: str = "127.0.0.1",
    probes: Sequence[Probe] = PROBES,
    available: Callable[[Language], bool] = lambda language: os.access(INTERPRETERS[language], os.X_OK),
    clock: Callable[[], float] = time.monotonic,
) -> SelfTest:
    """Run every probe that says something about this tier.

    `host` is an address of this machine that a run would reach if it had a network.
    """
    asked = [
        probe
        for probe in probes
        if probe.scope.covers(sandbox.isolation.strength) and available(probe.language)
    ]
    if not asked:
        return SelfTest(())
    async with bait(host=host) as laid:
        # The honest program first: a tier in which nothing runs holds everything.
        first = await _case(sandbox, asked[0], laid)
        if not first.held:
            return SelfTest((first,))
        turns = asyncio.Semaphore(_CONCURRENCY)

        async def in_turn(probe: Probe) -> CaseReport:
            async with turns:
                return await _case(sandbox, probe, laid)

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(in_turn(probe)) for probe in asked[1:]]
        cases = (first, *(task.result() for task in tasks))
        if trouble := laid.touched():
            # Which probe it was may be known by its own words; that something got out is known for sure.
            cases = (*cases, CaseReport("bait", "reaches anything of the host", held=False, detail=trouble))
        return SelfTest(cases, await _start_seconds(sandbox, clock))


async def _case(sandbox: Sandbox, probe: Probe, laid: Bait) -> CaseReport:
    try:
        async with asyncio.timeout(_SETUP_SECONDS + probe.limits.wall_seconds):
            trouble = await _try(sandbox, probe, laid)
    except TimeoutError:
        trouble = f"it hung: no end after {_SETUP_SECONDS + probe.limits.wall_seconds:.0f} s"
    except (KalaError, OSError) as error:
        trouble = f"it did not start: {error}"
    detail = trouble[:_DETAIL_CHARACTERS] or "held"
    return CaseReport(probe.id, probe.description, held=not trouble, detail=detail)


async def _try(sandbox: Sandbox, probe: Probe, laid: Bait) -> str:
    """Say what is wrong; empty when the probe was held."""
    if probe.before:
        before = await _run(sandbox, replace(probe, statuses=frozenset({Status.OK})), laid, first=True)
        if trouble := _judge(probe, before, laid):
            return f"the run before it: {trouble}"
    seen = await _run(sandbox, probe, laid)
    if trouble := _judge(probe, seen, laid):
        return trouble
    if probe is RUNS and seen.result != _INPUT.upper().encode():
        return "the file that the program wrote did not come back"
    if probe is RUNS and b"HELD from stdin hello" not in seen.output:
        return "stdin or the arguments did not arrive"
    if probe is TIMEOUT and (left := survivors(laid.words["survivor_name"])):
        return f"a process of it outlived the run: {left}"
    return laid.touched()


def _judge(probe: Probe, seen: _Seen, laid: Bait) -> str:
    text = seen.output.decode(errors="replace")
    if laid.token.encode() in seen.output:
        return "a secret of the host came out"
    if escapes := [line for line in text.splitlines() if line.startswith("ESCAPED")]:
        return "; ".join(escapes)
    if seen.ended is None:
        return "the run's events ended without an end"
    if len(seen.output) > probe.limits.output_bytes:
        return f"{len(seen.output)} bytes of output, {probe.limits.output_bytes} are allowed"
    return _judge_end(probe, seen.ended, text)


def _judge_end(probe: Probe, ended: Ended, text: str) -> str:
    tail = text[-120:].strip()
    if ended.status not in probe.statuses:
        wanted = " or ".join(sorted(status.value for status in probe.statuses))
        return f"it ended as {ended.status.value}, not {wanted}: {ended.reason} {tail}".strip()
    if probe.exit_code is not None and ended.exit_code != probe.exit_code:
        return f"exit code {ended.exit_code}, not {probe.exit_code}"
    # A run that was ended for going over a limit may have had no time to say so.
    if "HELD" not in text and ended.status in {Status.OK, Status.ERROR}:
        return f"the program said nothing: {tail}"
    return ""


async def _run(sandbox: Sandbox, probe: Probe, laid: Bait, *, first: bool = False) -> _Seen:
    job = Job(
        language=probe.language,
        source=probe.source_before() if first else probe.source(),
        limits=probe.limits,
        arguments=(json.dumps(laid.words | _allowances(probe, sandbox.isolation.strength)),),
        stdin=probe.stdin,
    )
    run = await sandbox.start(job, _prepare if probe is RUNS else None)
    try:
        output, ended = await _drain(run)
        result = await asyncio.to_thread(_read, run.workspace()) if probe is RUNS else b""
    finally:
        await run.aclose()
    return _Seen(output, ended, result)


async def _drain(run: Run) -> tuple[bytes, Ended | None]:
    output, ended = bytearray(), None
    async for event in run.events():
        match event:
            case Output():
                output += event.data
            case Ended():
                ended = event
            case _:
                pass
    return bytes(output), ended


def _allowances(probe: Probe, strength: Strength) -> dict[str, str]:
    names = ("processes", "memory_bytes", "output_bytes", "disk_bytes", "inodes", "file_bytes")
    told = {"echo": "hello", "shared_kernel": "no" if strength is Strength.STRONG else "yes"}
    return told | {name: str(getattr(probe.limits, name)) for name in names}


def _prepare(workspace: int) -> None:
    descriptor = os.open("input.txt", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644, dir_fd=workspace)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(_INPUT)


def _read(workspace: int) -> bytes:
    try:
        descriptor = os.open("output.txt", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=workspace)
    except OSError:
        return b""
    with os.fdopen(descriptor, "rb") as file:
        return file.read(64)


async def _start_seconds(sandbox: Sandbox, clock: Callable[[], float]) -> float | None:
    times: list[float] = []
    job = Job(language=Language.PYTHON, source=b"", limits=PROBE_LIMITS)
    for _ in range(_TRIES_OF_START):
        began = clock()
        try:
            run = await sandbox.start(job)
        except (KalaError, OSError):
            return None
        try:
            _, ended = await _drain(run)
        finally:
            await run.aclose()
        if ended is not None and ended.status is Status.OK:
            times.append(clock() - began)
    return min(times, default=None)
