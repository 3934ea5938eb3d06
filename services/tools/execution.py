"""One tool call from its clearance to its end: claimed, held against the policy, run, recorded.

Nothing acts before the log has the claim, and nobody hears of an end that the log does not have.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass, replace
from typing import Final

from kala.errors import DeadlineExceededError, InvalidArgumentError, KalaError
from services.common.clearance import VerifiedClearance
from services.common.service_records import Facts
from services.tools.facts import attributes_of, facts_of
from services.tools.files.artifacts import Caps
from services.tools.files.model import Artifact, Changes
from services.tools.files.turn import Turn
from services.tools.files.workspaces import Workspaces
from services.tools.happenings import Asked, Exit, Found, Happening, Started
from services.tools.isolation import Desk
from services.tools.limits import LEAST, merged
from services.tools.places import Places
from services.tools.policy.approvals import MAX_SHOWN_BYTES, ApprovalBook, Wanted, call_digest
from services.tools.policy.model import Policy, RefusedByPolicyError
from services.tools.records import Claim, Records
from services.tools.running import Background, Ending, Printed
from services.tools.runs import NewRun, Runs
from services.tools.sandbox.model import (
    Ended,
    Isolation,
    Job,
    Limits,
    Output,
    Run,
    Sample,
    SetupFailedError,
    Status,
    Stream,
    Usage,
)
from services.tools.toolbox.calls import Toolbox
from services.tools.toolbox.model import Call, FileCall, ProgramCall

EXECUTE: Final = "/kala.tools.v1.ToolsService/Execute"


@dataclass(frozen=True, slots=True)
class _Act:
    """One execution: what was asked, what it comes to, and under which claim."""

    asked: Asked
    call: Call | RefusedByPolicyError
    limits: Limits
    claim: Claim
    run: str
    ending: Ending
    began: float


class Execution:
    """Carries out tool calls; one per process."""

    def __init__(
        self,
        *,
        desk: Desk,
        policy: Policy,
        toolbox: Toolbox,
        approvals: ApprovalBook,
        workspaces: Workspaces,
        runs: Runs,
        records: Records,
        recheck: Callable[[VerifiedClearance], None],
        max_runs: int,
        max_act_seconds: float,
        background: Background,
        observe: Callable[[str, Status], None] = lambda _tool, _status: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._desk = desk
        self._policy = policy
        self._toolbox = toolbox
        self._approvals = approvals
        self._workspaces = workspaces
        self._runs = runs
        self._records = records
        self._recheck = recheck
        self._places = Places(max_runs)
        self._max_act_seconds = max_act_seconds
        self._background = background
        self._observe = observe
        self._clock = clock

    async def run(self, asked: Asked, clearance: VerifiedClearance) -> AsyncGenerator[Happening, None]:
        """Carry out one call; the last thing it gives is an Exit, unless it raises a KalaError.

        Closing it early ends the run at once.
        """
        act = await self._begin(asked, clearance)
        end: Exit | None = None
        try:
            async with aclosing(self._carry_out(act, clearance)) as happenings:
                async for happening in happenings:
                    if isinstance(happening, Exit):
                        end = happening
                    else:
                        yield happening
        except KalaError as error:
            await self._close(act, _failed(act.run, error), Facts("error", error.reason))
            raise
        finally:
            if end is None:
                # The caller went away: what became of the run is still recorded. Closing twice does nothing.
                gone = Exit(act.run, Status.CANCELLED, "the caller went away")
                self._background.keep(self._close(act, gone, Facts("cancelled", "CLIENT_CLOSED_REQUEST")))
        if end is not None:
            await self._close(act, end, facts_of(end))
            yield end

    async def _begin(self, asked: Asked, clearance: VerifiedClearance) -> _Act:
        """Check all that can be checked without acting, then claim the clearance."""
        host = False
        if asked.workspace:
            host = bool(self._workspaces.get(asked.workspace, asked.owner).host_directory)
        call: Call | RefusedByPolicyError
        try:
            call = self._toolbox.plan(asked.tool, asked.arguments_json, host_directory=host)
        except RefusedByPolicyError as refusal:
            call = refusal
        limits = merged(asked.limits, defaults=self._policy.default_limits, maximum=self._policy.max_limits)
        if asked.files and not asked.workspace:
            raise InvalidArgumentError("files", "are files of a workspace; name it in `workspace`")
        if isinstance(call, FileCall) and not asked.workspace:
            raise InvalidArgumentError(
                "workspace", f"{asked.tool} works on a workspace's files; make one and name it"
            )
        if isinstance(call, ProgramCall):
            self._desk.require(asked.least_strength)
            if call.wall_seconds is not None:
                limits = replace(limits, wall_seconds=min(limits.wall_seconds, call.wall_seconds))
        claim = await self._records.claim(clearance, rpc=EXECUTE, tool=asked.tool)
        ending = Ending()
        new = NewRun(
            owner=asked.owner,
            tool=asked.tool,
            arguments_sha256=hashlib.sha256(asked.arguments_json.encode()).digest(),
            workspace=asked.workspace,
            decision_id=clearance.claims.decision_id,
        )
        run = self._runs.begin(new, end=ending.end)
        return _Act(asked, call, limits, claim, run, ending, self._clock())

    async def _carry_out(self, act: _Act, clearance: VerifiedClearance) -> AsyncGenerator[Happening, None]:
        if isinstance(act.call, RefusedByPolicyError):
            yield Exit(act.run, Status.REFUSED, act.call.message)
            return
        waiting = self._approval(act, act.call)
        if waiting is not None:
            yield waiting
            return
        if isinstance(act.call, FileCall):
            yield await self._operate(act, act.call)
            return
        with self._places.place(act.asked.owner):
            async with aclosing(self._program(act, act.call, clearance)) as happenings:
                async for happening in happenings:
                    yield happening

    def _approval(self, act: _Act, call: Call) -> Exit | None:
        """Spend the approval that the call brings; give the exit of one that must wait for a person."""
        asked = act.asked
        digest = call_digest(
            tool=asked.tool,
            workspace=asked.workspace,
            arguments=asked.arguments_json.encode(),
            stdin=asked.stdin,
            files=asked.files,
        )
        if asked.approval:
            self._approvals.use(asked.approval, asked.owner, digest)
            return None
        reason = self._policy.approvals.reason(call.risk, after_untrusted=asked.after_untrusted)
        if not reason:
            return None
        wanted = Wanted(
            asked.owner,
            asked.tool,
            asked.arguments_json,
            asked.workspace,
            call.risk,
            reason,
            digest,
            stdin=asked.stdin[:MAX_SHOWN_BYTES],
            stdin_bytes=len(asked.stdin),
            files=asked.files,
        )
        approval = self._approvals.request(wanted)
        return Exit(act.run, Status.APPROVAL_REQUIRED, reason, approval=approval.name)

    async def _operate(self, act: _Act, call: FileCall) -> Exit:
        """Do one operation on the workspace's files; no program runs."""
        try:
            async with self._workspaces.files(act.asked.workspace, act.asked.owner) as files:
                done = await self._toolbox.operate(call, files)
        except RefusedByPolicyError as refusal:
            return Exit(act.run, Status.REFUSED, refusal.message)
        status = Status.ERROR if done.reason else Status.OK
        return Exit(act.run, status, done.reason, result_json=done.result_json)

    async def _program(
        self, act: _Act, call: ProgramCall, clearance: VerifiedClearance
    ) -> AsyncGenerator[Happening, None]:
        asked = act.asked
        sandbox = self._desk.require(asked.least_strength)
        async with AsyncExitStack() as stack:
            turn = await self._turn(act, stack)
            # It may have waited for its turn longer than the clearance lives.
            self._recheck(clearance)
            job = Job(
                language=call.language,
                source=call.source,
                limits=replace(act.limits, wall_seconds=min(act.limits.wall_seconds, self._left(act))),
                arguments=call.arguments,
                stdin=asked.stdin,
                host_directory=None if turn is None else turn.host_directory,
            )
            try:
                run = await sandbox.start(job, None if turn is None else turn.prepare(asked.files))
            except SetupFailedError as error:
                yield Exit(act.run, Status.SETUP_FAILED, error.message, isolation=sandbox.isolation)
                return
            stack.push_async_callback(run.aclose)
            act.ending.attach(run)
            self._runs.started(act.run, run.isolation)
            yield Started(act.run, run.isolation, job.limits, asked.workspace, run.warm)
            printed, ended = Printed(), None
            async with aclosing(_closable(run)) as events:
                async for event in events:
                    match event:
                        case Output():
                            printed.add(event)
                            yield event
                        case Sample():
                            self._runs.used(act.run, event.usage)
                            yield event
                        case Ended():
                            ended = event
            if ended is None:
                ended = Ended(Status.LAUNCHER_LOST, None, None, "the run's events broke off", Usage())
            artifacts, changes = await self._gather(act, run, turn)
            for artifact in artifacts:
                yield Found(artifact)
            yield self._exit(act, call, printed, ended, artifacts, changes, run.isolation)

    async def _turn(self, act: _Act, stack: AsyncExitStack) -> Turn | None:
        """Wait for the run's turn in its workspace, at most as long as an act may take; None in a throw-away one."""
        if not act.asked.workspace:
            return None
        waiting = self._workspaces.turn(act.asked.workspace, act.asked.owner, end=act.ending.end)
        limit = asyncio.timeout(self._left(act))
        try:
            async with limit:
                return await stack.enter_async_context(waiting)
        except TimeoutError:
            if not limit.expired():
                raise
            raise DeadlineExceededError(
                f"the run's turn in {act.asked.workspace} did not come within {self._max_act_seconds:g} s",
                reason="MAX_ACT_SECONDS",
            ) from None

    def _left(self, act: _Act) -> float:
        return max(LEAST.wall_seconds, act.began + self._max_act_seconds - self._clock())

    async def _gather(self, act: _Act, run: Run, turn: Turn | None) -> tuple[tuple[Artifact, ...], Changes]:
        """Take what the run left: first its artifacts, then its changes to the workspace."""
        caps = Caps(act.limits.artifacts, act.limits.artifact_bytes)
        known = {} if turn is None else turn.known
        collected = await self._runs.collect(
            act.run, run.workspace(), patterns=act.asked.artifacts, known=known, caps=caps
        )
        changes = Changes() if turn is None else await turn.take_back(run.workspace())
        return collected.artifacts, replace(changes, skipped=(*collected.skipped, *changes.skipped))

    def _exit(
        self,
        act: _Act,
        call: ProgramCall,
        printed: Printed,
        ended: Ended,
        artifacts: tuple[Artifact, ...],
        changes: Changes,
        isolation: Isolation,
    ) -> Exit:
        result = self._toolbox.result(
            call,
            ended,
            stdout=bytes(printed.kept[Stream.STDOUT]),
            stderr=bytes(printed.kept[Stream.STDERR]),
            artifacts=artifacts,
            changes=changes,
        )
        return Exit(
            run=act.run,
            status=ended.status,
            reason=ended.reason,
            exit_code=ended.exit_code,
            signal=ended.signal,
            usage=ended.usage,
            stdout_sha256=printed.digests[Stream.STDOUT].digest(),
            stderr_sha256=printed.digests[Stream.STDERR].digest(),
            output_truncated=ended.output_truncated,
            artifacts=artifacts,
            result_json=result,
            isolation=isolation,
            files=act.asked.files,
        )

    async def _close(self, act: _Act, end: Exit, facts: Facts) -> None:
        """Note the end in the book of runs and in the log, once; raises UnavailableError when the log is away."""
        is_first = self._runs.finish(
            act.run, status=end.status, exit_code=end.exit_code, reason=end.reason, usage=end.usage
        )
        if not is_first:
            return
        self._observe(act.asked.tool, end.status)
        elapsed = self._clock() - act.began
        await self._records.ended(
            act.claim, replace(facts, duration_seconds=elapsed, attributes=attributes_of(end))
        )


async def _closable(run: Run) -> AsyncGenerator[Output | Sample | Ended, None]:
    async for event in run.events():
        yield event


def _failed(run: str, error: KalaError) -> Exit:
    return Exit(run, Status.SETUP_FAILED, error.message)
