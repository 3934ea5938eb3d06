"""From counts to a gate's result: each requirement answered by its numbers, in the profile's order. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from google.protobuf.timestamp_pb2 import Timestamp

from kala.audit.v1 import audit_pb2
from kala.common.v1.gate_pb2 import (
    GATE_OUTCOME_ERROR,
    GATE_OUTCOME_FAILED,
    GATE_OUTCOME_PASSED,
    GateMetric,
    GateRequirement,
    GateResult,
)
from kala.common.v1.measurement_pb2 import MEASURER_TRAINER, Measurement, SignedMeasurement
from kala.common.v1.reference_pb2 import ContentReference
from services.common.gate_profile import COMPARED_WITH_BASE, SCHEMA, Profile, holds
from services.common.gates import EVALUATION_PREFIX, REFERENCE_PREFIX
from services.trainer.evaluation.counts import Count, Counts

ADAPTER: Final = "adapter"
BASE: Final = "base"
MAX_ERROR_CHARS: Final = 1_024


@dataclass(frozen=True, slots=True)
class About:
    """What an evaluation is about."""

    evaluation: str
    """ "evaluations/<32 hex>"."""
    adapter_digest: bytes
    base_digest: bytes
    profile: Profile
    evaluator: str


@dataclass(slots=True)
class Found:
    """What has been counted so far."""

    counts: dict[tuple[str, str], Counts] = field(default_factory=dict)
    """The trainer's own, by (model, suite)."""
    measurements: list[SignedMeasurement] = field(default_factory=list)
    places: dict[tuple[str, str, str], int] = field(default_factory=dict)
    """Positions in `measurements` by (model, suite, metric)."""
    constitution_digest: bytes = b""
    reports: list[ContentReference] = field(default_factory=list)

    def add(self, model: str, suite: str, metric: str, signed: SignedMeasurement) -> None:
        """Take a signed sum."""
        self.places[model, suite, metric] = len(self.measurements)
        self.measurements.append(signed)

    def signed(self, model: str, asked: GateRequirement) -> tuple[int, Count] | None:
        """The position of the measurement that counted this, and what it counted."""
        place = self.places.get((model, asked.suite, asked.metric))
        if place is None:
            return None
        claims = Measurement.FromString(self.measurements[place].claims)
        for item in claims.counts:
            if (item.metric, item.slice) == (asked.metric, asked.slice):
                return place, Count(item.hits, item.total)
        return None


def answer(asked: GateRequirement, found: Found) -> GateMetric | None:
    """One requirement with its numbers; None when it was not reached."""
    metric = GateMetric(
        metric=asked.metric,
        slice=asked.slice,
        suite=asked.suite,
        comparison=asked.comparison,
        threshold_micros=asked.threshold_micros,
    )
    if asked.measured_by == MEASURER_TRAINER:
        own = _counted(ADAPTER, asked, found)
    else:
        place = found.signed(ADAPTER, asked)
        if place is not None:
            metric.measurement = place[0]
        own = None if place is None else place[1]
    if own is None:
        return None
    metric.hits, metric.total, metric.value_micros = own.hits, own.total, own.value_micros
    if asked.comparison in COMPARED_WITH_BASE and not _add_base(metric, asked, found):
        return None
    metric.passed = holds(metric) and metric.total >= asked.min_total
    return metric


def result_of(
    about: About, found: Found, *, started_at: Timestamp, finished_at: Timestamp, error: str = ""
) -> GateResult:
    """The result: passed when every requirement is answered and holds, broken when there is an error."""
    answered = [answer(asked, found) for asked in about.profile.content.requirements]
    metrics = [metric for metric in answered if metric is not None]
    if not error and len(metrics) < len(answered):
        missing = about.profile.content.requirements[answered.index(None)]
        error = f"nothing was counted for {missing.metric}/{missing.slice or 'all'} of {missing.suite}"
    passed = all(metric.passed for metric in metrics)
    outcome = GATE_OUTCOME_PASSED if passed else GATE_OUTCOME_FAILED
    return GateResult(
        schema=SCHEMA,
        evaluation=about.evaluation,
        adapter_digest=about.adapter_digest,
        base_digest=about.base_digest,
        profile=about.profile.content.name,
        gate_set_digest=about.profile.digest,
        constitution_digest=found.constitution_digest,
        outcome=GATE_OUTCOME_ERROR if error else outcome,
        metrics=metrics,
        measurements=found.measurements,
        reports=found.reports,
        evaluator=about.evaluator,
        error=error[:MAX_ERROR_CHARS],
        started_at=started_at,
        finished_at=finished_at,
    )


def record_gate(result: GateResult) -> audit_pb2.RecordGate:
    """What the leaf says of a result."""
    return audit_pb2.RecordGate(
        profile=result.profile,
        passed=result.outcome == GATE_OUTCOME_PASSED,
        adapter_digest=result.adapter_digest,
        base_digest=result.base_digest,
        gate_set_digest=result.gate_set_digest,
        constitution_digest=result.constitution_digest,
        measurements=result.measurements,
    )


def reference_of(result: GateResult, data: bytes) -> ContentReference:
    """How the leaf names the exact bytes of a result."""
    return ContentReference(
        name=REFERENCE_PREFIX + result.evaluation.removeprefix(EVALUATION_PREFIX),
        sha256=hashlib.sha256(data).digest(),
        bytes=len(data),
    )


def failed(metrics: Sequence[GateMetric]) -> list[str]:
    """Requirements that do not hold, as "metric/slice"."""
    return [f"{each.metric}/{each.slice or 'all'}" for each in metrics if not each.passed]


def _counted(model: str, asked: GateRequirement, found: Found) -> Count | None:
    counts = found.counts.get((model, asked.suite))
    return None if counts is None else counts.get(asked.metric, asked.slice)


def _add_base(metric: GateMetric, asked: GateRequirement, found: Found) -> bool:
    if asked.measured_by == MEASURER_TRAINER:
        base = _counted(BASE, asked, found)
    else:
        place = found.signed(BASE, asked)
        if place is not None:
            metric.base_measurement = place[0]
        base = None if place is None else place[1]
    if base is None:
        return False
    metric.base_hits, metric.base_total, metric.base_value_micros = base.hits, base.total, base.value_micros
    return True
