"""Verifies identity providers' tokens (RFC 7519, RFC 9068) and gives the key that their holder acts with."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Final

from joserfc import jwt
from joserfc.errors import ExpiredTokenError, JoseError

from gateway.errors import INVALID_API_KEY
from gateway.keys import DEFAULT_TENANT, ApiKey, checked_tenant
from gateway.oidc.key_sets import KeySets
from gateway.oidc.trust import KEY_PREFIX, Trust
from gateway.roles import ROLES, scopes_of
from kala.errors import InvalidArgumentError, UnauthenticatedError

SKEW_SECONDS: Final = 5
MAX_TOKEN_CHARS: Final = 8192
MAX_SUBJECT_CHARS: Final = 255
"""As OpenID Connect bounds it."""

_ID_CHARS: Final = 32
_TYPES: Final = frozenset({"jwt", "at+jwt", "application/at+jwt"})


class TokenVerifier:
    """Admits holders of tokens; one per process."""

    def __init__(self, trust: Trust, keys: KeySets, *, now: Callable[[], datetime]) -> None:
        self._trust = trust
        self._keys = keys
        self._now = now

    async def verify(self, token: str) -> ApiKey:
        """Give the key that stands for a token's holder; UnauthenticatedError says what is wrong with the token."""
        header = _header_of(token)
        if header.get("alg") not in self._trust.algorithms:
            raise _refused(f"is signed with {str(header.get('alg'))[:16]!r}, which is not accepted")
        if str(header.get("typ", "JWT")).lower() not in _TYPES:
            raise _refused("is of another type than JWT or at+jwt")
        key_id = header.get("kid")
        keys = await self._keys.holding(key_id if isinstance(key_id, str) else None)
        if key_id is None and len(keys.keys) > 1:
            raise _refused("does not name its key (`kid`)")
        try:
            claims = jwt.decode(token, keys, algorithms=self._trust.algorithms).claims
            self._claims().validate(claims)
        except ExpiredTokenError as error:
            raise _refused("has expired; get another") from error
        except (JoseError, ValueError, TypeError, RecursionError) as error:
            # The library's words name the claim or the check, never content.
            raise _refused(f"does not verify ({str(error)[:100]})") from error
        return self._key_of(claims)

    def _claims(self) -> jwt.JWTClaimsRegistry:
        return jwt.JWTClaimsRegistry(
            now=int(self._now().timestamp()),
            leeway=SKEW_SECONDS,
            iss={"essential": True, "value": self._trust.issuer},
            aud={"essential": True, "value": self._trust.audience},
            sub={"essential": True},
            exp={"essential": True},
        )

    def _key_of(self, claims: Mapping[str, Any]) -> ApiKey:  # Any: JSON
        subject = claims["sub"]
        if len(subject) > MAX_SUBJECT_CHARS:
            raise _refused(f"has a subject of more than {MAX_SUBJECT_CHARS} characters")
        tenant = self._tenant(claims)
        named = json.dumps([self._trust.issuer, tenant, subject]).encode()
        key_id = KEY_PREFIX + hashlib.sha256(named).hexdigest()[:_ID_CHARS]
        return ApiKey(
            id=key_id,
            display_name="",
            tenant=tenant,
            scopes=scopes_of(self._roles(claims)),
            prefix=key_id[: len(KEY_PREFIX) + 8],
            created_at=self._now(),
            expires_at=datetime.fromtimestamp(min(claims["exp"], _LAST_SECOND), UTC),
            limits=self._trust.limits,
        )

    def _tenant(self, claims: Mapping[str, Any]) -> str:  # Any: JSON
        if not self._trust.tenant_claim:
            return DEFAULT_TENANT
        tenant = _claim(claims, self._trust.tenant_claim)
        try:
            return checked_tenant(tenant if isinstance(tenant, str) else "")
        except InvalidArgumentError as error:
            raise _refused(f"names no tenant in {self._trust.tenant_claim!r}: {error.problem}") from error

    def _roles(self, claims: Mapping[str, Any]) -> list[str]:  # Any: JSON
        """Give our roles of a token; what else it names is another system's."""
        given = _claim(claims, self._trust.roles_claim)
        names = given.split() if isinstance(given, str) else given if isinstance(given, list) else []
        known = self._trust.role_map or {role: role for role in ROLES}
        return [known[name] for name in names if isinstance(name, str) and name in known]


_LAST_SECOND: Final = 253402300799
"""The end of the year 9999, where the calendar ends."""


def _header_of(token: str) -> dict[str, Any]:  # Any: JSON
    if len(token) > MAX_TOKEN_CHARS:
        raise _refused(f"has more than {MAX_TOKEN_CHARS} characters")
    part = token.partition(".")[0]
    try:
        header = json.loads(base64.b64decode(part + "=" * (-len(part) % 4), altchars=b"-_", validate=True))
    except (ValueError, RecursionError) as error:
        raise _refused("is no JWT") from error
    if not isinstance(header, dict):
        raise _refused("is no JWT")
    return header


def _claim(claims: Mapping[str, Any], path: str) -> Any:  # Any: JSON
    # A name may hold dots itself, as `https://example.org/roles` does.
    if path in claims:
        return claims[path]
    value: Any = claims
    for name in path.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def _refused(problem: str) -> UnauthenticatedError:
    return UnauthenticatedError(f"the token {problem}", reason=INVALID_API_KEY)
