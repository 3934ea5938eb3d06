"""Lets callers in: a good key, the scope, and room. Whoever is turned away leaves a record."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

from gateway.edge import Exchange
from gateway.identity import Caller, Pseudonyms
from gateway.key_ring import KeyRing
from gateway.keys import SCOPE_NAMES, ApiKey
from gateway.ledger import Ledger
from gateway.limits.estimates import NOTHING, Estimate
from gateway.limits.reservation import Limiter, OverLimitError, Reservation
from gateway.oidc.trust import is_token
from gateway.pipeline import Recorded
from kala.common.v1 import options_pb2
from kala.errors import (
    DeadlineExceededError,
    PermissionDeniedError,
    ResourceExhaustedError,
    UnauthenticatedError,
)

if TYPE_CHECKING:
    from gateway.oidc.tokens import TokenVerifier

ANONYMOUS_RECORDS_PER_SECOND: Final = 10.0
ANONYMOUS_BURST: Final = 100.0
"""Strangers get one record each up to this rate; above it they are counted, and the next record says how many there
were, so that nobody can fill the log's disk without a key."""


MOST_BODY_BYTES: Final = 1024 * 1024 * 1024
"""As much as 256 requests of the largest size without images: 4,096 connections could else bring 128 GiB."""


class AnonymousBudget:
    """A token bucket that counts what it turns away."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._tokens = ANONYMOUS_BURST
        self._filled_at = clock()
        self._missed = 0

    def take(self) -> int | None:
        """Give how many were missed since the last record, when there is room for one now; else None."""
        now = self._clock()
        self._tokens = min(
            ANONYMOUS_BURST, self._tokens + (now - self._filled_at) * ANONYMOUS_RECORDS_PER_SECOND
        )
        self._filled_at = now
        if self._tokens < 1:
            self._missed += 1
            return None
        self._tokens -= 1
        missed, self._missed = self._missed, 0
        return missed


class Room:
    """The places for acts that run now; entered with `with`, left at its end."""

    def __init__(self, places: int) -> None:
        self._free = places

    def __enter__(self) -> None:
        if self._free < 1:
            raise ResourceExhaustedError(
                "too many requests are running; try again in a second", retry_after_seconds=1.0
            )
        self._free -= 1

    def __exit__(self, *_failure: object) -> None:
        self._free += 1


class BodyRoom:
    """Room for the bodies of all requests that are read or answered; who has no place yet holds a body already."""

    def __init__(self, most_bytes: int = MOST_BODY_BYTES) -> None:
        self._most = self._free = most_bytes

    def take(self, size: int) -> None:
        """Take room, or raise ResourceExhaustedError."""
        if size > self._free:
            raise ResourceExhaustedError(
                f"the requests that run hold {self._most} bytes, all that is taken at a time; try again in a second",
                retry_after_seconds=1.0,
            )
        self._free -= size

    def give_back(self, size: int) -> None:
        """Give room back."""
        self._free += size


class Gate:
    """Authenticates and authorises; one per process."""

    def __init__(
        self,
        *,
        ring: KeyRing,
        pseudonyms: Pseudonyms,
        ledger: Ledger,
        limiter: Limiter,
        tokens: TokenVerifier | None = None,
        max_concurrent: int,
        clock: Callable[[], float],
    ) -> None:
        self._ring = ring
        self._pseudonyms = pseudonyms
        self._ledger = ledger
        self._tokens = tokens
        self.limiter = limiter
        self._budget = AnonymousBudget(clock)
        self.room = Room(max_concurrent)
        self.bodies = BodyRoom()

    async def admit(self, exchange: Exchange, *, rpc: str, scope: int) -> ApiKey:
        """Give the caller's key, or log and raise: UnauthenticatedError, or PermissionDeniedError naming the scope.

        Where code of this process acts for a key (`Exchange.acting_key`), that key must be as good now as any caller's.
        """
        try:
            key = await self._authenticate(exchange)
        except UnauthenticatedError as error:
            await self._log_stranger(exchange, rpc, error)
            raise
        exchange.peer = key.name
        if not exchange.acting_key:
            # What acts for a key here has its body already.
            exchange.body_room = self.bodies
        await self.require(exchange, key, rpc=rpc, scope=scope)
        return key

    async def _authenticate(self, exchange: Exchange) -> ApiKey:
        if exchange.acting_key:
            return await self._ring.require(exchange.acting_key)
        authorization = exchange.headers.get("authorization", "")
        if self._tokens is not None and is_token(authorization):
            return await self._tokens.verify(authorization.partition(" ")[2].strip())
        return await self._ring.authenticate(authorization)

    async def require(self, exchange: Exchange, key: ApiKey, *, rpc: str, scope: int) -> None:
        """Log and raise PermissionDeniedError where an authenticated caller's key lacks a scope."""
        if scope not in {options_pb2.SCOPE_PUBLIC, *key.scopes}:
            await self.count(exchange, key)
            denied = PermissionDeniedError(
                f"the API key {key.prefix}… lacks the scope {SCOPE_NAMES.get(scope, 'internal')!r} that this needs"
            )
            exchange.receipt = await self._ledger.denied(
                rpc=rpc,
                error=denied,
                caller=self._pseudonyms.caller(key),
                request_id=exchange.request_id,
                trace_id=exchange.trace_id,
            )
            raise denied

    async def count(self, exchange: Exchange, key: ApiKey) -> None:
        """Count a request that is turned away before it has a place, or raise ResourceExhaustedError.

        Each leaves a record: a key must not leave more of them than it may send requests.
        """
        if exchange.reservation is not None:
            return
        try:
            reservation = await self.limiter.reserve(key, NOTHING)
        except OverLimitError as over:
            exchange.limit_headers = over.headers
            raise
        exchange.limit_headers = reservation.headers
        await self.limiter.close(reservation, actor="", has_failed=True)

    @asynccontextmanager
    async def reserve(
        self, exchange: Exchange, key: ApiKey, estimate: Estimate = NOTHING
    ) -> AsyncIterator[Reservation]:
        """Give an act its room and set aside what it may use, or raise ResourceExhaustedError; settle it inside.

        What raises unsettled has used nothing; what ends unsettled, its client gone or its time over, has used what was
        set aside.
        """
        with self.room:
            try:
                reservation = await self.limiter.reserve(key, estimate)
            except OverLimitError as over:
                exchange.limit_headers = over.headers
                raise
            exchange.limit_headers = reservation.headers
            exchange.reservation = reservation
            has_failed = False
            try:
                yield reservation
            except Exception as error:
                # A caller that sets a short time must not have models work for nothing.
                has_failed = not _is_out_of_time(error)
                raise
            finally:
                actor = self._pseudonyms.key(key.tenant, key.id)
                await self.limiter.close(reservation, actor=actor, has_failed=has_failed)

    def caller(self, key: ApiKey, person: str = "") -> Caller:
        """Name a key's holder and the person it acts for."""
        return self._pseudonyms.caller(key, person)

    async def _log_stranger(self, exchange: Exchange, rpc: str, error: UnauthenticatedError) -> None:
        missed = self._budget.take()
        if missed is not None:
            exchange.receipt = await self._ledger.denied(
                rpc=rpc,
                error=error,
                caller=None,
                request_id=exchange.request_id,
                trace_id=exchange.trace_id,
                coalesced=missed,
            )


def _is_out_of_time(error: Exception) -> bool:
    return isinstance(error.error if isinstance(error, Recorded) else error, DeadlineExceededError)
