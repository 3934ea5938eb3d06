"""What becomes of a conversation over the model's context: it is refused, or fitted before it is judged.  Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal, get_args

from kala.errors import InvalidArgumentError
from kala.inference.v1 import inference_pb2 as pb

TRUNCATION_HEADER: Final = "x-kala-truncation"

Truncation = Literal["refuse", "keep-system-and-tail", "content-budget"]

STRATEGIES: Final[Mapping[str, pb.FitStrategy.ValueType]] = {
    "keep-system-and-tail": pb.FIT_STRATEGY_KEEP_SYSTEM_AND_TAIL,
    "content-budget": pb.FIT_STRATEGY_CONTENT_BUDGET,
}


def strategy_of(headers: Mapping[str, str], *, default: Truncation) -> str:
    """Read a request's strategy, empty for refusing; raises InvalidArgumentError for one that is not known."""
    named = headers.get(TRUNCATION_HEADER, "").strip().lower() or default
    if named not in get_args(Truncation):
        raise InvalidArgumentError(TRUNCATION_HEADER, f"must be one of {', '.join(get_args(Truncation))}")
    return named if named in STRATEGIES else ""
