"""Whose tokens a gateway takes, and what may be a token at all.  Pure, and cheap to import where no provider is trusted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import PurePath
from typing import Final
from urllib.parse import urlsplit

from gateway.keys import SECRET_PREFIX
from gateway.limits.key_limits import UNLIMITED, KeyLimits
from kala.errors import InvalidArgumentError

ALGORITHMS: Final = (
    "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA", "Ed25519",
)  # fmt: skip
"""Signatures with a public key only: `none` proves nothing, and with HS* a public key would be the secret."""

KEY_PREFIX: Final = "oidc-"

_PARTS: Final = 3


@dataclass(frozen=True, slots=True)
class Trust:
    """Whose tokens are good here, and what their claims mean."""

    issuer: str
    audience: str
    algorithms: tuple[str, ...]
    roles_claim: str = "roles"
    """A path with dots, as `realm_access.roles`."""
    tenant_claim: str = ""
    """Empty where all belong to the default tenant."""
    role_map: Mapping[str, str] = field(default_factory=dict)
    """Our role by the provider's; empty where the provider knows ours."""
    limits: KeyLimits = UNLIMITED
    """Of each person."""


def is_token(authorization: str) -> bool:
    """Tell whether a header brings a token, not a key."""
    kind, _, credential = authorization.partition(" ")
    credential = credential.strip()
    return (
        kind.lower() == "bearer"
        and not credential.startswith(SECRET_PREFIX)
        and credential.count(".") == _PARTS - 1
    )


def checked_algorithms(algorithms: tuple[str, ...]) -> tuple[str, ...]:
    """Give them back, or raise InvalidArgumentError."""
    for algorithm in algorithms:
        if algorithm not in ALGORITHMS:
            raise InvalidArgumentError(
                "oidc_algorithms", f"{algorithm!r} is not one of {', '.join(ALGORITHMS)}"
            )
    if not algorithms:
        raise InvalidArgumentError("oidc_algorithms", "must name one or more")
    return algorithms


def checked_source(source: str) -> str:
    """Give it back, or raise InvalidArgumentError: keys come from a file, over https, or from this machine."""
    if "://" not in source:
        return source
    parts = urlsplit(source)
    if parts.scheme == "https" or (parts.scheme == "http" and _is_here(parts.hostname or "")):
        return source
    raise InvalidArgumentError("oidc_jwks", "must be a file or begin with https://")


def where(source: str) -> str:
    """Name a source in errors and logs: a URL's server without credentials and query, or a file by its name alone."""
    if "://" not in source:
        return PurePath(source).name
    parts = urlsplit(source)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _is_here(host: str) -> bool:
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False
