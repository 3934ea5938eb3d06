"""Looks keys up without a database on the way of a request, and forgets soon enough that a revocation counts.

A key revoked in this process is refused at once; one revoked elsewhere within `cache_seconds` (at most 4, so 5 with
the look-up).
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from gateway.errors import INVALID_API_KEY
from gateway.key_store import KeyStore
from gateway.keys import ApiKey, hash_secret, require_good
from kala.errors import UnauthenticatedError, UnavailableError

MAX_REMEMBERED: Final = 4096
"""Of keys, and as many secrets of no key: who tries random ones must not have the good ones looked up anew."""

LAST_USED_EVERY: Final = timedelta(minutes=1)
"""`last_used_at` is true to the minute; a write per request would put the database on its way."""

_BEARER: Final = "bearer "


@dataclass(frozen=True, slots=True)
class _Remembered:
    key: ApiKey | None
    until: float


class KeyRing:
    """Finds the key behind an Authorization header."""

    def __init__(
        self,
        store: KeyStore,
        *,
        cache_seconds: float,
        clock: Callable[[], float],
        now: Callable[[], datetime],
    ) -> None:
        self._store = store
        self._cache_seconds = cache_seconds
        self._clock = clock
        self._now = now
        self._remembered: OrderedDict[bytes, _Remembered] = OrderedDict()
        self._strange: OrderedDict[bytes, _Remembered] = OrderedDict()
        self._revocations = 0

    async def authenticate(self, authorization: str) -> ApiKey:
        """Give the key of `Bearer <secret>`, or raise UnauthenticatedError that says what is wrong with it."""
        digest = hash_secret(_secret_in(authorization))
        key = None if digest is None else await self._find(digest)
        return require_good(key, self._now())

    async def require(self, key_id: str) -> ApiKey:
        """Give a key as it stands now by its id, or raise UnauthenticatedError; never from memory."""
        return require_good(await asyncio.to_thread(self._store.find, key_id), self._now())

    def forget(self, key_id: str) -> None:
        """Look a key up anew on its next use; called when it is revoked here."""
        self._revocations += 1
        for digest, remembered in list(self._remembered.items()):
            if remembered.key is not None and remembered.key.id == key_id:
                del self._remembered[digest]

    async def _find(self, digest: bytes) -> ApiKey | None:
        remembered = self._remembered.get(digest) or self._strange.get(digest)
        if remembered is not None and self._clock() < remembered.until:
            return remembered.key
        revocations = self._revocations
        key = await asyncio.to_thread(self._look_up, digest)
        if revocations != self._revocations:
            # Read perhaps before the revocation: good for this request, which came before it, and for no other.
            return key
        memory = self._strange if key is None else self._remembered
        memory[digest] = _Remembered(key, self._clock() + self._cache_seconds)
        memory.move_to_end(digest)
        if len(memory) > MAX_REMEMBERED:
            memory.popitem(last=False)
        return key

    def _look_up(self, digest: bytes) -> ApiKey | None:
        key = self._store.find_by_secret(digest)
        now = self._now()
        if key is not None and not key.has_ended(now) and _is_stale(key.last_used_at, now):
            try:
                self._store.mark_used(key.id, now)
            except UnavailableError:
                # A database that can be read but not written must not keep people out.
                return key
        return key


def _is_stale(last_used_at: datetime | None, now: datetime) -> bool:
    return last_used_at is None or now - last_used_at >= LAST_USED_EVERY


def _secret_in(authorization: str) -> str:
    if not authorization:
        raise UnauthenticatedError(
            "no API key: send the header `Authorization: Bearer kala_…`", reason=INVALID_API_KEY
        )
    if authorization[: len(_BEARER)].lower() != _BEARER:
        raise UnauthenticatedError(
            "the Authorization header must read `Bearer kala_…`", reason=INVALID_API_KEY
        )
    return authorization[len(_BEARER) :].strip()
