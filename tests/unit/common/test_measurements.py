"""Measurements: signed parts add up to one over the whole suite, and only when they belong together."""

from __future__ import annotations

from hashlib import sha256

import pytest

from kala.common.v1.measurement_pb2 import (
    MEASURER_ETHICS,
    MEASURER_TOOLS,
    Measurement,
    MeasurementContext,
    MetricCount,
)
from kala.errors import InvalidArgumentError, VerificationError
from services.common.measurements import MeasurementSigner, sum_measurements, verify_measurement
from tests.fakes.adapters import ETHICS, TIME, TOOLS, public

DIGEST = sha256(b"x").digest()
TRUSTED = {MEASURER_ETHICS: public(ETHICS), MEASURER_TOOLS: public(TOOLS)}


def part(first: int, items: int, hits: int, **changes: object) -> Measurement:
    context = MeasurementContext(suite="secure_code", suite_items=10, first_item=first)
    counts = [MetricCount(metric="vulnerable", hits=hits, total=items)]
    measurement = Measurement(
        schema=1, context=context, items=items, counts=counts, parts=1, evidence_digest=sha256(bytes([first])).digest(),
        instrument_digest=DIGEST, started_at=TIME, finished_at=TIME,
    )  # fmt: skip
    for name, value in changes.items():
        setattr(measurement, name, value)
    return measurement


def signed(measurement: Measurement):
    return MeasurementSigner(MEASURER_TOOLS, TOOLS).sign(measurement)


def verified(*measurements: Measurement):
    return [verify_measurement("m", signed(item), TRUSTED) for item in measurements]


def test_parts_without_a_gap_add_up_to_the_whole_suite():
    total = sum_measurements(verified(part(0, 4, 1), part(4, 6, 2)))
    assert (total.items, total.parts, total.counts[0].hits, total.counts[0].total) == (10, 2, 3, 10)
    evidence = sha256(bytes([0])).digest() + sha256(bytes([4])).digest()
    assert total.evidence_digest == sha256(b"\x01" + evidence).digest()
    whole = verify_measurement("m", signed(total), TRUSTED)
    assert whole.is_whole
    assert whole.measurer == MEASURER_TOOLS
    assert whole.count("vulnerable", "") == MetricCount(metric="vulnerable", hits=3, total=10)
    assert whole.count("vulnerable", "law_0") is None


@pytest.mark.parametrize(
    ("second", "match"),
    [
        (part(5, 5, 0), "begins at item 5, not at 4"),
        (part(3, 5, 0), "begins at item 3, not at 4"),
        (part(4, 6, 0, parts=2), "is itself a sum"),
        (part(4, 6, 0, instrument_digest=sha256(b"y").digest()), "another instrument"),
    ],
    ids=["gap", "overlap", "sum", "instrument"],
)
def test_parts_that_do_not_belong_together_are_refused(second: Measurement, match: str):
    with pytest.raises(InvalidArgumentError, match=match):
        sum_measurements(verified(part(0, 4, 1), second))


def test_parts_of_another_context_are_refused():
    other = part(4, 6, 0)
    other.context.suite = "other"
    with pytest.raises(InvalidArgumentError, match="another context"):
        sum_measurements(verified(part(0, 4, 1), other))


def test_nothing_adds_up_to_nothing():
    with pytest.raises(InvalidArgumentError, match="1 to 4096"):
        sum_measurements([])


def test_the_key_and_not_the_hint_says_who_measured():
    message = signed(part(0, 4, 1))
    message.service = "ethics"
    assert verify_measurement("m", message, TRUSTED).measurer == MEASURER_TOOLS


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"items": 0}, "do not lie within"),
        ({"items": 11}, "do not lie within"),
        ({"instrument_digest": b""}, "instrument digest"),
    ],
)
def test_a_signed_measurement_that_makes_no_sense_is_refused(changes: dict[str, object], match: str):
    broken = part(0, 4, 1)
    for name, value in changes.items():
        setattr(broken, name, value)
    with pytest.raises(VerificationError, match=match):
        verified(broken)


def test_a_measurement_without_counts_is_refused():
    empty = part(0, 4, 1)
    empty.ClearField("counts")
    with pytest.raises(VerificationError, match="its counts are not"):
        verified(empty)


def test_ethics_must_name_its_constitution():
    message = MeasurementSigner(MEASURER_ETHICS, ETHICS).sign(part(0, 4, 1))
    with pytest.raises(VerificationError, match="constitution digest"):
        verify_measurement("m", message, TRUSTED)


def test_altered_claims_are_refused():
    message = signed(part(0, 4, 1))
    message.claims += b"\x28\x05"
    with pytest.raises(VerificationError, match="does not hold"):
        verify_measurement("m", message, TRUSTED)
