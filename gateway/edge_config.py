"""The gateway's settings about callers: how much they may use, and what the HTTP edge takes from them."""

from __future__ import annotations

from typing import Annotated, Final, Literal, Self

from pydantic import Field, PositiveInt, field_validator, model_validator

from gateway.cors import checked_origins
from gateway.http_guard import ConnectionLimits
from gateway.limits.counters import MEMORY, checked_storage
from gateway.limits.prices import Price
from gateway.oidc.trust import checked_algorithms, checked_source
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

    oidc_issuer: Annotated[
        str | None,
        Field(description="Whose tokens are taken beside API keys, as their `iss` says; unset for nobody's."),
    ] = None
    oidc_audience: Annotated[
        str | None, Field(description="What a token's `aud` must name; needed with an issuer.")
    ] = None
    oidc_jwks: Annotated[
        str | None,
        Field(description="The issuer's public keys: a JWK set's file or https URL; needed with an issuer."),
    ] = None
    oidc_algorithms: Annotated[
        tuple[str, ...], Field(description="How tokens may be signed; never `none` or HS*.")
    ] = ("RS256", "ES256", "EdDSA", "Ed25519")
    oidc_roles_claim: Annotated[
        str, Field(min_length=1, description="The claim that lists roles, dots for a path; a list or words.")
    ] = "roles"
    oidc_role_map: Annotated[
        dict[str, Literal["admin", "auditor", "operator", "user"]],
        Field(description="KALA's role by the issuer's, as JSON; unset where the issuer knows KALA's."),
    ] = {}  # noqa: RUF012 - pydantic copies it
    oidc_tenant_claim: Annotated[
        str, Field(description="The claim that names the tenant; empty puts all into `default`.")
    ] = ""
    oidc_limits: Annotated[
        dict[Literal["requests_per_minute", "tokens_per_minute", "concurrent"], PositiveInt],
        Field(description="What each token's subject may use, as JSON; unset for no limit."),
    ] = {}  # noqa: RUF012 - pydantic copies it
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

    @field_validator("oidc_algorithms")
    @classmethod
    def _check_algorithms(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        try:
            return checked_algorithms(value)
        except InvalidArgumentError as error:
            raise ValueError(error.problem) from error

    @model_validator(mode="after")
    def _check_oidc(self) -> Self:
        given = [self.oidc_issuer, self.oidc_audience, self.oidc_jwks]
        if None in given and given != [None] * len(given):
            raise ValueError("oidc_issuer, oidc_audience and oidc_jwks must be set together")
        if self.oidc_jwks is not None:
            try:
                checked_source(self.oidc_jwks)
            except InvalidArgumentError as error:
                raise ValueError(f"oidc_jwks {error.problem}") from error
        return self

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
