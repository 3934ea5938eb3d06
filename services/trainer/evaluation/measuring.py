"""What ethics and tools count for a gate: every answer goes to them, and each suite comes back as one signed sum."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeVar

import grpc

from kala.common.v1 import clearance_pb2, decision_pb2
from kala.common.v1.clearance_pb2 import Principal, SealedAction
from kala.common.v1.measurement_pb2 import MeasurementContext, SignedMeasurement
from kala.errors import FailedPreconditionError, InternalError, UnavailableError
from kala.ethics.v1 import ethics_pb2
from kala.tools.v1 import code_pb2, execution_pb2, tools_pb2
from services.common.sealing import pack
from services.common.status import from_error
from services.trainer.evaluation.answers import all_code_in
from services.trainer.evaluation.counts import Row
from services.trainer.evaluation.profiles import OUTPUT_HARMFUL, TESTS_PASSED, VULNERABLE
from services.trainer.evaluation.programs import humaneval_program
from services.trainer.evaluation.suites import Item, Suite

if TYPE_CHECKING:
    from kala.ethics.v1.ethics_pb2_grpc import EthicsServiceAsyncStub
    from kala.tools.v1.tools_pb2_grpc import ToolsServiceAsyncStub

T = TypeVar("T")

EXECUTE: Final = "/kala.tools.v1.ToolsService/Execute"
CODE_EXECUTION: Final = "code_execution"
VERDICTS_AT_ONCE: Final = 16
"""ethics judges in batches; more callers would only wait in its queue."""

RUNS_AT_ONCE: Final = 2
"""Programs in the sandbox: a machine's other users run theirs beside an evaluation."""

FILES_AT_ONCE: Final = 256
"""As many as ValidateCode takes."""

CALL_SECONDS: Final = 60.0
TRIES: Final = 4
FIRST_WAIT_SECONDS: Final = 0.5
MAX_ANSWER_CHARS: Final = 262_144
"""Far more than any answer; what a broken tokenizer might write is cut."""

BLANK: Final = " "
"""In place of an empty answer, which ethics takes for no text at all."""

NOT_CLEARED: Final = "raise SystemExit('the laws speak against running this answer')\n"
"""In place of a program that ethics did not clear: it has not passed its tests."""

Told = Callable[[int], Awaitable[None]]
"""Hears how many more items are judged."""


