"""API keys: what they are, how their secrets are made and recognised, and when one is good.  Pure."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from gateway.errors import INVALID_API_KEY
from gateway.limits.key_limits import UNLIMITED, KeyLimits
from kala.common.v1 import options_pb2
from kala.errors import InvalidArgumentError, UnauthenticatedError

SECRET_PREFIX: Final = "kala_"
"""Lets people and secret scanners recognise a key."""

SECRET_BYTES: Final = 32
"""256 random bits: the secret cannot be guessed, so a plain SHA-256 of it is safe to store."""

SHOWN_CHARS: Final = 12
"""What is stored of the secret in clear, to recognise a key by: the prefix and 42 bits."""

ID_BYTES: Final = 8
MAX_DISPLAY_NAME_CHARS: Final = 128
DEFAULT_TENANT: Final = "default"

_SECRET: Final = re.compile(r"kala_[A-Za-z0-9_-]{43}")
_TENANT: Final = re.compile(r"[a-z0-9-]{1,64}")

SCOPES: Final = {
    "chat": options_pb2.SCOPE_CHAT,
    "tools": options_pb2.SCOPE_TOOLS,
    "train": options_pb2.SCOPE_TRAIN,
    "audit.read": options_pb2.SCOPE_AUDIT_READ,
    "audit.erase": options_pb2.SCOPE_AUDIT_ERASE,
    "admin": options_pb2.SCOPE_ADMIN,
}
"""The scopes a key can hold, by the names that people write; INTERNAL and PUBLIC are nobody's to give."""

SCOPE_NAMES: Final[dict[int, str]] = {number: name for name, number in SCOPES.items()}

Randomness = Callable[[int], bytes]


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key without its secret."""

    id: str
    display_name: str
    tenant: str
    scopes: frozenset[int]  # numbers of kala.common.v1.Scope
    prefix: str
    created_at: datetime
    expires_at: datetime | None = None
    revoked_at: datetime | None = None
    last_used_at: datetime | None = None
    limits: KeyLimits = UNLIMITED

    @property
    def name(self) -> str:
        """The resource name."""
        return f"keys/{self.id}"

    def has_ended(self, now: datetime) -> bool:
        """Tell whether the key is revoked or expired."""
        return self.revoked_at is not None or (self.expires_at is not None and now >= self.expires_at)


@dataclass(frozen=True, slots=True)
class CreatedKey:
    """A new key and its secret, which exists nowhere else."""

    key: ApiKey
    secret: str

    @property
    def id(self) -> str:
        """The key's id."""
        return self.key.id


def make_key(
    *,
    display_name: str,
    scopes: Iterable[int],
    tenant: str = "",
    ttl: timedelta | None = None,
    limits: KeyLimits = UNLIMITED,
    now: datetime,
    randomness: Randomness,
) -> CreatedKey:
    """Make a key, or raise InvalidArgumentError that names the field."""
    if ttl is not None and ttl < timedelta(seconds=1):
        raise InvalidArgumentError("ttl", "must be at least 1 s; leave it out for a key that never ends")
    secret = SECRET_PREFIX + base64.urlsafe_b64encode(randomness(SECRET_BYTES)).rstrip(b"=").decode()
    key = ApiKey(
        id=randomness(ID_BYTES).hex(),
        display_name=checked_display_name(display_name),
        tenant=checked_tenant(tenant or DEFAULT_TENANT),
        scopes=_checked_scopes(scopes),
        prefix=secret[:SHOWN_CHARS],
        created_at=now,
        expires_at=None if ttl is None else _end(now, ttl),
        limits=limits,
    )
    return CreatedKey(key, secret)


def checked_display_name(name: str) -> str:
    """Give it back, or raise InvalidArgumentError."""
    if not 1 <= len(name) <= MAX_DISPLAY_NAME_CHARS:
        raise InvalidArgumentError("display_name", f"must have 1 to {MAX_DISPLAY_NAME_CHARS} characters")
    return name


_INCORRECT: Final = "Incorrect API key provided"
"""As OpenAI begins it: clients, LiteLLM among them, tell this error from others by the words."""


def hash_secret(secret: str) -> bytes | None:
    """Give the digest under which a secret is stored, or None for what cannot be one."""
    return hashlib.sha256(secret.encode()).digest() if _SECRET.fullmatch(secret) else None


def require_good(key: ApiKey | None, now: datetime) -> ApiKey:
    """Give the key back when it may be used now; else raise UnauthenticatedError that says why not."""
    if key is None:
        raise UnauthenticatedError(
            f"{_INCORRECT}: it is not known here; check it, or create one", reason=INVALID_API_KEY
        )
    if key.revoked_at is not None:
        raise UnauthenticatedError(
            f"{_INCORRECT}: {key.prefix}… was revoked; use another", reason=INVALID_API_KEY
        )
    if key.has_ended(now):
        raise UnauthenticatedError(
            f"{_INCORRECT}: {key.prefix}… expired on {key.expires_at:%Y-%m-%d %H:%M:%S} UTC; create another",
            reason=INVALID_API_KEY,
        )
    return key


def scope_numbers(names: Iterable[str]) -> frozenset[int]:
    """Read scopes by the names that people write, or raise InvalidArgumentError that lists them."""
    unknown = [name for name in names if name not in SCOPES]
    if unknown:
        raise InvalidArgumentError("scopes", f"{unknown[0]!r} is not one of {', '.join(SCOPES)}")
    return frozenset(SCOPES[name] for name in names)


def _checked_scopes(scopes: Iterable[int]) -> frozenset[int]:
    given = frozenset(scopes)
    if not given:
        raise InvalidArgumentError("scopes", "must name at least one scope")
    if not given <= set(SCOPE_NAMES):
        raise InvalidArgumentError("scopes", f"may hold only {', '.join(SCOPES)}")
    return given


def checked_tenant(tenant: str) -> str:
    """Give it back, or raise InvalidArgumentError."""
    if not _TENANT.fullmatch(tenant):
        raise InvalidArgumentError("tenant", "must have 1 to 64 characters of a-z, 0-9 and -")
    return tenant


def _end(now: datetime, ttl: timedelta) -> datetime:
    try:
        return now + ttl
    except OverflowError as error:
        raise InvalidArgumentError(
            "ttl", "ends after the year 9999; leave it out for a key that never ends"
        ) from error
