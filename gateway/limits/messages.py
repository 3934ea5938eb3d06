"""Limits as the contract has them, and as the gateway works with them."""

from __future__ import annotations

from typing import Final

from gateway.limits.key_limits import Budget, KeyLimits, Period, Unit
from kala.errors import InvalidArgumentError
from kala.gateway.v1 import gateway_pb2 as pb

_UNITS: Final = {
    pb.BUDGET_UNIT_REQUESTS: Unit.REQUESTS,
    pb.BUDGET_UNIT_TOKENS: Unit.TOKENS,
    pb.BUDGET_UNIT_COST_MICROS: Unit.COST_MICROS,
}
_PERIODS: Final = {
    pb.BUDGET_PERIOD_DAY: Period.DAY,
    pb.BUDGET_PERIOD_MONTH: Period.MONTH,
    pb.BUDGET_PERIOD_TOTAL: Period.TOTAL,
}
_UNIT_NUMBERS: Final = {unit: number for number, unit in _UNITS.items()}
_PERIOD_NUMBERS: Final = {period: number for number, period in _PERIODS.items()}
_RATES: Final = ("requests_per_minute", "tokens_per_minute", "concurrent")


def read_limits(message: pb.KeyLimits, *, has_prices: bool) -> KeyLimits:
    """Read and check limits; InvalidArgumentError names the field."""
    budgets = tuple(_budget(number, budget) for number, budget in enumerate(message.budgets))
    rates = {name: getattr(message, name) for name in _RATES if message.HasField(name)}
    return KeyLimits(**rates, budgets=budgets).checked(has_prices=has_prices)


def write_limits(limits: KeyLimits) -> pb.KeyLimits:
    """Write limits."""
    message = pb.KeyLimits(
        budgets=[
            pb.Budget(
                unit=_UNIT_NUMBERS[budget.unit], period=_PERIOD_NUMBERS[budget.period], amount=budget.amount
            )
            for budget in limits.budgets
        ]
    )
    for name in _RATES:
        if (value := getattr(limits, name)) is not None:
            setattr(message, name, value)
    return message


def _budget(number: int, budget: pb.Budget) -> Budget:
    for field, known in (("unit", _UNITS), ("period", _PERIODS)):
        if getattr(budget, field) not in known:
            raise InvalidArgumentError(f"limits.budgets[{number}].{field}", "is required")
    return Budget(_UNITS[budget.unit], _PERIODS[budget.period], budget.amount)
