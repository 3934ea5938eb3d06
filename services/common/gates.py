"""Evaluation gates: whether a result is what its profile asks, proved by the log and by signed measurements.

Nothing that a gate result says about itself is believed: every comparison is computed again from counts, and counts
of ethics and tools are taken from what they signed.
"""

from __future__ import annotations

import hashlib
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from kala.audit.note import Verifier
from kala.audit.receipt import VerifiedReceipt, verify_receipt
from kala.common.v1.gate_pb2 import (
    GATE_OUTCOME_PASSED,
    GateEvidence,
    GateMetric,
    GateOutcome,
    GateRequirement,
    GateResult,
)
from kala.common.v1.measurement_pb2 import (
    MEASURED_MODEL_ADAPTER,
    MEASURED_MODEL_BASE,
    MEASURER_ETHICS,
    MEASURER_TRAINER,
    MeasuredModel,
    Measurer,
)
from kala.errors import VerificationError
from services.common.gate_profile import COMPARED_WITH_BASE, MAX_REQUIREMENTS, SCHEMA, Profile, holds
from services.common.measurements import VerifiedMeasurement, verify_measurement
from services.common.signatures import PublicKeys
from services.common.strict_parsing import parse_signed, require_digest, require_same, require_schema

LEAF_TYPE: Final = "gate.result"
REFERENCE_PREFIX: Final = "gate_results/"
EVALUATION_PREFIX: Final = "evaluations/"
MAX_RESULT_BYTES: Final = 1 << 20
MAX_MEASUREMENTS: Final = 64


@dataclass(frozen=True, slots=True)
class GateSubject:
    """What a gate result must be about, and who must have recorded it."""

    adapter_digest: bytes
    base_digest: bytes
    issuer: str


@dataclass(frozen=True, slots=True)
class GateTrust:
    """The public keys behind a gate result: of the log, and of the services that measure."""

    log: Sequence[Verifier]
    measurers: Mapping[Measurer.ValueType, PublicKeys]


@dataclass(frozen=True, slots=True)
class VerifiedGate:
    """A passed gate: its result, its signed measurements and its place in the log."""

    result: GateResult
    measurements: tuple[VerifiedMeasurement, ...]
    receipt: VerifiedReceipt


def verify_gate(what: str, evidence: GateEvidence, subject: GateSubject, trust: GateTrust) -> VerifiedGate:
    """Returns a gate that passed and is in the log, or raises VerificationError that begins with `what`.

    It does not say whether the gate's profile is one that the caller accepts: see `require_profile`.
    """
    result = parse_signed(f"{what}.result", evidence.result, GateResult, max_bytes=MAX_RESULT_BYTES)
    _require_sound(f"{what}.result", result, subject)
    receipt = _receipt(f"{what}.proof", evidence.proof, trust.log)
    _require_leaf(f"{what}.proof", receipt.leaf.value, evidence.result, result, subject)
    measurements = tuple(
        verify_measurement(f"{what}.measurements[{index}]", signed, trust.measurers)
        for index, signed in enumerate(result.measurements)
    )
    for index, measurement in enumerate(measurements):
        _require_bound(f"{what}.measurements[{index}]", measurement, result)
    for index, metric in enumerate(result.metrics):
        _require_metric(f"{what}.metrics[{index}]", metric, measurements)
    return VerifiedGate(result, measurements, receipt)


def require_profile(what: str, gate: VerifiedGate, profile: Profile) -> None:
    """Raises VerificationError unless the gate answers every requirement of the profile, in order, as it was asked."""
    requirements = profile.content.requirements
    require_same(f"{what}: gate set digest", gate.result.gate_set_digest, profile.digest)
    if gate.result.profile != profile.content.name or len(gate.result.metrics) != len(requirements):
        raise VerificationError(
            f"{what}: does not answer the profile {profile.content.name!r} metric by metric"
        )
    for index, (asked, metric) in enumerate(zip(requirements, gate.result.metrics, strict=True)):
        _require_answer(f"{what}.metrics[{index}]", asked, metric, gate.measurements)


def _require_sound(what: str, result: GateResult, subject: GateSubject) -> None:
    require_schema(what, result.schema, SCHEMA)
    require_same(f"{what}: adapter digest", result.adapter_digest, subject.adapter_digest)
    require_same(f"{what}: base digest", result.base_digest, subject.base_digest)
    require_digest(f"{what}: gate set digest", result.gate_set_digest)
    require_digest(f"{what}: constitution digest", result.constitution_digest)
    if result.outcome != GATE_OUTCOME_PASSED:
        raise VerificationError(f"{what}: the gate came out as {GateOutcome.Name(result.outcome)}")
    if (
        not result.metrics
        or len(result.metrics) > MAX_REQUIREMENTS
        or len(result.measurements) > MAX_MEASUREMENTS
    ):
        raise VerificationError(
            f"{what}: has no metrics, or more metrics or measurements than a profile can ask for"
        )


def _receipt(what: str, proof: str, log: Sequence[Verifier]) -> VerifiedReceipt:
    try:
        return verify_receipt(proof, log)
    except VerificationError as error:
        raise VerificationError(f"{what}: {error.message}") from error


