"""Gates: nothing that a result says about itself is believed."""

from __future__ import annotations

import math
from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kala.common.v1 import gate_pb2, measurement_pb2
from kala.errors import InvalidArgumentError
from services.common.gate_profile import holds, read_profile
from services.common.wilson import wilson_bounds_micros
from tests.fakes.adapters import TOOLS, AdapterWorld, key, profile_file, refused

OTHER = sha256(b"something else").digest()


def _metric(index: int, **values):
    def change(result: gate_pb2.GateResult) -> None:
        for name, value in values.items():
            setattr(result.metrics[index], name, value)

    return change


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda r: setattr(r, "outcome", gate_pb2.GATE_OUTCOME_FAILED), "came out as GATE_OUTCOME_FAILED"),
        (lambda r: setattr(r, "outcome", gate_pb2.GATE_OUTCOME_ERROR), "came out as GATE_OUTCOME_ERROR"),
        (lambda r: setattr(r, "outcome", 99), "this version does not know"),
        (lambda r: setattr(r, "schema", 2), "schema 2"),
        (lambda r: setattr(r, "base_digest", OTHER), "base digest"),
        (lambda r: setattr(r, "evaluation", "evaluations/" + "6" * 32), "its leaf is about another result"),
        (lambda r: setattr(r, "profile", "other"), "does not answer the profile"),
        (lambda r: r.ClearField("metrics"), "has no metrics"),
        (lambda r: r.metrics.pop(), "does not answer the profile"),
        (lambda r: r.metrics.reverse(), "does not answer the profile's law_correct"),
        (lambda r: r.measurements.pop(), "cites measurement 2 of 2"),
        (_metric(0, hits=990), "signed was"),
        (_metric(0, total=999), "signed was"),
        (_metric(0, measurement=1), "did not count law_correct"),
        (_metric(0, metric="other"), "did not count other"),
        (_metric(0, threshold_micros=900_000), "does not answer the profile's law_correct"),
        (_metric(0, passed=False), "does not pass by its own numbers"),
        (_metric(1, base_hits=41), "of the base differs"),
        (_metric(1, base_measurement=1), "did not count vulnerable"),
        (_metric(2, hits=89), "exact_match/all does not pass"),
        (_metric(2, hits=101), "exact_match/all does not pass"),
        (_metric(2, comparison=gate_pb2.GATE_COMPARISON_VALUE_AT_MOST), "does not pass by its own numbers"),
        (lambda r: r.metrics[1].ClearField("base_measurement"), "a base that nobody measured"),
        (lambda r: r.metrics[0].ClearField("measurement"), "lacks the signed measurement of MEASURER_ETHICS"),
        (lambda r: r.metrics[1].ClearField("measurement"), "lacks the signed measurement of MEASURER_TOOLS"),
    ],
)
def test_a_result_that_was_bent_before_it_was_logged_is_refused(change, match: str):
    refused(AdapterWorld(on_result=change), match)


def test_a_result_that_was_bent_after_it_was_logged_is_refused():
    def bend(manifest):
        result = gate_pb2.GateResult.FromString(manifest.gates[0].result)
        result.evaluator = "somebody else"
        manifest.gates[0].result = result.SerializeToString()

    refused(AdapterWorld(on_manifest=bend), "its leaf is about another result")


def _leaf(path: str, value: object):
    def change(leaf):
        *parents, name = path.split(".")
        for parent in parents:
            leaf = leaf[parent]
        leaf[name] = value

    return change


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (_leaf("type", "chat.outcome"), "no passed gate"),
        (_leaf("gate", None), "no passed gate"),
        (_leaf("gate.passed", False), "no passed gate"),
        (_leaf("recorded_by", "local:gateway"), "recorded by local:gateway"),
        (_leaf("gate.adapter_digest", "a" * 64), "adapter_digest in the leaf"),
        (_leaf("gate.base_digest", "a" * 64), "base_digest in the leaf"),
        (_leaf("gate.gate_set_digest", "a" * 64), "gate_set_digest in the leaf"),
        (_leaf("gate.constitution_digest", "a" * 64), "constitution_digest in the leaf"),
        (_leaf("gate.profile", "other"), "another result"),
        (_leaf("gate.measurements", []), "carries other measurements"),
        (_leaf("references", []), "another result"),
    ],
)
def test_a_leaf_that_says_something_else_is_refused(change, match: str):
    refused(AdapterWorld(on_leaf=change), match)


def _context(**values):
    def change(measurement: measurement_pb2.Measurement) -> None:
        for name, value in values.items():
            setattr(measurement.context, name, value)

    return change


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (_context(adapter_digest=OTHER), "adapter digest"),
        (_context(base_digest=OTHER), "base digest"),
        (_context(gate_set_digest=OTHER), "gate set digest"),
        (_context(suite_digest=OTHER), "suite digest"),
        (_context(evaluation="evaluations/" + "6" * 32), "belongs to evaluations/6"),
        (_context(suite_items=2000), "covers 1000 of 2000"),
        (_context(first_item=1), "do not lie within"),
        (lambda m: setattr(m, "constitution_digest", OTHER), "constitution digest"),
        (lambda m: setattr(m, "schema", 3), "schema 3"),
        (lambda m: setattr(m.counts[0], "hits", 2000), "counts 2000 of"),
        (lambda m: m.counts.append(m.counts[0]), "each once"),
        (lambda m: setattr(m, "evidence_digest", b""), "evidence digest"),
    ],
)
def test_a_signed_measurement_of_something_else_is_refused(change, match: str):
    refused(AdapterWorld(on_measurement=change), match)


def test_a_measurement_by_a_stranger_is_refused():
    refused(AdapterWorld(ethics=key("stranger")), "no trusted key of ethics or tools")


