"""What tokens cost, by model.  Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import ROUND_CEILING, Decimal
from typing import Final

from pydantic import BaseModel, ConfigDict, Field

ANY_MODEL: Final = "*"
"""The price of every model that has none of its own."""


class Price(BaseModel):
    """What a million tokens of one model cost, in the operator's currency."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    input: Decimal = Field(default=Decimal(0), ge=0, le=1_000_000)
    output: Decimal = Field(default=Decimal(0), ge=0, le=1_000_000)

    def cost_micros(self, input_tokens: int, output_tokens: int) -> int:
        """Give millionths of the currency, rounded up: so much a million is so many millionths each."""
        cost = self.input * input_tokens + self.output * output_tokens
        return int(cost.to_integral_value(rounding=ROUND_CEILING))


@dataclass(frozen=True, slots=True)
class Prices:
    """The price list."""

    by_model: Mapping[str, Price] = field(default_factory=dict)

    def cost_micros(self, model: str, input_tokens: int, output_tokens: int) -> int | None:
        """Give the cost in millionths, or None where there are no prices.

        A model without a price costs what the dearest costs: a budget must not be passed by asking for an unlisted one.
        """
        if not self.by_model:
            return None
        price = self.by_model.get(model) or self.by_model.get(ANY_MODEL)
        if price is not None:
            return price.cost_micros(input_tokens, output_tokens)
        return max(each.cost_micros(input_tokens, output_tokens) for each in self.by_model.values())
