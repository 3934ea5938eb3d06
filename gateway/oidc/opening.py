"""Opens the verification of tokens from the gateway's settings."""

from __future__ import annotations

import time
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from gateway.limits.key_limits import KeyLimits
from gateway.oidc.trust import Trust, where

if TYPE_CHECKING:
    from gateway.edge_config import EdgeSettings
    from gateway.oidc.tokens import TokenVerifier


async def open_tokens(settings: EdgeSettings, stack: AsyncExitStack) -> TokenVerifier | None:
    """Give the verifier, or None where no provider is trusted. The provider need not answer yet."""
    if settings.oidc_issuer is None or settings.oidc_audience is None or settings.oidc_jwks is None:
        return None
    # Not imported where no provider is trusted: they take memory.
    import httpx

    from gateway.oidc.key_sets import FETCH_SECONDS, KeySets, reader_of
    from gateway.oidc.tokens import TokenVerifier

    client = await stack.enter_async_context(httpx.AsyncClient(timeout=FETCH_SECONDS))
    trust = Trust(
        issuer=settings.oidc_issuer,
        audience=settings.oidc_audience,
        algorithms=settings.oidc_algorithms,
        roles_claim=settings.oidc_roles_claim,
        tenant_claim=settings.oidc_tenant_claim,
        role_map=settings.oidc_role_map,
        limits=KeyLimits(**dict(settings.oidc_limits)),  # type: ignore[arg-type]  # names of its rates only
    )
    keys = KeySets(
        reader_of(settings.oidc_jwks, client),
        name=where(settings.oidc_jwks),
        clock=time.monotonic,
    )
    return TokenVerifier(trust, keys, now=lambda: datetime.now(UTC))
