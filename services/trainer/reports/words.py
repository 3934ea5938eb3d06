"""Gate results in words and plain numbers. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from kala.common.v1 import gate_pb2
from kala.common.v1.gate_pb2 import GateComparison, GateMetric

MICROS: Final = 1_000_000
_WORDS: Final[Mapping[GateComparison.ValueType, str]] = {
    gate_pb2.GATE_COMPARISON_LOWER_BOUND_ABOVE: "lower bound above",
    gate_pb2.GATE_COMPARISON_UPPER_BOUND_BELOW: "upper bound below",
    gate_pb2.GATE_COMPARISON_VALUE_AT_LEAST: "at least",
    gate_pb2.GATE_COMPARISON_VALUE_AT_MOST: "at most",
    gate_pb2.GATE_COMPARISON_RATIO_AT_MOST: "times the base's, at most",
    gate_pb2.GATE_COMPARISON_DROP_AT_MOST: "below the base's by at most",
    gate_pb2.GATE_COMPARISON_RISE_AT_MOST: "above the base's by at most",
}
_OUTCOMES: Final = {
    gate_pb2.GATE_OUTCOME_PASSED: "passed",
    gate_pb2.GATE_OUTCOME_FAILED: "failed",
    gate_pb2.GATE_OUTCOME_ERROR: "broke, which counts as failed",
}


def outcome_of(outcome: gate_pb2.GateOutcome.ValueType) -> str:
    """Returns how a gate ended."""
    return _OUTCOMES.get(outcome, "has not ended")


def measure_of(metric: GateMetric) -> str:
    """Returns what was measured: metric, slice and suite."""
    part = f"/{metric.slice}" if metric.slice else ""
    return f"{metric.metric}{part} ({metric.suite})"


def reading(metric: GateMetric) -> float:
    """Returns the adapter's value: a share, or a number in the metric's own unit."""
    return metric.hits / metric.total if metric.total else metric.value_micros / MICROS


def base_reading(metric: GateMetric) -> float | None:
    """Returns the base's value; None where nothing is compared."""
    if metric.base_total:
        return metric.base_hits / metric.base_total
    return metric.base_value_micros / MICROS if metric.base_value_micros else None


def bound_of(metric: GateMetric) -> float:
    """Returns the value that the adapter's own is held against."""
    threshold, base = metric.threshold_micros / MICROS, base_reading(metric) or 0.0
    if metric.comparison == gate_pb2.GATE_COMPARISON_RATIO_AT_MOST:
        return base * threshold
    if metric.comparison == gate_pb2.GATE_COMPARISON_DROP_AT_MOST:
        return base - threshold
    if metric.comparison == gate_pb2.GATE_COMPARISON_RISE_AT_MOST:
        return base + threshold
    return threshold


def requirement_of(metric: GateMetric) -> str:
    """Returns what was asked, in words."""
    return f"{_WORDS.get(metric.comparison, 'unknown')} {metric.threshold_micros / MICROS:g}"
