"""The identity provider's public keys, from a file or its URL: bounded, remembered for a while, and never older than an hour."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

import httpx
import structlog
from joserfc.errors import JoseError
from joserfc.jwk import ECKey, Key, KeySet, OKPKey, RSAKey, import_key

from kala.errors import InvalidArgumentError, UnavailableError

OIDC_UNAVAILABLE: Final = "OIDC_UNAVAILABLE"

MAX_BYTES: Final = 256 * 1024
"""A hundred keys with their certificates."""

MAX_KEYS: Final = 100
FETCH_SECONDS: Final = 5.0
FRESH_SECONDS: Final = 300.0
"""How long keys are used without asking again; a key that is withdrawn counts no longer."""

KEPT_SECONDS: Final = 3600.0
"""How long keys are used while the provider does not answer; then nobody it vouches for gets in."""

TRY_EVERY_SECONDS: Final = 10.0
"""How often the provider is asked at most: whoever makes up names of keys must not make us ask at every request."""

MIN_RSA_BITS: Final = 2048

Read = Callable[[], Awaitable[bytes]]


class KeySets:
    """The keys as they are now."""

    def __init__(self, read: Read, *, name: str, clock: Callable[[], float]) -> None:
        self._read = read
        self._name = name
        self._clock = clock
        self._keys: KeySet | None = None
        self._read_at = 0.0
        self._tried_at: float | None = None
        self._reading = asyncio.Lock()

    async def holding(self, key_id: str | None) -> KeySet:
        """Give the keys, asked for anew where they are old or do not hold this one; UnavailableError without any."""
        if not self._holds(key_id) or (self._is_old() and not self._reading.locked()):
            async with self._reading:
                if (self._is_old() or not self._holds(key_id)) and not self._has_just_tried():
                    await self._refresh()
        if self._keys is None or self._clock() - self._read_at > KEPT_SECONDS:
            raise UnavailableError(
                f"the keys of the identity provider ({self._name}) cannot be read; see the gateway's log, or use an API key",
                reason=OIDC_UNAVAILABLE,
            )
        return self._keys

    def _holds(self, key_id: str | None) -> bool:
        return self._keys is not None and (key_id is None or any(key.kid == key_id for key in self._keys))

    def _is_old(self) -> bool:
        return self._keys is None or self._clock() - self._read_at >= FRESH_SECONDS

    def _has_just_tried(self) -> bool:
        return self._tried_at is not None and self._clock() - self._tried_at < TRY_EVERY_SECONDS

    async def _refresh(self) -> None:
        self._tried_at = self._clock()
        try:
            async with asyncio.timeout(FETCH_SECONDS):
                self._keys = read_keys(await self._read())
        except (httpx.HTTPError, OSError, TimeoutError, InvalidArgumentError) as error:
            structlog.get_logger().warning(
                "the identity provider's keys are not read", source=self._name, error=str(error)[:200]
            )
            return
        self._read_at = self._clock()


def read_keys(data: bytes) -> KeySet:
    """Read a JWK set (RFC 7517 section 5); keys for other uses, secrets and short RSA keys are left out."""
    try:
        entries = json.loads(data)["keys"]
        given = [entry for entry in entries if isinstance(entry, dict)][: MAX_KEYS + 1]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InvalidArgumentError("oidc_jwks", "is not a JWK set") from error
    if len(given) > MAX_KEYS:
        raise InvalidArgumentError("oidc_jwks", f"has more than {MAX_KEYS} keys")
    keys: list[Key] = [key for entry in given if (key := _public_key(entry)) is not None]
    if not keys:
        raise InvalidArgumentError("oidc_jwks", "has no public key for signatures")
    return KeySet(keys)


def reader_of(source: str, client: httpx.AsyncClient) -> Read:
    """Give what reads a file or a URL."""
    if "://" not in source:
        return lambda: asyncio.to_thread(_read_file, Path(source).expanduser())

    async def fetch() -> bytes:
        data = b""
        async with client.stream("GET", source, follow_redirects=False) as response:
            if response.status_code != httpx.codes.OK:
                raise InvalidArgumentError("oidc_jwks", f"was answered with {response.status_code}")
            async for part in response.aiter_bytes():
                data += part
                _check_size(data)
        return data

    return fetch


def _public_key(entry: dict[str, object]) -> RSAKey | ECKey | OKPKey | None:
    if str(entry.get("kty")) not in {"RSA", "EC", "OKP"} or entry.get("use", "sig") != "sig":
        return None
    try:
        key = import_key({name: str(value) for name, value in entry.items() if isinstance(value, str)})
        if isinstance(key, RSAKey) and key.public_key.key_size < MIN_RSA_BITS:
            return None
    except (JoseError, ValueError, TypeError):
        return None
    return key if isinstance(key, RSAKey | ECKey | OKPKey) else None


def _read_file(path: Path) -> bytes:
    with path.open("rb") as file:
        data = file.read(MAX_BYTES + 1)
    _check_size(data)
    return data


def _check_size(data: bytes) -> None:
    if len(data) > MAX_BYTES:
        raise InvalidArgumentError("oidc_jwks", f"is larger than {MAX_BYTES} bytes")