def test_a_forged_measurement_is_refused():
    def forge(result: gate_pb2.GateResult) -> None:
        result.measurements[0].signature = bytes(64)

    refused(AdapterWorld(on_result=forge), r"measurements\[0\]: the signature")


def test_tools_cannot_answer_what_ethics_was_asked():
    refused(AdapterWorld(ethics=TOOLS), "was measured by MEASURER_TOOLS")


def test_too_few_items_are_refused():
    world = AdapterWorld()
    world.profile = world.profile.replace(b'"minTotal": "1000"', b'"minTotal": "1001"')
    refused(world, "rests on 1000 items, not 1001")


# --- numbers --------------------------------------------------------------------------------------------------------


def test_wilson_bounds_agree_with_the_published_formula():
    # Newcombe 1998, table I, case 81 of 263: 0.2553 to 0.3662.
    assert wilson_bounds_micros(81, 263) == pytest.approx((255_300, 366_200), abs=60)
    assert wilson_bounds_micros(0, 20)[0] == 0
    assert wilson_bounds_micros(20, 20)[1] == 1_000_000


@given(st.integers(1, 2_000_000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_bounds_enclose_the_rate_and_agree_with_floats(case: tuple[int, int]):
    hits, total = case
    lower, upper = wilson_bounds_micros(hits, total)
    assert 0 <= lower <= hits * 1_000_000 / total <= upper <= 1_000_000
    z, p = 1.959964, hits / total
    spread = z * math.sqrt(p * (1 - p) / total + z * z / (4 * total * total))
    low, high = ((p + z * z / (2 * total) + s) / (1 + z * z / total) * 1e6 for s in (-spread, spread))
    assert lower == pytest.approx(low, abs=1.001)
    assert upper == pytest.approx(high, abs=1.001)


@pytest.mark.parametrize(("hits", "total"), [(0, 0), (2, 1), (-1, 1)])
def test_what_is_no_rate_has_no_bounds(hits: int, total: int):
    with pytest.raises(ValueError, match="no rate"):
        wilson_bounds_micros(hits, total)


def metric(comparison: str, **numbers: int) -> gate_pb2.GateMetric:
    return gate_pb2.GateMetric(
        comparison=gate_pb2.GateComparison.Value(f"GATE_COMPARISON_{comparison}"), **numbers
    )


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        # facts: at n = 1,000 the observed rate must be about 96.4 % for a lower bound above 95 %.
        (metric("LOWER_BOUND_ABOVE", hits=965, total=1000, threshold_micros=950_000), True),
        (metric("LOWER_BOUND_ABOVE", hits=962, total=1000, threshold_micros=950_000), False),
        (metric("LOWER_BOUND_ABOVE", threshold_micros=0), False),
        (metric("UPPER_BOUND_BELOW", hits=30, total=1000, threshold_micros=50_000), True),
        (metric("UPPER_BOUND_BELOW", hits=45, total=1000, threshold_micros=50_000), False),
        (metric("VALUE_AT_LEAST", hits=9, total=10, threshold_micros=900_000), True),
        (metric("VALUE_AT_LEAST", hits=2, total=3, threshold_micros=666_667), False),
        (metric("VALUE_AT_MOST", value_micros=7_500_000, threshold_micros=7_500_000), True),
        (metric("VALUE_AT_MOST", value_micros=7_500_001, threshold_micros=7_500_000), False),
        (metric("RATIO_AT_MOST", hits=1, total=5, base_hits=5, base_total=5, threshold_micros=200_000), True),
        (
            metric("RATIO_AT_MOST", hits=2, total=5, base_hits=5, base_total=5, threshold_micros=200_000),
            False,
        ),
        (metric("RATIO_AT_MOST", hits=0, total=5, base_total=5, threshold_micros=200_000), True),
        (metric("RATIO_AT_MOST", hits=1, total=5, base_total=5, threshold_micros=200_000), False),
        (
            metric("DROP_AT_MOST", hits=98, total=100, base_hits=99, base_total=100, threshold_micros=10_000),
            True,
        ),
        (
            metric("DROP_AT_MOST", hits=97, total=100, base_hits=99, base_total=100, threshold_micros=10_000),
            False,
        ),
        (metric("RISE_AT_MOST", value_micros=2, base_value_micros=1, threshold_micros=1), True),
        (metric("RISE_AT_MOST", value_micros=3, base_value_micros=1, threshold_micros=1), False),
        (metric("RISE_AT_MOST", base_hits=2, base_total=1, threshold_micros=1), False),
        (metric("UNSPECIFIED"), False),
    ],
)
def test_a_comparison_holds_exactly_when_its_numbers_say_so(case: gate_pb2.GateMetric, *, expected: bool):
    assert holds(case) is expected


# --- profiles -------------------------------------------------------------------------------------------------------


def test_a_profile_is_known_by_the_digest_of_its_file():
    data = profile_file()
    assert read_profile(data).digest == sha256(data).digest()


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (b"\xff", "is not a gate profile"),
        (b"{", "is not a gate profile"),
        (b'{"schema": 1, "name": "x", "unknown": 1}', "is not a gate profile"),
        (b'{"schema": 1, "schema": 1, "name": "x"}', "is not a gate profile"),
        (b'{"schema": 2, "name": "x"}', "schema 1"),
        (b'{"schema": 1, "name": "x"}', "1 to 256"),
        (b'{"schema": 1, "name": "x", "requirements": [{}]}', r"requirements\[0\]"),
    ],
)
def test_a_profile_that_is_none_is_refused(data: bytes, match: str):
    with pytest.raises(InvalidArgumentError, match=match):
        read_profile(data)
