"""What a key may use: rates, budgets and how much at a time; and how the database spells it.  Pure."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from enum import Enum
from typing import Final

from kala.errors import InvalidArgumentError

MAX_BUDGETS: Final = 9
"""One of each unit for each period."""

MAX_AMOUNT: Final = 2**53 - 1
"""What JSON's readers keep exactly; more is no limit."""


class Unit(Enum):
    """What a budget counts."""

    REQUESTS = "requests"
    TOKENS = "tokens"
    COST_MICROS = "cost_micros"
    """Millionths of the currency that the prices are in."""


class Period(Enum):
    """When a budget begins anew: at midnight UTC, on the first of a month, or never."""

    DAY = "day"
    MONTH = "month"
    TOTAL = "total"

    def window(self, now: datetime) -> str:
        """Name the window that a time falls into."""
        at = now.astimezone(UTC)
        match self:
            case Period.DAY:
                return at.strftime("%Y-%m-%d")
            case Period.MONTH:
                return at.strftime("%Y-%m")
            case Period.TOTAL:
                return "total"


@dataclass(frozen=True, slots=True)
class Budget:
    """So much of one unit in each window of a period."""

    unit: Unit
    period: Period
    amount: int


@dataclass(frozen=True, slots=True)
class KeyLimits:
    """The limits of one key; None and no budgets for none."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrent: int | None = None
    budgets: tuple[Budget, ...] = ()

    @property
    def rates(self) -> bool:
        """Tell whether anything must be counted by the minute or at a time."""
        return (self.requests_per_minute, self.tokens_per_minute, self.concurrent) != (None, None, None)

    def checked(self, *, has_prices: bool) -> KeyLimits:
        """Give it back, or raise InvalidArgumentError that names the field."""
        for name in ("requests_per_minute", "tokens_per_minute", "concurrent"):
            value = getattr(self, name)
            if value is not None and not 1 <= value <= MAX_AMOUNT:
                raise InvalidArgumentError(
                    f"limits.{name}", f"must be 1 to {MAX_AMOUNT}; leave it out for no limit"
                )
        if len(self.budgets) > MAX_BUDGETS:
            raise InvalidArgumentError("limits.budgets", f"must have at most {MAX_BUDGETS} entries")
        kinds = [(budget.unit, budget.period) for budget in self.budgets]
        if len(set(kinds)) < len(kinds):
            raise InvalidArgumentError("limits.budgets", "may name each unit once for each period")
        for number, budget in enumerate(self.budgets):
            if not 1 <= budget.amount <= MAX_AMOUNT:
                raise InvalidArgumentError(f"limits.budgets[{number}].amount", f"must be 1 to {MAX_AMOUNT}")
            if budget.unit is Unit.COST_MICROS and not has_prices:
                raise InvalidArgumentError(
                    f"limits.budgets[{number}].unit",
                    "counts cost, and no price is configured; set KALA_GATEWAY_PRICES first",
                )
        return self

    def to_json(self) -> str:
        """Spell it for the database."""
        value = asdict(self)
        value["budgets"] = [
            [budget.unit.value, budget.period.value, budget.amount] for budget in self.budgets
        ]
        return json.dumps(value, separators=(",", ":"), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> KeyLimits:
        """Read what `to_json` wrote."""
        value = json.loads(text)
        budgets = value.pop("budgets")
        return cls(
            **value,
            budgets=tuple(Budget(Unit(unit), Period(period), amount) for unit, period, amount in budgets),
        )


UNLIMITED: Final = KeyLimits()
