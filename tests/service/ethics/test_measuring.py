"""Signed counts of verdicts for evaluation gates."""

from __future__ import annotations

from collections.abc import Awaitable
from hashlib import sha256

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from kala.common.v1 import decision_pb2
from kala.common.v1.measurement_pb2 import (
    MEASURED_MODEL_ADAPTER,
    MEASURER_ETHICS,
    MeasurementContext,
    SignedMeasurement,
)
from kala.errors import InvalidArgumentError, KalaError, PermissionDeniedError, UnavailableError
from kala.ethics.v1 import ethics_pb2 as pb
from services.common.keys import key_id
from services.common.measurements import verify_measurement
from services.common.status import from_error
from services.ethics.judgement import failed_line
from services.ethics.measuring import Measuring
from tests.service.ethics.conftest import Ethics

HARMFUL = "You should just hang yourself."
HARMLESS = "Boil the potatoes for twenty minutes."


def context(first_item: int = 0, items: int = 3, **changes: object) -> MeasurementContext:
    values: dict[str, object] = {
        "evaluation": "evaluations/" + "5" * 32,
        "adapter_digest": sha256(b"adapter").digest(),
        "base_digest": sha256(b"base").digest(),
        "gate_set_digest": sha256(b"gates").digest(),
        "suite": "harm",
        "suite_digest": sha256(b"suite").digest(),
        "suite_items": items,
        "first_item": first_item,
        "model": MEASURED_MODEL_ADAPTER,
    }
    return MeasurementContext(**(values | changes))  # type: ignore[arg-type] # built from a dictionary on purpose


def question(text: str, first_item: int = 0, *, slice_name: str = "law_1") -> pb.ScoreRequest:
    return pb.ScoreRequest(
        text=text, stage=pb.STAGE_OUTPUT, measurement=context(first_item), slice=slice_name
    )


async def refused(call: Awaitable[object]) -> KalaError:
    with pytest.raises(grpc.RpcError) as caught:
        await call
    return from_error(caught.value)


async def test_what_ethics_counted_adds_up_under_its_signature(ethics: Ethics) -> None:
    trainer = await ethics.as_peer("trainer")
    parts: list[SignedMeasurement] = []
    for item, (text, part) in enumerate([(HARMFUL, "law_1"), (HARMLESS, "law_1"), (HARMLESS, "law_2")]):
        answer = await trainer.Score(question(text, item, slice_name=part))
        parts.append(answer.measurement)
    total = (await trainer.SumMeasurements(pb.SumMeasurementsRequest(parts=parts))).sum
    public = ethics.key.public_key()
    measured = verify_measurement("sum", total, {MEASURER_ETHICS: {key_id(public): public}})
    assert measured.is_whole
    assert measured.claims.constitution_digest == ethics.watch.in_force.digest
    assert [(item.metric, item.slice, item.hits, item.total) for item in measured.claims.counts] == [
        ("output_harmful", "", 1, 3),
        ("output_harmful", "law_1", 1, 2),
        ("output_harmful", "law_2", 0, 1),
    ]
    error = await refused(trainer.SumMeasurements(pb.SumMeasurementsRequest(parts=[parts[0], parts[2]])))
    assert "parts[1]" in error.message
    parts[0].signature = bytes(64)
    assert isinstance(
        await refused(trainer.SumMeasurements(pb.SumMeasurementsRequest(parts=parts))), InvalidArgumentError
    )


async def test_only_the_trainer_has_anything_measured(ethics: Ethics) -> None:
    assert isinstance(await refused(ethics.stub.Score(question(HARMLESS))), PermissionDeniedError)


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (question(HARMLESS, slice_name="Law 1"), "slice"),
        (pb.ScoreRequest(text=HARMLESS, slice="law_1"), "slice"),
        (pb.ScoreRequest(text=HARMLESS, measurement=context(base_digest=b"x")), "measurement.base_digest"),
        (pb.ScoreRequest(text=HARMLESS, measurement=context(evaluation="1")), "measurement.evaluation"),
        (pb.ScoreRequest(text=HARMLESS, measurement=context(first_item=3)), "measurement.first_item"),
    ],
)
async def test_what_cannot_be_bound_is_not_measured(
    ethics: Ethics, request_: pb.ScoreRequest, field: str
) -> None:
    trainer = await ethics.as_peer("trainer")
    error = await refused(trainer.Score(request_))
    assert isinstance(error, InvalidArgumentError)
    assert error.field == field


def test_a_broken_judge_measures_nothing(ethics: Ethics) -> None:
    """Its REFUSE would count as harm that nobody saw."""
    decision = decision_pb2.Decision(
        outcome=decision_pb2.OUTCOME_REFUSE,
        judges=["hard_blocks", "classifier"],
        path=[failed_line("classifier")],
        constitution_digest=bytes(32),
    )
    with pytest.raises(UnavailableError, match="classifier failed"):
        Measuring(ethics.key).count(question(HARMLESS), decision, began_at=Timestamp())
