"""The gateway's own RPCs for API keys; each change is in the log before it happens."""

from __future__ import annotations

import asyncio
import base64
import hmac
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

from gateway.edge import Exchange
from gateway.identity import Caller, Pseudonyms
from gateway.key_ring import KeyRing
from gateway.key_store import KeyStore, position
from gateway.keys import SCOPE_NAMES, ApiKey, Randomness, hash_secret, make_key
from gateway.ledger import Ledger
from kala.common.v1 import paging_pb2
from kala.errors import InternalError, InvalidArgumentError, NotFoundError, PermissionDeniedError
from kala.gateway.v1 import gateway_pb2

if TYPE_CHECKING:
    from gateway.bridge import LocalHandler

SERVICE: Final = "/kala.gateway.v1.KeysService/"
CREATE: Final = SERVICE + "CreateKey"
LIST: Final = SERVICE + "ListKeys"
REVOKE: Final = SERVICE + "RevokeKey"

DEFAULT_PAGE: Final = 100
MAX_PAGE: Final = 1000
TOKEN_LIFETIME: Final = timedelta(hours=1)
_SEAL_BYTES: Final = 32


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
    ) -> None:
        self._store = store
        self._ring = ring
        self._ledger = ledger
        self._pseudonyms = pseudonyms
        self._now = now
        self._randomness = randomness

    @property
    def handlers(self) -> dict[str, LocalHandler]:
        """Give the RPCs by name, for the bridge."""
        return {CREATE: self.create, LIST: self.list, REVOKE: self.revoke}

    async def create(
        self, request: gateway_pb2.CreateKeyRequest, caller: Caller, exchange: Exchange
    ) -> gateway_pb2.CreateKeyResponse:
        """Make a key with scopes that the caller holds itself: an administrator cannot make itself an auditor."""
        beyond = [scope for scope in request.scopes if scope in SCOPE_NAMES and not caller.has_scope(scope)]
        if beyond:
            raise PermissionDeniedError(
                f"a key can only give scopes that it holds; yours lacks {SCOPE_NAMES[beyond[0]]!r}"
            )
        created = make_key(
            display_name=request.display_name,
            scopes=request.scopes,
            tenant=request.tenant,
            ttl=request.ttl.ToTimedelta() if request.HasField("ttl") else None,
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
        size = request.page_size or DEFAULT_PAGE
        if not 1 <= size <= MAX_PAGE:
            raise InvalidArgumentError("page_size", f"must be 1 to {MAX_PAGE}")
        live_at = None if request.include_ended else self._now()
        after = self._read_token(request) if request.page_token else None
        keys = await asyncio.to_thread(lambda: self._store.list(limit=size + 1, after=after, live_at=live_at))
        return gateway_pb2.ListKeysResponse(
            keys=[key_message(key) for key in keys[:size]],
            next_page_token=self._write_token(request, keys[size - 1]) if len(keys) > size else "",
        )

    async def revoke(
        self, request: gateway_pb2.RevokeKeyRequest, caller: Caller, exchange: Exchange
    ) -> gateway_pb2.RevokeKeyResponse:
        """End a key: here at once, on other replicas within 5 s."""
        key_id = request.name.removeprefix("keys/")
        key = await asyncio.to_thread(self._store.find, key_id)
        if key is None:
            raise NotFoundError(f"there is no key {request.name[:64]!r}")
        await self._log(exchange, caller, REVOKE, key)
        ended = await asyncio.to_thread(self._store.revoke, key_id, self._now())
        self._ring.forget(key_id)
        return gateway_pb2.RevokeKeyResponse(key=key_message(ended or key))

    async def _log(self, exchange: Exchange, caller: Caller, rpc: str, key: ApiKey) -> None:
        facts = {
            "args.key": key.name,
            "args.tenant": key.tenant,
            "args.scopes": " ".join(sorted(SCOPE_NAMES[scope] for scope in key.scopes)),
        }
        exchange.receipt = await self._ledger.administered(
            caller, rpc=rpc, facts=facts, request_id=exchange.request_id, trace_id=exchange.trace_id
        )

    def _write_token(self, request: gateway_pb2.ListKeysRequest, last: ApiKey) -> str:
        micros, key_id = position(last)
        token = paging_pb2.PageToken(
            rpc=LIST, filter_digest=_filter(request), after=f"{micros}:{key_id}".encode()
        )
        token.expires_at.FromDatetime(self._now() + TOKEN_LIFETIME)
        data = token.SerializeToString(deterministic=True)
        return base64.urlsafe_b64encode(self._pseudonyms.seal(data) + data).decode()

    def _read_token(self, request: gateway_pb2.ListKeysRequest) -> tuple[int, str]:
        try:
            sealed = base64.b64decode(request.page_token, altchars=b"-_", validate=True)
        except ValueError as error:
            raise _bad_token("is not one that this service gave") from error
        seal, data = sealed[:_SEAL_BYTES], sealed[_SEAL_BYTES:]
        if not hmac.compare_digest(seal, self._pseudonyms.seal(data)):
            raise _bad_token("is not one that this service gave")
        token = paging_pb2.PageToken.FromString(data)
        if token.rpc != LIST or token.filter_digest != _filter(request):
            raise _bad_token("belongs to another query")
        if self._now() >= token.expires_at.ToDatetime(UTC):
            raise _bad_token("has expired; begin again without it")
        micros, _, key_id = token.after.decode().partition(":")
        return int(micros), key_id


def key_message(key: ApiKey) -> gateway_pb2.Key:
    """Write a key as the contract has it."""
    message = gateway_pb2.Key(
        name=key.name,
        display_name=key.display_name,
        # Keys hold only values of the contract's enum.
        scopes=sorted(key.scopes),  # type: ignore[arg-type]
        tenant=key.tenant,
        prefix=key.prefix,
    )
    message.created_at.FromDatetime(key.created_at)
    for field in ("expires_at", "revoked_at", "last_used_at"):
        time = getattr(key, field)
        if time is not None:
            getattr(message, field).FromDatetime(time)
    return message


def _filter(request: gateway_pb2.ListKeysRequest) -> bytes:
    return b"all" if request.include_ended else b"live"


def _bad_token(problem: str) -> InvalidArgumentError:
    return InvalidArgumentError("page_token", problem)
