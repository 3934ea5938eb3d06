"""The gateway's own RPCs for API keys; each change is in the log before it happens."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING, Final

from gateway.edge import Exchange
from gateway.identity import Caller, Pseudonyms
from gateway.key_ring import KeyRing
from gateway.key_store import KeyStore, position
from gateway.keys import (
    SCOPE_NAMES,
    ApiKey,
    Randomness,
    checked_display_name,
    hash_secret,
    make_key,
)
from gateway.ledger import Ledger
from gateway.limits.key_limits import UNLIMITED
from gateway.limits.messages import read_limits, write_limits
from gateway.page_tokens import PageTokens, page_size
from gateway.roles import scopes_of
from kala.errors import InternalError, InvalidArgumentError, NotFoundError, PermissionDeniedError
from kala.gateway.v1 import gateway_pb2

if TYPE_CHECKING:
    from gateway.bridge import LocalHandler

SERVICE: Final = "/kala.gateway.v1.KeysService/"
CREATE: Final = SERVICE + "CreateKey"
LIST: Final = SERVICE + "ListKeys"
UPDATE: Final = SERVICE + "UpdateKey"
REVOKE: Final = SERVICE + "RevokeKey"

_CHANGEABLE: Final = ("display_name", "limits")


class KeysService:
    """Creates, lists and revokes keys."""

    def __init__(
        self,
        *,
        store: KeyStore,
        ring: KeyRing,
        ledger: Ledger,
        pseudonyms: Pseudonyms,
        now: Callable[[], datetime],
        randomness: Randomness,
        has_prices: bool,
    ) -> None:
        self._store = store
        self._ring = ring
        self._ledger = ledger
        self._now = now
        self._randomness = randomness
        self._has_prices = has_prices
        self._tokens = PageTokens(pseudonyms, now)

    @property
    def handlers(self) -> dict[str, LocalHandler]:
        """Give the RPCs by name, for the bridge."""
        return {CREATE: self.create, LIST: self.list, UPDATE: self.update, REVOKE: self.revoke}

    async def create(
        self, request: gateway_pb2.CreateKeyRequest, caller: Caller, exchange: Exchange
    ) -> gateway_pb2.CreateKeyResponse:
        """Make a key with scopes that the caller holds itself: an administrator cannot make itself an auditor."""
        scopes = {*request.scopes, *scopes_of(request.roles)}
        beyond = [scope for scope in sorted(scopes) if scope in SCOPE_NAMES and not caller.has_scope(scope)]
        if beyond:
            raise PermissionDeniedError(
                f"a key can only give scopes that it holds; yours lacks {SCOPE_NAMES[beyond[0]]!r}"
            )
        created = make_key(
            display_name=request.display_name,
            scopes=scopes,
            tenant=request.tenant,
            ttl=request.ttl.ToTimedelta() if request.HasField("ttl") else None,
            limits=read_limits(request.limits, has_prices=self._has_prices),
            now=self._now(),
            randomness=self._randomness,
        )
        digest = hash_secret(created.secret)
        if digest is None:
            raise InternalError("a new secret does not have the form of secrets")
        await self._log(exchange, caller, CREATE, created.key)
        await asyncio.to_thread(self._store.insert, created.key, digest)
        return gateway_pb2.CreateKeyResponse(key=key_message(created.key), secret=created.secret)

    async def list(
        self, request: gateway_pb2.ListKeysRequest, _caller: Caller, _exchange: Exchange
    ) -> gateway_pb2.ListKeysResponse:
        """List keys, the newest first."""
        size = page_size(request.page_size)
        live_at = None if request.include_ended else self._now()
        after = None
        if request.page_token:
            created, _, key_id = (
                self._tokens.read(request.page_token, LIST, _filter(request)).decode().partition(":")
            )
            after = int(created), key_id
        keys = await asyncio.to_thread(lambda: self._store.list(limit=size + 1, after=after, live_at=live_at))
        token = ""
        if len(keys) > size:
            micros, key_id = position(keys[size - 1])
            token = self._tokens.write(LIST, _filter(request), f"{micros}:{key_id}".encode())
        return gateway_pb2.ListKeysResponse(
            keys=[key_message(key) for key in keys[:size]], next_page_token=token
        )

    async def update(
        self, request: gateway_pb2.UpdateKeyRequest, caller: Caller, exchange: Exchange
    ) -> gateway_pb2.UpdateKeyResponse:
        """Change what a key is for and how much it may use: here at once, on other replicas within 5 s."""
        paths = set(request.update_mask.paths)
        if not paths or not paths <= set(_CHANGEABLE):
            raise InvalidArgumentError("update_mask", f"must name one or more of {', '.join(_CHANGEABLE)}")
        name = checked_display_name(request.display_name) if "display_name" in paths else None
        limits = read_limits(request.limits, has_prices=self._has_prices) if "limits" in paths else None
        key = await self._find(request.name)
        changed = replace(
            key,
            display_name=key.display_name if name is None else name,
            limits=key.limits if limits is None else limits,
        )
        await self._log(exchange, caller, UPDATE, changed, changes=paths)
        after = await asyncio.to_thread(lambda: self._store.change(key.id, display_name=name, limits=limits))
        self._ring.forget(key.id)
        return gateway_pb2.UpdateKeyResponse(key=key_message(after or changed))

    async def revoke(
        self, request: gateway_pb2.RevokeKeyRequest, caller: Caller, exchange: Exchange
    ) -> gateway_pb2.RevokeKeyResponse:
        """End a key: here at once, on other replicas within 5 s."""
        key = await self._find(request.name)
        await self._log(exchange, caller, REVOKE, key)
        ended = await asyncio.to_thread(self._store.revoke, key.id, self._now())
        self._ring.forget(key.id)
        return gateway_pb2.RevokeKeyResponse(key=key_message(ended or key))

    async def _find(self, name: str) -> ApiKey:
        key = await asyncio.to_thread(self._store.find, name.removeprefix("keys/"))
        if key is None:
            raise NotFoundError(f"there is no key {name[:64]!r}")
        return key

    async def _log(
        self, exchange: Exchange, caller: Caller, rpc: str, key: ApiKey, *, changes: Collection[str] = ()
    ) -> None:
        facts = {
            "args.key": key.name,
            "args.tenant": key.tenant,
            "args.scopes": " ".join(sorted(SCOPE_NAMES[scope] for scope in key.scopes)),
        }
        if changes:
            facts["args.changes"] = " ".join(sorted(changes))
        if "limits" in changes or (rpc == CREATE and key.limits != UNLIMITED):
            # Also where they are lifted: then all of it is null and empty.
            facts["args.limits"] = key.limits.to_json()
        if rpc == CREATE and key.expires_at is not None:
            facts["args.expires_at"] = key.expires_at.isoformat()
        exchange.receipt = await self._ledger.administered(
            caller, rpc=rpc, facts=facts, request_id=exchange.request_id, trace_id=exchange.trace_id
        )


def key_message(key: ApiKey) -> gateway_pb2.Key:
    """Write a key as the contract has it."""
    message = gateway_pb2.Key(
        name=key.name,
        display_name=key.display_name,
        # Keys hold only values of the contract's enum.
        scopes=sorted(key.scopes),  # type: ignore[arg-type]
        tenant=key.tenant,
        prefix=key.prefix,
        limits=None if key.limits == UNLIMITED else write_limits(key.limits),
    )
    message.created_at.FromDatetime(key.created_at)
    for field in ("expires_at", "revoked_at", "last_used_at"):
        time = getattr(key, field)
        if time is not None:
            getattr(message, field).FromDatetime(time)
    return message


def _filter(request: gateway_pb2.ListKeysRequest) -> bytes:
    return b"all" if request.include_ended else b"live"
