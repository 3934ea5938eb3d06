"""Gate profiles: what an adapter must reach before it may serve, and whether a number reaches it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Final

from google.protobuf import json_format

from kala.common.v1.gate_pb2 import (
    GATE_COMPARISON_DROP_AT_MOST,
    GATE_COMPARISON_LOWER_BOUND_ABOVE,
    GATE_COMPARISON_RATIO_AT_MOST,
    GATE_COMPARISON_RISE_AT_MOST,
    GATE_COMPARISON_UPPER_BOUND_BELOW,
    GATE_COMPARISON_VALUE_AT_LEAST,
    GATE_COMPARISON_VALUE_AT_MOST,
    GateComparison,
    GateMetric,
    GateProfile,
)
from kala.errors import InvalidArgumentError
from services.common.wilson import MICROS, wilson_bounds_micros

SCHEMA: Final = 1
MAX_REQUIREMENTS: Final = 256
COMPARED_WITH_BASE: Final = frozenset(
    {GATE_COMPARISON_RATIO_AT_MOST, GATE_COMPARISON_DROP_AT_MOST, GATE_COMPARISON_RISE_AT_MOST}
)
RATES_ONLY: Final = frozenset({GATE_COMPARISON_LOWER_BOUND_ABOVE, GATE_COMPARISON_UPPER_BOUND_BELOW})


@dataclass(frozen=True, slots=True)
class Profile:
    """A gate profile and the digest of the file it was read from."""

    digest: bytes
    content: GateProfile


def read_profile(data: bytes) -> Profile:
    """Reads a profile's file; raises InvalidArgumentError naming what is wrong. Repeated and unknown keys are wrong."""
    profile = GateProfile()
    try:
        json_format.Parse(data, profile)
    except (json_format.ParseError, UnicodeDecodeError) as error:
        raise InvalidArgumentError("profile", f"is not a gate profile: {error}") from error
    if profile.schema != SCHEMA or not profile.name:
        raise InvalidArgumentError("profile", f"must have a name and schema {SCHEMA}")
    if not 1 <= len(profile.requirements) <= MAX_REQUIREMENTS:
        raise InvalidArgumentError("profile.requirements", f"must hold 1 to {MAX_REQUIREMENTS} entries")
    for index, item in enumerate(profile.requirements):
        if (
            not item.comparison
            or not item.measured_by
            or len(item.suite_digest) != hashlib.sha256().digest_size
        ):
            raise InvalidArgumentError(
                f"profile.requirements[{index}]",
                "must have comparison, measured_by and a suite_digest of 32 bytes",
            )
    return Profile(hashlib.sha256(data).digest(), profile)


def holds(metric: GateMetric) -> bool:
    """Whether a metric's comparison holds by its numbers alone; an impossible number does not hold."""
    if metric.hits > metric.total or metric.base_hits > metric.base_total:
        return False
    if metric.comparison in RATES_ONLY:
        return metric.total > 0 and _bound_holds(metric)
    return metric.comparison in _COMPARE and _COMPARE[metric.comparison](
        _value(metric.hits, metric.total, metric.value_micros),
        _value(metric.base_hits, metric.base_total, metric.base_value_micros),
        Fraction(metric.threshold_micros, MICROS),
    )


def _bound_holds(metric: GateMetric) -> bool:
    lower, upper = wilson_bounds_micros(metric.hits, metric.total)
    if metric.comparison == GATE_COMPARISON_LOWER_BOUND_ABOVE:
        return lower > metric.threshold_micros
    return upper < metric.threshold_micros


def _value(hits: int, total: int, micros: int) -> Fraction:
    return Fraction(hits, total) if total else Fraction(micros, MICROS)


def _ratio_at_most(value: Fraction, base: Fraction, threshold: Fraction) -> bool:
    return value <= threshold * base if base > 0 else value == base == 0


_COMPARE: Final[Mapping[GateComparison.ValueType, Callable[[Fraction, Fraction, Fraction], bool]]] = {
    GATE_COMPARISON_VALUE_AT_LEAST: lambda value, _, threshold: value >= threshold,
    GATE_COMPARISON_VALUE_AT_MOST: lambda value, _, threshold: value <= threshold,
    GATE_COMPARISON_RATIO_AT_MOST: _ratio_at_most,
    GATE_COMPARISON_DROP_AT_MOST: lambda value, base, threshold: base - value <= threshold,
    GATE_COMPARISON_RISE_AT_MOST: lambda value, base, threshold: value - base <= threshold,
}
