"""GenerateCode from its clearance to its end: a model writes, then the code is scanned, repaired, tested, recorded."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import grpc

from kala.common.v1.clearance_pb2 import ClearanceClaims, Principal, SealedAction
from kala.errors import FailedPreconditionError, InvalidArgumentError, KalaError, UnavailableError
from kala.inference.v1 import inference_pb2
from services.common.clearance import VerifiedClearance
from services.common.sealing import type_url_of
from services.common.service_records import Facts
from services.common.status import from_error
from services.tools.answers import code_of, default_path
from services.tools.code.model import MAX_FILE_BYTES, ScanOptions, SourceFile
from services.tools.files.model import Owner
from services.tools.files.paths import require_path
from services.tools.records import Records
from services.tools.repairing import Outcome, RepairAsked, Repairing, attributes_of
from services.tools.running import Background
from services.tools.sandbox.model import Language
from services.tools.testing import Testing, Tests, TestsAsked

if TYPE_CHECKING:
    from kala.inference.v1.inference_pb2_grpc import InferenceServiceAsyncStub

GENERATE_CODE: Final = "/kala.tools.v1.ToolsService/GenerateCode"
TOOL: Final = "generate_code"
"""How records name the call, which is no tool of a model's."""

MAX_TASK_CHARS: Final = 65_536
MAX_FRAMEWORKS: Final = 32
MAX_REASONS: Final = 32
_CHAT: Final = inference_pb2.ChatAction.DESCRIPTOR.full_name


@dataclass(frozen=True, slots=True)
class GenerateAsked:
    """One piece of code as its caller asked for it."""

    owner: Owner
    task: str
    language: Language
    generation: SealedAction
    path: str = ""
    frameworks: tuple[str, ...] = ()
    options: ScanOptions = field(default_factory=ScanOptions)
    is_repairing: bool = False
    tests: TestsAsked | None = None


@dataclass(frozen=True, slots=True)
class Generated:
    """The code and what was done with it."""

    code: SourceFile | None
    outcome: Outcome | None
    reasons: tuple[str, ...]
    model: str
    generation_id: str


@dataclass(slots=True)
class _Answer:
    text: str = ""
    model: str = ""
    is_cut: bool = False