def _require_leaf(
    what: str, leaf: Mapping[str, Any], data: bytes, result: GateResult, subject: GateSubject
) -> None:
    # `Any`: parsed JSON, whose shape `kala.audit.leaf` has checked.
    gate = leaf["gate"]
    if leaf["type"] != LEAF_TYPE or gate is None or not gate["passed"]:
        raise VerificationError(f"{what}: its leaf is no passed gate")
    if leaf["recorded_by"] != subject.issuer:
        raise VerificationError(f"{what}: was recorded by {leaf['recorded_by']}, not by {subject.issuer}")
    for name in ("adapter_digest", "base_digest", "gate_set_digest", "constitution_digest"):
        require_same(f"{what}: {name} in the leaf", bytes.fromhex(gate[name]), getattr(result, name))
    reference = {
        "name": REFERENCE_PREFIX + result.evaluation.removeprefix(EVALUATION_PREFIX),
        "sha256": hashlib.sha256(data).hexdigest(),
        "bytes": len(data),
    }
    if gate["profile"] != result.profile or reference not in leaf["references"]:
        raise VerificationError(f"{what}: its leaf is about another result")
    signed = [
        (b64encode(item.claims).decode(), b64encode(item.signature).decode(), item.key_id)
        for item in result.measurements
    ]
    if [(item["claims"], item["signature"], item["key_id"]) for item in gate["measurements"]] != signed:
        raise VerificationError(f"{what}: its leaf carries other measurements")


def _require_bound(what: str, measurement: VerifiedMeasurement, result: GateResult) -> None:
    claims, context = measurement.claims, measurement.claims.context
    require_same(f"{what}: adapter digest", context.adapter_digest, result.adapter_digest)
    require_same(f"{what}: base digest", context.base_digest, result.base_digest)
    require_same(f"{what}: gate set digest", context.gate_set_digest, result.gate_set_digest)
    if measurement.measurer == MEASURER_ETHICS:
        require_same(f"{what}: constitution digest", claims.constitution_digest, result.constitution_digest)
    if context.evaluation != result.evaluation:
        raise VerificationError(f"{what}: belongs to {context.evaluation}, not to {result.evaluation}")
    if not measurement.is_whole:
        raise VerificationError(
            f"{what}: covers {claims.items} of {context.suite_items} items of {context.suite}"
        )


def _require_metric(what: str, metric: GateMetric, measurements: Sequence[VerifiedMeasurement]) -> None:
    compared = metric.comparison in COMPARED_WITH_BASE
    if metric.HasField("measurement"):
        counted = _counted(what, metric, metric.measurement, MEASURED_MODEL_ADAPTER, measurements)
        if counted != (metric.hits, metric.total):
            raise VerificationError(
                f"{what}: {metric.metric} says {metric.hits} of {metric.total}, signed was {counted}"
            )
        if compared and not metric.HasField("base_measurement"):
            raise VerificationError(f"{what}: {metric.metric} is compared with a base that nobody measured")
    if metric.HasField("base_measurement"):
        counted = _counted(what, metric, metric.base_measurement, MEASURED_MODEL_BASE, measurements)
        if counted != (metric.base_hits, metric.base_total):
            raise VerificationError(
                f"{what}: {metric.metric} of the base differs from what was signed, {counted}"
            )
    if not (metric.passed and holds(metric)):
        raise VerificationError(
            f"{what}: {metric.metric}/{metric.slice or 'all'} does not pass by its own numbers"
        )


def _counted(
    what: str,
    metric: GateMetric,
    position: int,
    model: MeasuredModel.ValueType,
    measurements: Sequence[VerifiedMeasurement],
) -> tuple[int, int]:
    if position >= len(measurements):
        raise VerificationError(f"{what}: cites measurement {position} of {len(measurements)}")
    measurement = measurements[position]
    context = measurement.claims.context
    count = measurement.count(metric.metric, metric.slice)
    if context.suite != metric.suite or context.model != model or count is None:
        raise VerificationError(
            f"{what}: measurement {position} did not count {metric.metric}/{metric.slice or 'all'} of it"
        )
    return count.hits, count.total


def _require_answer(
    what: str, asked: GateRequirement, metric: GateMetric, measurements: Sequence[VerifiedMeasurement]
) -> None:
    question = (asked.metric, asked.slice, asked.suite, asked.comparison, asked.threshold_micros)
    if question != (metric.metric, metric.slice, metric.suite, metric.comparison, metric.threshold_micros):
        raise VerificationError(
            f"{what}: does not answer the profile's {asked.metric}/{asked.slice or 'all'}"
        )
    if metric.total < asked.min_total:
        raise VerificationError(
            f"{what}: {asked.metric} rests on {metric.total} items, not {asked.min_total}"
        )
    cited = [
        measurements[getattr(metric, field)]
        for field in ("measurement", "base_measurement")
        if metric.HasField(field)
    ]
    # The base's measurement alone would leave the adapter's own numbers to whoever wrote the result.
    if not metric.HasField("measurement") and asked.measured_by != MEASURER_TRAINER:
        raise VerificationError(
            f"{what}: {asked.metric} lacks the signed measurement of {Measurer.Name(asked.measured_by)}"
        )
    for measurement in cited:
        if measurement.measurer != asked.measured_by:
            raise VerificationError(
                f"{what}: {asked.metric} was measured by {Measurer.Name(measurement.measurer)}"
            )
        require_same(f"{what}: suite digest", measurement.claims.context.suite_digest, asked.suite_digest)
