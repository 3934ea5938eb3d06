"""Quantities with units."""

from __future__ import annotations

import pytest

from services.trainer.evaluation.units import has_dimension, is_quantity, unit_of


@pytest.mark.parametrize(
    ("answer", "value", "unit"),
    [
        ("F = m a = 4 kg * 3 m/s^2 = 12 N", 12, "N"),
        ("The force is 12 kg m s^-2.", 12, "N"),
        ("So v = 5 m/s.", 18, "km/h"),
        ("18 km/h", 5, "m/s"),
        ("about 2.5 m/s²", 2.5, "m/s^2"),
        ("The resistance is 460 ohms.", 460, "ohm"),
        ("460 Ω", 460, "ohm"),
        ("0.3 kWh", 1.08e6, "J"),
        ("3.3 × 10^-19 J", 3.3e-19, "J"),
        ("20 Nm", 20, "N m"),
        ("an efficiency of 50 %", 50, "%"),
        ("84,000 joules", 84, "kJ"),
        ("$0.06\\ \\text{m}^3/\\text{s}$", 0.06, "m^3/s"),
    ],
)
def test_a_quantity_is_right_in_any_unit_of_its_dimension(answer: str, value: float, unit: str) -> None:
    assert is_quantity(answer, value, unit, 0.01)


@pytest.mark.parametrize("answer", ["12 J", "12", "13 N", "12 apples", "", "It depends."])
def test_a_wrong_dimension_or_size_or_no_unit_is_wrong(answer: str) -> None:
    assert not is_quantity(answer, 12, "N", 0.01)


def test_the_dimension_alone_can_be_right() -> None:
    assert has_dimension("13 N", "N")
    assert not has_dimension("13 J", "N")


def test_what_is_no_unit_has_none() -> None:
    assert unit_of("furlongs") is None
    assert unit_of("") is None
