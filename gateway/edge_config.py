"""The gateway's settings about callers: how much they may use, and what the HTTP edge takes from them."""

from __future__ import annotations

from typing import Annotated, Final

from pydantic import Field, field_validator

from gateway.cors import checked_origins
from gateway.http_guard import ConnectionLimits
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

    cors_origins: Annotated[
        tuple[str, ...],
        Field(description="Exact origins of web pages that may call from a browser; empty for none."),
    ] = ()
    max_connections: Annotated[
        int, Field(ge=1, description="Open connections; more are turned away with 503.")
    ] = 4096
    max_header_bytes: Annotated[int, Field(ge=1024, description="Largest head of a request.")] = 32 * 1024
    header_timeout_seconds: Annotated[
        float, Field(gt=0, description="Longest wait for a request's headers.")
    ] = 10.0
    idle_timeout_seconds: Annotated[
        float, Field(ge=1, description="How long a connection stays open between requests.")
    ] = 75.0
    write_timeout_seconds: Annotated[
        float, Field(gt=0, description="Longest wait for a client that reads nothing of its answer.")
    ] = 60.0

    @property
    def connection_limits(self) -> ConnectionLimits:
        """What one connection may take."""
        return ConnectionLimits(
            max_connections=self.max_connections,
            max_header_bytes=self.max_header_bytes,
            header_timeout_seconds=self.header_timeout_seconds,
            write_timeout_seconds=self.write_timeout_seconds,
        )

    @field_validator("cors_origins")
    @classmethod
    def _check_origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        try:
            return checked_origins(value)
        except InvalidArgumentError as error:
            raise ValueError(error.problem) from error

    @field_validator("limits_storage")
    @classmethod
    def _check_storage(cls, value: str) -> str:
        try:
            return checked_storage(value)
        except InvalidArgumentError as error:
            raise ValueError(error.problem) from error
