"""Starts the parts together, starts again what crashes, and stops them in order.

It must run on the main thread: on Linux a child dies with the thread that started it (prctl(2), PR_SET_PDEATHSIG).
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from kala.errors import FailedPreconditionError, KalaError
from kala.suite.layout import StateLayout
from kala.suite.logfiles import last_lines, open_log, size_of
from kala.suite.processes import ProcessId
from kala.suite.readiness import Probe, wait_until_ready
from kala.suite.record import Condition, PartRecord, Phase
from kala.suite.restarts import MAX_CRASHES, GaveUp, Refused, Restart, next_step

STOP_ORDER: Final = ("gateway", "trainer", "tools", "inference", "ethics", "audit")
"""Whoever asks stops before whoever answers, so that no running request loses the record of its outcome."""

START_SECONDS: Final = 60.0
"""The embedded model on a loaded machine needs about 20 s."""

STOP_GRACE_SECONDS: Final = 15.0
"""A part drains for 10 s at most, and closes its stores after that."""

MAX_CRASHES_AT_START: Final = 3
"""A person is waiting: a part that never came up is reported instead of retried for minutes."""

_DEAD: Final = (Condition.REFUSED, Condition.GAVE_UP)


class StartFailedError(FailedPreconditionError):
    """A part did not come up; the message holds its last words."""

    default_reason = "START_FAILED"


@dataclass(frozen=True, slots=True)
class Part:
    """One process to run."""

    name: str
    module: str
    environment: Mapping[str, str]
    """The whole environment of the process."""
    probe: Probe
    prelude: tuple[str, ...] = ()
    """Module and arguments of a short program that must succeed once before the first start; empty for none."""
    metrics_url: str | None = None
    is_optional: bool = False
    """Whether the suite comes up without it."""
    python: tuple[str, ...] = (sys.executable,)
    """The interpreter with its flags."""
    user: int | None = None
    """User and group that it runs as; None for ours."""
    folder: Path | None = None
    """Working directory; None for ours."""


@dataclass(slots=True)
class _Kept:
    """What the supervisor knows of one part while it keeps it running."""

    part: Part
    record: PartRecord
    process: asyncio.subprocess.Process | None = None
    log_offset: int = 0
    was_ready: bool = False
    prelude_done: bool = False


@dataclass(frozen=True, slots=True)
class Limits:
    """How long the supervisor is patient."""

    start_seconds: float = START_SECONDS
    stop_grace_seconds: float = STOP_GRACE_SECONDS


DEFAULT_LIMITS: Final = Limits()

Journal = Callable[[Phase, Mapping[str, PartRecord]], None]
"""Told of every change, so that `suite.json` is always true."""


@dataclass(slots=True)
class Supervisor:
    """Keeps a set of parts running until told to stop."""

    layout: StateLayout
    parts: Sequence[Part]
    journal: Journal
    say: Callable[[str], None]
    limits: Limits = DEFAULT_LIMITS
    clock: Callable[[], float] = time.monotonic
    _kept: dict[str, _Kept] = field(default_factory=dict)
    _phase: Phase = Phase.STARTING
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self, stop: asyncio.Event, on_ready: Callable[[], Awaitable[None]]) -> None:
        """Bring all parts up, tell `on_ready`, and keep them up until `stop`; raises StartFailedError."""
        self._kept = {
            part.name: _Kept(part, PartRecord(None, Condition.STARTING, metrics_url=part.metrics_url))
            for part in self.parts
        }
        self._enter(Phase.STARTING)
        keepers = [asyncio.create_task(self._keep(kept)) for kept in self._kept.values()]
        try:
            if await self._came_up(stop):
                self._enter(Phase.READY)
                await on_ready()
                await stop.wait()
        finally:
            self._enter(Phase.STOPPING)
            await self._stop_parts()
            for keeper in keepers:
                keeper.cancel()
            await asyncio.gather(*keepers, return_exceptions=True)

    async def _came_up(self, stop: asyncio.Event) -> bool:
        """Wait until every part is ready; False when told to stop before that."""
        stopping = asyncio.create_task(stop.wait())
        starting = asyncio.create_task(self._all_ready())
        try:
            async with asyncio.timeout(self.limits.start_seconds):
                await asyncio.wait((stopping, starting), return_when=asyncio.FIRST_COMPLETED)
            if stop.is_set():
                return False
            starting.result()
        except TimeoutError:
            # The one that others wait for is the one to blame.
            order = sorted(self._kept.values(), key=lambda kept: -_stop_rank(kept.part.name))
            late = [kept for kept in order if not _is_settled(kept)]
            slow = next((kept for kept in late if not kept.part.is_optional), None)
            words = f"was not ready after {self.limits.start_seconds:.0f} s"
            if slow is not None:
                raise self._failure(slow, words) from None
            for kept in late:
                self.say(f"{kept.part.name} {words}; the suite goes on without it until it is")
        finally:
            stopping.cancel()
            starting.cancel()
            await asyncio.gather(stopping, starting, return_exceptions=True)
        return True

    async def _all_ready(self) -> None:
        while not all(_is_settled(kept) for kept in self._kept.values()):
            for kept in self._kept.values():
                if kept.record.condition in _DEAD and not kept.part.is_optional:
                    raise self._failure(kept, "did not start")
            self._changed.clear()
            await self._changed.wait()

    async def _keep(self, kept: _Kept) -> None:
        """Run one part again and again until it refuses, crashes too often, or the suite stops."""
        crashes = 0
        while True:
            started = self.clock()
            code = await self._run_prelude(kept) or await self._run_once(kept)
            if self._is_stopping():
                return
            step = next_step(
                exit_code=code,
                ran_seconds=self.clock() - started,
                earlier_crashes=crashes,
                max_crashes=MAX_CRASHES if kept.was_ready else MAX_CRASHES_AT_START,
            )
            match step:
                case Refused():
                    self._end(kept, Condition.REFUSED, "refuses to run as configured")
                    return
                case GaveUp():
                    self._end(kept, Condition.GAVE_UP, "crashed too often and is left stopped")
                    return
                case Restart(delay_seconds, crashes):
                    self._set(
                        kept,
                        replace(
                            kept.record,
                            process=None,
                            condition=Condition.RESTARTING,
                            restarts=kept.record.restarts + 1,
                        ),
                    )
                    self.say(
                        f"{kept.part.name} ended ({_cause(code)}); starting it again in {delay_seconds:.1f} s"
                    )
                    await asyncio.sleep(delay_seconds)
            if self._is_stopping():
                return

    async def _run_once(self, kept: _Kept) -> int:
        """Start the part, announce it when it answers, and wait for its end; returns its exit code."""
        if self._is_stopping():
            return 0
        process = await self._spawn(kept, kept.part.module)
        self._set(kept, replace(kept.record, process=ProcessId.of(process.pid)))
        announcing = asyncio.create_task(self._announce(kept))
        try:
            return await process.wait()
        finally:
            announcing.cancel()
            await asyncio.gather(announcing, return_exceptions=True)

    async def _run_prelude(self, kept: _Kept) -> int:
        """Run the part's prelude, if it has one; returns its exit code, 0 for success."""
        kept.log_offset = size_of(self.layout.log_file(kept.part.name))
        if not kept.part.prelude or kept.prelude_done:
            return 0
        code = await (await self._spawn(kept, *kept.part.prelude)).wait()
        kept.prelude_done = code == 0
        return code

    async def _spawn(self, kept: _Kept, *module_and_arguments: str) -> asyncio.subprocess.Process:
        with open_log(self.layout.log_file(kept.part.name)) as log:
            part = kept.part
            kept.process = await asyncio.create_subprocess_exec(
                *part.python,
                "-m",
                "kala.suite.child",
                str(os.getpid()),
                *module_and_arguments,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=dict(part.environment),
                cwd=part.folder,
                # A Ctrl-C in the terminal must reach the supervisor only, which stops the parts in order.
                start_new_session=True,
                **_identity(part.user),
            )
        if self._is_stopping():
            # Told to stop while this one was being started: nobody else will end it any more.
            kept.process.terminate()
        return kept.process

    async def _announce(self, kept: _Kept) -> None:
        await wait_until_ready(kept.part.probe)
        kept.was_ready = True
        self._set(kept, replace(kept.record, condition=Condition.READY))

    def _is_stopping(self) -> bool:
        return self._phase is Phase.STOPPING

    async def _stop_parts(self) -> None:
        for name in sorted(self._kept, key=_stop_rank):
            await self._stop_part(self._kept[name])

    async def _stop_part(self, kept: _Kept) -> None:
        process = kept.process
        if process is not None and process.returncode is None:
            process.send_signal(signal.SIGTERM)
            try:
                async with asyncio.timeout(self.limits.stop_grace_seconds):
                    await process.wait()
            except TimeoutError:
                self.say(
                    f"{kept.part.name} did not stop within {self.limits.stop_grace_seconds:.0f} s; killing it"
                )
                process.kill()
                await process.wait()
        if kept.record.condition not in _DEAD:
            self._set(kept, replace(kept.record, process=None, condition=Condition.STOPPED))

    def _end(self, kept: _Kept, condition: Condition, what: str) -> None:
        failure = self._failure(kept, what).message
        self._set(kept, replace(kept.record, process=None, condition=condition, problem=failure))
        if self._phase is Phase.READY or kept.part.is_optional:
            self.say(failure)

    def _failure(self, kept: _Kept, what: str) -> KalaError:
        path = self.layout.log_file(kept.part.name)
        lines = last_lines(path, since=kept.log_offset) or ["(it wrote nothing)"]
        return StartFailedError("\n  ".join([f"{kept.part.name} {what}; its last words ({path}):", *lines]))

    def _set(self, kept: _Kept, record: PartRecord) -> None:
        kept.record = record
        self._changed.set()
        self.journal(self._phase, {name: each.record for name, each in self._kept.items()})

    def _enter(self, phase: Phase) -> None:
        self._phase = phase
        self.journal(phase, {name: each.record for name, each in self._kept.items()})


def _is_settled(kept: _Kept) -> bool:
    condition = kept.record.condition
    return condition is Condition.READY or (kept.part.is_optional and condition in _DEAD)


def _identity(user: int | None) -> dict[str, Any]:  # Any: keywords of several types
    """Give the keywords of a process of another user; none of our groups go with it."""
    return {} if user is None else {"user": user, "group": user, "extra_groups": []}


def _stop_rank(name: str) -> int:
    return STOP_ORDER.index(name) if name in STOP_ORDER else len(STOP_ORDER)


def _cause(code: int) -> str:
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
