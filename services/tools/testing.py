"""Runs given tests beside given code in the sandbox; the command is judged as the shell's are."""

from __future__ import annotations

import asyncio
import hashlib
import shlex
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Final

from kala.errors import InvalidArgumentError
from services.tools.code.model import MAX_FILE_BYTES, SourceFile
from services.tools.files.copying import place
from services.tools.files.model import Owner
from services.tools.files.paths import require_path
from services.tools.isolation import Desk
from services.tools.limits import LEAST, AskedLimits, merged
from services.tools.policy.model import CommandRule, Policy, RefusedByPolicyError, Risk
from services.tools.policy.shell.judge import ShellPolicy
from services.tools.policy.zones import Zones
from services.tools.running import Ending
from services.tools.runs import NewRun, Runs
from services.tools.sandbox.model import (
    Ended,
    Isolation,
    Job,
    Language,
    Limits,
    Output,
    Run,
    SetupFailedError,
    Status,
    Stream,
    Usage,
)
from services.tools.toolbox.definitions import CODE_EXECUTION

TOOL: Final = "code_tests"
"""How the book of runs names a run of tests, which is no tool of a model's."""

MAX_TEST_FILES: Final = 64
MAX_COMMAND: Final = 64
MAX_TESTS_BYTES: Final = 2 * MAX_FILE_BYTES
TAIL_BYTES: Final = 16 * 1024
AT_ONCE: Final = 2
"""Each may use the policy's memory, beside the runs of tools."""

# What the policy lets run anyway where `code_execution` may be called: any code of these, in the same sandbox.
_INTERPRETERS: Final = ("python3", "node", "bash")


@dataclass(frozen=True, slots=True)
class TestsAsked:
    """Tests as their caller sent them."""

    files: tuple[SourceFile, ...]
    command: tuple[str, ...]
    limits: AskedLimits = field(default_factory=AskedLimits)


@dataclass(frozen=True, slots=True)
class Tests:
    """Tests that may run: what bash is given for them, and within what."""

    files: tuple[SourceFile, ...]
    script: str
    limits: Limits
    # Why they may not run; "" where they may.
    refusal: str = ""


@dataclass(frozen=True, slots=True)
class TestReport:
    """How tests came out."""

    status: Status
    exit_code: int | None = None
    stdout_tail: bytes = b""
    stderr_tail: bytes = b""
    isolation: Isolation | None = None
    run: str = ""
    usage: Usage = field(default_factory=Usage)

    @property
    def passed(self) -> bool:
        """Whether the program ended by itself and well."""
        return self.status is Status.OK and self.exit_code == 0


@dataclass(frozen=True, slots=True)
class OnBehalf:
    """For whom tests run, under which decision."""

    owner: Owner
    decision_id: str


class Testing:
    """Runs tests; one per process."""

    def __init__(self, *, desk: Desk, policy: Policy, runs: Runs) -> None:
        self._desk = desk
        self._policy = policy
        self._runs = runs
        self._places = asyncio.Semaphore(AT_ONCE)
        rules = list(policy.commands)
        if CODE_EXECUTION in policy.tools:
            listed = {rule.program for rule in rules}
            rules += [CommandRule(name, Risk.MEDIUM) for name in _INTERPRETERS if name not in listed]
        self._shell = ShellPolicy(rules, Zones(policy.zones))

    def admit(self, asked: TestsAsked, code: Sequence[SourceFile]) -> Tests:
        """Check tests before anything happens; what the policy refuses is a report, anything else InvalidArgumentError."""
        _require_files(asked.files, code)
        if not 1 <= len(asked.command) <= MAX_COMMAND:
            raise InvalidArgumentError("tests.command", f"must have 1 to {MAX_COMMAND} entries")
        limits = merged(
            asked.limits,
            defaults=self._policy.default_limits,
            maximum=self._policy.max_limits,
            field="tests.limits",
        )
        self._desk.require()
        try:
            judged = self._shell.judge(shlex.join(asked.command))
        except RefusedByPolicyError as refused:
            return Tests(asked.files, "", limits, refused.message)
        waits = self._policy.approvals.reason(judged.risk, after_untrusted=False)
        return Tests(asked.files, judged.script, limits, waits)

    async def run(
        self, tests: Tests, code: Sequence[SourceFile], behalf: OnBehalf, *, most_seconds: float
    ) -> TestReport:
        """Run them once beside this code, in a sandbox of their own that nothing is kept of."""
        if tests.refusal:
            return TestReport(Status.REFUSED, stderr_tail=tests.refusal.encode()[:TAIL_BYTES])
        ending = Ending()
        new = NewRun(
            owner=behalf.owner,
            tool=TOOL,
            arguments_sha256=hashlib.sha256(tests.script.encode()).digest(),
            decision_id=behalf.decision_id,
        )
        async with self._places:
            name = self._runs.begin(new, end=ending.end)
            report = TestReport(Status.CANCELLED, run=name)
            try:
                report = await self._sandboxed(tests, code, name, ending, most_seconds)
            finally:
                self._runs.finish(name, status=report.status, exit_code=report.exit_code, usage=report.usage)
        return report

    async def _sandboxed(
        self, tests: Tests, code: Sequence[SourceFile], name: str, ending: Ending, most_seconds: float
    ) -> TestReport:
        sandbox = self._desk.require()
        files = [(file.path, file.content.encode("utf-8", "surrogatepass")) for file in (*code, *tests.files)]
        wall = max(LEAST.wall_seconds, min(tests.limits.wall_seconds, most_seconds))
        job = Job(Language.SHELL, tests.script.encode(), replace(tests.limits, wall_seconds=wall))
        async with AsyncExitStack() as stack:
            try:
                run = await sandbox.start(job, partial(place, files=files))
            except SetupFailedError as error:
                return TestReport(
                    Status.SETUP_FAILED,
                    stderr_tail=error.message.encode()[:TAIL_BYTES],
                    isolation=sandbox.isolation,
                    run=name,
                )
            stack.push_async_callback(run.aclose)
            ending.attach(run)
            self._runs.started(name, run.isolation)
            return await _watched(run, name)


async def _watched(run: Run, name: str) -> TestReport:
    tails = {stream: bytearray() for stream in Stream}
    ended = Ended(Status.LAUNCHER_LOST, None, None, "the run's events broke off", Usage())
    async for event in run.events():
        match event:
            case Output():
                tail = tails[event.stream]
                tail += event.data
                del tail[:-TAIL_BYTES]
            case Ended():
                ended = event
            case _:
                pass
    return TestReport(
        ended.status,
        ended.exit_code,
        bytes(tails[Stream.STDOUT]),
        bytes(tails[Stream.STDERR]),
        run.isolation,
        name,
        ended.usage,
    )


def _require_files(files: Sequence[SourceFile], code: Sequence[SourceFile]) -> None:
    if len(files) > MAX_TEST_FILES:
        raise InvalidArgumentError("tests.files", f"must have at most {MAX_TEST_FILES} entries")
    seen = {file.path for file in code}
    total = 0
    for file in code:
        require_path("files", file.path)
    for index, file in enumerate(files):
        require_path(f"tests.files[{index}].path", file.path)
        if file.path in seen:
            raise InvalidArgumentError(
                f"tests.files[{index}].path", f"{file.path[:80]!r} is there already; give each file once"
            )
        seen.add(file.path)
        total += len(file.content.encode("utf-8", "surrogatepass"))
    if total > MAX_TESTS_BYTES:
        raise InvalidArgumentError(
            "tests.files", f"have {total} bytes together; the limit is {MAX_TESTS_BYTES}"
        )