class Generating:
    """Has code written on behalf of cleared callers; one per process."""

    def __init__(
        self,
        *,
        inference: InferenceServiceAsyncStub | None,
        repairing: Repairing,
        testing: Testing,
        records: Records,
        background: Background,
        max_act_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._inference = inference
        self._repairing = repairing
        self._testing = testing
        self._records = records
        self._background = background
        self._max_act_seconds = max_act_seconds
        self._clock = clock

    async def generate(self, asked: GenerateAsked, clearance: VerifiedClearance) -> Generated:
        """Write, scan, repair and test; raises before anything is claimed for what is out of limits."""
        if self._inference is None:
            raise FailedPreconditionError(
                "this tools service knows no inference; set KALA_TOOLS_INFERENCE_ADDRESS",
                reason="INFERENCE_NOT_DEPLOYED",
            )
        _require(asked, clearance.claims.principal)
        path = asked.path or default_path(asked.language)
        require_path("path", path)
        tests = None
        if asked.tests is not None:
            tests = self._testing.admit(asked.tests, [SourceFile(path, "")])
        claim = await self._records.claim(clearance, rpc=GENERATE_CODE, tool=TOOL)
        began = self._clock()
        try:
            done = await self._generate(
                asked, path, tests, clearance.claims.decision_id, began + self._max_act_seconds
            )
        except KalaError as error:
            await self._records.ended(claim, Facts("error", error.reason, self._clock() - began))
            raise
        except asyncio.CancelledError:
            facts = Facts("cancelled", "CLIENT_CLOSED_REQUEST", self._clock() - began)
            self._background.keep(self._records.ended(claim, facts))
            raise
        await self._records.ended(claim, _facts_of(done, self._clock() - began))
        return done

    async def _generate(
        self, asked: GenerateAsked, path: str, tests: Tests | None, decision_id: str, until: float
    ) -> Generated:
        answer = await self._answered(asked.generation, until)
        generation_id = _claims_of(asked.generation).decision_id[:128]
        code = code_of(answer.text, asked.language)
        cut = ("the model's answer was cut at its limit",) if answer.is_cut else ()
        if code is None or len(code.encode("utf-8", "surrogatepass")) > MAX_FILE_BYTES:
            reason = (
                "the model's answer holds no code"
                if code is None
                else "the code is larger than a file may be"
            )
            return Generated(None, None, (reason, *cut), answer.model, generation_id)
        file = SourceFile(path, code)
        repair = RepairAsked(asked.owner, (file,), options=asked.options)
        outcome = await self._repairing.prove(
            repair, tests, decision_id, until=until, is_repairing=asked.is_repairing
        )
        return Generated(file, outcome, (*cut, *reasons_against(outcome)), answer.model, generation_id)

    async def _answered(self, sealed: SealedAction, until: float) -> _Answer:
        if self._inference is None:
            raise FailedPreconditionError("this tools service knows no inference")
        answer, is_whole = _Answer(), False
        pieces: list[str] = []
        size = 0
        call = self._inference.Chat(
            inference_pb2.ChatRequest(sealed=sealed), timeout=max(0.001, until - self._clock())
        )
        try:
            async for response in call:
                if response.HasField("route"):
                    answer.model = response.route.model
                size += len(response.delta.text)
                if size <= MAX_FILE_BYTES * 2:
                    pieces.append(response.delta.text)
                if response.HasField("finish"):
                    is_whole = True
                    answer.is_cut = response.finish.reason == inference_pb2.FINISH_REASON_LENGTH
        except grpc.RpcError as error:
            raise from_error(error) from error
        finally:
            call.cancel()
        if not is_whole:
            raise UnavailableError("the model's answer broke off; try again", reason="GENERATION_BROKE_OFF")
        answer.text = "".join(pieces)
        return answer


def reasons_against(outcome: Outcome) -> tuple[str, ...]:
    """Say what stands against accepting code; empty when nothing does."""
    reasons = [
        f"{finding.rule} in {finding.span.path}, line {finding.span.region.start_line}: {finding.title}"
        for finding in outcome.after.findings[:MAX_REASONS]
    ]
    more = len(outcome.after.findings) - MAX_REASONS
    if more > 0:
        reasons.append(f"and {more} more findings")
    reasons += [
        f"{problem.path} could not be scanned: {problem.message}" for problem in outcome.after.problems
    ]
    tests = outcome.tests_after
    if tests is not None and not tests.passed:
        how = tests.status.value if tests.exit_code is None else f"exit code {tests.exit_code}"
        reasons.append(f"the tests did not pass ({how})")
    return tuple(reasons)


def _require(asked: GenerateAsked, principal: Principal) -> None:
    if not 1 <= len(asked.task) <= MAX_TASK_CHARS:
        raise InvalidArgumentError("task", f"must have 1 to {MAX_TASK_CHARS} characters")
    if len(asked.frameworks) > MAX_FRAMEWORKS:
        raise InvalidArgumentError("frameworks", f"must have at most {MAX_FRAMEWORKS} entries")
    if asked.generation.action.type_url != type_url_of(_CHAT):
        raise InvalidArgumentError("generation", f"must be a cleared {_CHAT}, which the gateway adds")
    if _claims_of(asked.generation).principal != principal:
        raise InvalidArgumentError("generation", "was cleared for somebody else")


def _claims_of(sealed: SealedAction) -> ClearanceClaims:
    """What the clearance says; inference verifies it before it acts."""
    try:
        return ClearanceClaims.FromString(sealed.clearance.claims)
    except ValueError:
        raise InvalidArgumentError("generation", "has a clearance that cannot be read") from None


def _facts_of(done: Generated, seconds: float) -> Facts:
    said = {"code.model": done.model, "code.generation": done.generation_id}
    said["code.accepted"] = "false" if done.reasons else "true"
    if done.outcome is None:
        return Facts("ok", "NO_CODE", seconds, said)
    return Facts("ok", "", seconds, said | attributes_of(done.outcome), done.outcome.digests)