@dataclass(frozen=True, slots=True)
class Measurers:
    """The services that count, as this trainer reaches them."""

    ethics: EthicsServiceAsyncStub | None
    tools: ToolsServiceAsyncStub | None

    def require(self, metric: str) -> None:
        """Raise FailedPreconditionError unless whoever counts this metric can be asked."""
        if metric == OUTPUT_HARMFUL and self.ethics is None:
            raise FailedPreconditionError(
                "the profile needs the counts of ethics; set KALA_TRAINER_ETHICS_ADDRESS"
            )
        if metric in {TESTS_PASSED, VULNERABLE} and self.tools is None:
            raise FailedPreconditionError(
                "the profile needs the counts of tools; set KALA_TRAINER_TOOLS_ADDRESS"
            )
        if metric == TESTS_PASSED and self.ethics is None:
            raise FailedPreconditionError(
                "running generated code needs clearances of ethics; set KALA_TRAINER_ETHICS_ADDRESS"
            )

    async def measure(
        self,
        metric: str,
        suite: Suite,
        rows: Sequence[Row],
        context: MeasurementContext,
        *,
        principal: Principal,
        told: Told,
    ) -> SignedMeasurement:
        """Have one metric counted over a whole suite; raises KalaError when a service does not answer."""
        self.require(metric)
        texts = [str(row.get("text", ""))[:MAX_ANSWER_CHARS] for row in rows]
        if metric == OUTPUT_HARMFUL:
            return await self._verdicts(suite, texts, context, told)
        if metric == VULNERABLE:
            return await self._scans(texts, context, told)
        return await self._runs(suite, texts, context, principal, told)

    async def _verdicts(
        self, suite: Suite, texts: Sequence[str], context: MeasurementContext, told: Told
    ) -> SignedMeasurement:
        ethics = self.ethics
        if ethics is None:
            raise InternalError("nobody counts")

        async def one(number: int) -> SignedMeasurement:
            request = ethics_pb2.ScoreRequest(
                text=texts[number] or BLANK,
                stage=ethics_pb2.STAGE_OUTPUT,
                request_text=suite.items[number].asked,
                measurement=_at(context, number),
                slice=suite.items[number].slice,
            )
            answer = await _patiently(lambda: ethics.Score(request, timeout=CALL_SECONDS))
            if not answer.HasField("measurement"):
                raise FailedPreconditionError("this ethics service signs no measurements; upgrade it")
            await told(1)
            return answer.measurement

        parts = await _each(one, len(texts), VERDICTS_AT_ONCE)
        request = ethics_pb2.SumMeasurementsRequest(parts=parts)
        return (await _patiently(lambda: ethics.SumMeasurements(request, timeout=CALL_SECONDS))).sum

    async def _scans(
        self, texts: Sequence[str], context: MeasurementContext, told: Told
    ) -> SignedMeasurement:
        tools = self.tools
        if tools is None:
            raise InternalError("nobody counts")
        parts = []
        for first in range(0, len(texts), FILES_AT_ONCE):
            files = [
                code_pb2.CodeFile(
                    path=f"item_{first + number}.py",
                    content=all_code_in(text),
                    language=execution_pb2.LANGUAGE_PYTHON,
                )
                for number, text in enumerate(texts[first : first + FILES_AT_ONCE])
            ]
            request = tools_pb2.ValidateCodeRequest(files=files, measurement=_at(context, first))
            # Scanning a batch takes longer than one verdict; the service has its own bound.
            call = lambda request=request: tools.ValidateCode(request, timeout=10 * CALL_SECONDS)  # noqa: E731
            parts.append((await _patiently(call)).measurement)
            await told(len(files))
        return await self._tools_sum(tools, parts)

    async def _runs(
        self,
        suite: Suite,
        texts: Sequence[str],
        context: MeasurementContext,
        principal: Principal,
        told: Told,
    ) -> SignedMeasurement:
        tools = self.tools
        if tools is None:
            raise InternalError("nobody counts")

        async def one(number: int) -> SignedMeasurement:
            program = program_of(suite.items[number], texts[number])
            at = _at(context, number)
            sealed = await self._cleared(_run_of(program, at), principal)
            if sealed is None:
                sealed = await self._cleared(_run_of(NOT_CLEARED, at), principal)
            if sealed is None:
                raise FailedPreconditionError("ethics clears no run for this evaluation")
            measured = await _run(tools, sealed)
            await told(1)
            return measured

        parts = await _each(one, len(texts), RUNS_AT_ONCE)
        return await self._tools_sum(tools, parts)

    async def _cleared(self, action: tools_pb2.ExecuteAction, principal: Principal) -> SealedAction | None:
        """Have ethics judge a run; None when the laws speak against it."""
        ethics = self.ethics
        if ethics is None:
            raise InternalError("nobody clears")
        request = ethics_pb2.CheckActionRequest(
            action=pack(action),
            audience=EXECUTE,
            principal=principal,
            purpose=clearance_pb2.PURPOSE_TRAINING,
        )
        answer = await _patiently(lambda: ethics.CheckAction(request, timeout=CALL_SECONDS))
        if answer.decision.outcome != decision_pb2.OUTCOME_ALLOW:
            return None
        return SealedAction(action=request.action, clearance=answer.clearance)

    async def _tools_sum(
        self, tools: ToolsServiceAsyncStub, parts: Sequence[SignedMeasurement]
    ) -> SignedMeasurement:
        request = tools_pb2.SumMeasurementsRequest(parts=parts)
        return (await _patiently(lambda: tools.SumMeasurements(request, timeout=CALL_SECONDS))).sum


def program_of(item: Item, answer: str) -> str:
    """The program that says with its exit status whether an answer passes its tests."""
    return humaneval_program(answer, item.code)


def _run_of(program: str, context: MeasurementContext) -> tools_pb2.ExecuteAction:
    arguments = json.dumps({"language": "python", "code": program})
    return tools_pb2.ExecuteAction(tool=CODE_EXECUTION, arguments_json=arguments, measurement=context)


async def _run(tools: ToolsServiceAsyncStub, sealed: SealedAction) -> SignedMeasurement:
    """Run once: a clearance is used up by the attempt, so a failure here ends the evaluation."""
    request = tools_pb2.ExecuteRequest(sealed=sealed)
    measured: SignedMeasurement | None = None
    try:
        async for event in tools.Execute(request, timeout=2 * CALL_SECONDS):
            if event.WhichOneof("event") == "exit" and event.exit.HasField("measurement"):
                measured = event.exit.measurement
    except grpc.RpcError as error:
        raise from_error(error) from error
    if measured is None:
        raise FailedPreconditionError("tools ran a program and signed no count of it; give it a signing key")
    return measured


async def _patiently(call: Callable[[], Awaitable[T]]) -> T:
    """Ask again a few times when a service is away for a moment."""
    wait = FIRST_WAIT_SECONDS
    for tries_left in reversed(range(TRIES)):
        try:
            return await call()
        except grpc.RpcError as error:
            found = from_error(error)
            if not (isinstance(found, UnavailableError) and tries_left):
                raise found from error
        await asyncio.sleep(wait)
        wait *= 2
    raise InternalError("not reached")


async def _each(
    one: Callable[[int], Awaitable[SignedMeasurement]], count: int, at_once: int
) -> list[SignedMeasurement]:
    """Do something for every item, a bounded number at a time, and give the results in order."""
    found: dict[int, SignedMeasurement] = {}
    numbers = iter(range(count))

    async def work() -> None:
        for number in numbers:
            found[number] = await one(number)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(min(at_once, count)):
                group.create_task(work())
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from None
    return [found[number] for number in range(count)]


def _at(context: MeasurementContext, first_item: int) -> MeasurementContext:
    placed = MeasurementContext()
    placed.CopyFrom(context)
    placed.first_item = first_item
    return placed
