"""One evaluation from its candidate's answers to its record in the log.

Whatever breaks on the way makes the outcome ERROR, which counts as failed and is logged like any other; only a log that
is away and a cancellation leave no result.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog
from google.protobuf.timestamp_pb2 import Timestamp

from kala.common.v1.clearance_pb2 import Principal
from kala.common.v1.gate_pb2 import GATE_OUTCOME_PASSED, GateEvidence, GateOutcome, GateResult
from kala.common.v1.measurement_pb2 import (
    MEASURED_MODEL_ADAPTER,
    MEASURED_MODEL_BASE,
    Measurement,
    MeasurementContext,
)
from kala.common.v1.reference_pb2 import ContentReference
from kala.errors import InternalError, KalaError
from kala.trainer.v1.registry_pb2 import EvaluateAdapterMetadata, Evaluation
from services.common.gates import LEAF_TYPE, MAX_RESULT_BYTES
from services.common.service_records import Facts
from services.trainer.evaluation.counts import METRICS, Row, count, read_answers
from services.trainer.evaluation.measuring import Measurers
from services.trainer.evaluation.profiles import OUTPUT_HARMFUL, Gate, SuiteRun
from services.trainer.evaluation.result import (
    ADAPTER,
    BASE,
    About,
    Found,
    answer,
    failed,
    record_gate,
    reference_of,
    result_of,
)
from services.trainer.records import Claim, Records

MODELS: Final = {ADAPTER: MEASURED_MODEL_ADAPTER, BASE: MEASURED_MODEL_BASE}
ANSWERS: Final = "answers"

log: Final = structlog.get_logger()

Answering = Callable[[Callable[[EvaluateAdapterMetadata], Awaitable[None]]], Awaitable[Path]]
"""Has the candidate answer, telling how far it is, and gives the folder in which the answers are."""
Show = Callable[[EvaluateAdapterMetadata], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Subject:
    """What is evaluated, for whom."""

    about: About
    adapter: str
    """ "adapters/<name>@<version>"."""
    gate: Gate
    claim: Claim
    principal: Principal


class Evaluator:
    """Counts, has counted, and logs what it came to."""

    def __init__(
        self, measurers: Measurers, records: Records, *, clock: Callable[[], float] = time.time
    ) -> None:
        self._measurers = measurers
        self._records = records
        self._clock = clock

    def require(self, gate: Gate) -> None:
        """Raise FailedPreconditionError when nobody can count something that the profile asks for."""
        for run in gate.runs:
            for metric, _ in run.signed:
                self._measurers.require(metric)

    async def run(self, subject: Subject, answering: Answering, show: Show) -> Evaluation:
        """Evaluate; raises UnavailableError when the log is away, and then there is no result."""
        started = _timestamp(self._clock())
        # What the clearance was given under; counts that ethics made under others are refused.
        found = Found(constitution_digest=subject.claim.claims.constitution_digest)
        progress = _Progress(subject, show)
        problem = ""
        try:
            folder = await answering(progress.generating)
            await self._count(subject, folder, found, progress)
        except KalaError as error:
            problem = f"{error.reason}: {error.message}"
        except Exception as error:
            log.exception("evaluation_broke", evaluation=subject.about.evaluation)
            problem = f"a bug in the evaluation ({type(error).__name__}); the trainer's log says more"
        result = result_of(
            subject.about,
            found,
            started_at=started,
            finished_at=_timestamp(self._clock()),
            error=problem,
        )
        return await self._recorded(subject, result)

    async def _count(self, subject: Subject, folder: Path, found: Found, progress: _Progress) -> None:
        for run in subject.gate.runs:
            await progress.begin(run.suite.name)
            models = (ADAPTER, BASE) if run.needs_base else (ADAPTER,)
            rows: dict[str, Sequence[Row]] = {}
            for model in models:
                path = folder / ANSWERS / model / f"{run.suite.name}.jsonl"
                rows[model] = await asyncio.to_thread(read_answers, path, run.suite)
                found.reports.append(await asyncio.to_thread(_reference, subject.about, model, path))
            await self._count_own(run, rows, found)
            await self._have_counted(subject, run, rows, found, progress)
            progress.failed(subject.gate, found)
        await progress.begin("")

    async def _count_own(self, run: SuiteRun, rows: dict[str, Sequence[Row]], found: Found) -> None:
        if not METRICS[run.suite.kind]:
            return
        for model, own in rows.items():
            base = rows.get(BASE) if model == ADAPTER else None
            found.counts[model, run.suite.name] = await asyncio.to_thread(count, run.suite, own, base)

    async def _have_counted(
        self,
        subject: Subject,
        run: SuiteRun,
        rows: dict[str, Sequence[Row]],
        found: Found,
        progress: _Progress,
    ) -> None:
        for metric, compared in run.signed:
            for model in (ADAPTER, BASE) if compared else (ADAPTER,):
                signed = await self._measurers.measure(
                    metric,
                    run.suite,
                    rows[model],
                    _context(subject.about, run, model),
                    principal=subject.principal,
                    told=progress.judged,
                )
                if metric == OUTPUT_HARMFUL:
                    _require_same_laws(signed.claims, found.constitution_digest)
                found.add(model, run.suite.name, metric, signed)

    async def _recorded(self, subject: Subject, result: GateResult) -> Evaluation:
        data = result.SerializeToString(deterministic=True)
        if len(data) > MAX_RESULT_BYTES:
            raise InternalError(f"the result has {len(data)} bytes; at most {MAX_RESULT_BYTES} can be proved")
        outcome = GateOutcome.Name(result.outcome).removeprefix("GATE_OUTCOME_").lower()
        seconds = (result.finished_at.ToNanoseconds() - result.started_at.ToNanoseconds()) / 1e9
        appended = await self._records.event(
            LEAF_TYPE,
            Facts(
                "ok" if result.outcome == GATE_OUTCOME_PASSED else "error",
                "" if result.outcome == GATE_OUTCOME_PASSED else f"GATE_{outcome.upper()}",
                seconds,
                attributes={
                    "evaluation": result.evaluation,
                    "adapter": subject.adapter,
                    "outcome": outcome,
                    "failed": ", ".join(failed(result.metrics)),
                },
                references=[reference_of(result, data)],
            ),
            claim=subject.claim,
            gate=record_gate(result),
        )
        return Evaluation(
            name=result.evaluation,
            adapter=subject.adapter,
            profile=result.profile,
            outcome=result.outcome,
            evidence=GateEvidence(result=data, proof=appended.receipt or ""),
            result=result,
            receipt=appended.receipt_id,
            decision_id=subject.claim.claims.decision_id,
            started_at=result.started_at,
            finished_at=result.finished_at,
        )


class _Progress:
    """How far an evaluation is: the first half is answering, the second judging."""

    def __init__(self, subject: Subject, show: Show) -> None:
        self._metadata = EvaluateAdapterMetadata(
            evaluation=subject.about.evaluation, total_items=subject.gate.items + _judged_items(subject.gate)
        )
        self._show = show

    async def generating(self, told: EvaluateAdapterMetadata) -> None:
        self._metadata.suite, self._metadata.items = told.suite, told.items
        await self._show(self._metadata)

    async def begin(self, suite: str) -> None:
        self._metadata.suite = suite
        if not suite:
            self._metadata.items = self._metadata.total_items
        await self._show(self._metadata)

    async def judged(self, items: int) -> None:
        self._metadata.items = min(self._metadata.items + items, self._metadata.total_items)
        await self._show(self._metadata)

    def failed(self, gate: Gate, found: Found) -> None:
        """Name what has already failed."""
        answered = [answer(asked, found) for asked in gate.profile.content.requirements]
        del self._metadata.failed[:]
        self._metadata.failed.extend(failed([metric for metric in answered if metric is not None]))


def _judged_items(gate: Gate) -> int:
    return sum(
        len(run.suite.items) * (2 if compared else 1) for run in gate.runs for _, compared in run.signed
    )


def _context(about: About, run: SuiteRun, model: str) -> MeasurementContext:
    return MeasurementContext(
        evaluation=about.evaluation,
        adapter_digest=about.adapter_digest,
        base_digest=about.base_digest,
        gate_set_digest=about.profile.digest,
        suite=run.suite.name,
        suite_digest=run.suite.digest,
        suite_items=len(run.suite.items),
        model=MODELS[model],
    )


def _require_same_laws(claims: bytes, in_force: bytes) -> None:
    counted_under = Measurement.FromString(claims).constitution_digest
    if counted_under != in_force:
        raise InternalError(
            f"the laws changed since this evaluation was cleared: it was judged by {counted_under.hex()[:16]}, cleared "
            f"under {in_force.hex()[:16]}; evaluate again",
            reason="LAWS_CHANGED",
        )


def _reference(about: About, model: str, path: Path) -> ContentReference:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").digest()
        size = file.tell()
    return ContentReference(name=f"{about.evaluation}/answers/{model}/{path.name}", sha256=digest, bytes=size)


def _timestamp(seconds: float) -> Timestamp:
    stamp = Timestamp()
    stamp.FromNanoseconds(round(seconds * 1_000_000_000))
    return stamp
