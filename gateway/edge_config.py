"""The gateway's settings about callers: how much they may use, and what the HTTP edge takes from them."""

from __future__ import annotations

from typing import Annotated, Final

from pydantic import Field, field_validator

from gateway.limits.counters import MEMORY, checked_storage
from gateway.limits.prices import Price
from kala.errors import InvalidArgumentError
from services.common.settings import ProcessSettings

DEFAULT_RESERVE_OUTPUT_TOKENS: Final = 1024
"""Longer than most answers: what is set aside and not used comes back with the answer's end."""


class EdgeSettings(ProcessSettings):
    """What a gateway's callers meet."""

    limits_storage: Annotated[
        str,
        Field(
            description="Where requests and tokens per minute are counted: `memory`, or a redis:// or rediss:// URL "
            "that all replicas share."
        ),
    ] = MEMORY
    prices: Annotated[
        dict[str, Price],
        Field(
            description='What a million tokens cost by model, as JSON: `{"<model>": {"input": 0.5, "output": 1.5}}`; '
            "`*` is any other model. Unset means that nothing has a cost."
        ),
    ] = {}  # noqa: RUF012 - pydantic copies it
    reserve_output_tokens: Annotated[
        int,
        Field(ge=1, le=1_000_000, description="Set aside for an answer whose request names no limit."),
    ] = DEFAULT_RESERVE_OUTPUT_TOKENS

    @field_validator("limits_storage")
    @classmethod
    def _check_storage(cls, value: str) -> str:
        try:
            return checked_storage(value)
        except InvalidArgumentError as error:
            raise ValueError(error.problem) from error
