"""`GET /kala/v1/audit/log/…`: the log as any tlog client mirrors it (c2sp.org/tlog-tiles), for who holds an API key.

Hashes ask for `audit.read`.  Entries are those of every tenant, so they ask for `admin` besides.  A client that knows no
bearer tokens gives the key as the password of HTTP's basic authentication, which most take from a URL.
"""

from __future__ import annotations

import base64
import binascii
from typing import TYPE_CHECKING, Final

from gateway.app import LOG_PREFIX
from gateway.edge import Exchange
from gateway.gate import Gate
from kala.audit.tile_paths import CHECKPOINT_PATH, TilePath
from kala.audit.v1 import audit_pb2
from kala.common.v1 import options_pb2
from kala.errors import NotFoundError, VerificationError
from services.common.principals import principal_metadata
from services.common.status import translated

if TYPE_CHECKING:
    from kala.audit.v1.audit_pb2_grpc import AuditReadServiceAsyncStub

RPC: Final = "/kala.audit.v1.AuditReadService/GetLogResource"
CALL_SECONDS: Final = 30.0
CHECKPOINT_HEADERS: Final = {"cache-control": "no-cache"}
# A tile never changes; only who showed a key may keep it.
TILE_HEADERS: Final = {"cache-control": "private, max-age=31536000, immutable"}


class LogMirror:
    """Serves the log's resources as the audit service gives them."""

    def __init__(self, *, gate: Gate, audit: AuditReadServiceAsyncStub) -> None:
        self._gate = gate
        self._audit = audit

    async def serve(self, exchange: Exchange) -> None:
        """Answer one resource."""
        exchange.headers["authorization"] = _as_bearer(exchange.headers.get("authorization", ""))
        path = exchange.path.removeprefix(LOG_PREFIX)
        tile = None if path == CHECKPOINT_PATH else _tile(path)
        scope = options_pb2.SCOPE_PUBLIC if tile is None else options_pb2.SCOPE_AUDIT_READ
        key = await self._gate.admit(exchange, rpc=RPC, scope=scope)
        if tile is not None and tile.level is None:
            await self._gate.require(exchange, key, rpc=RPC, scope=options_pb2.SCOPE_ADMIN)
        request = audit_pb2.GetLogResourceRequest(path=path)
        metadata = principal_metadata(self._gate.caller(key).principal)
        with self._gate.room, translated():
            response = await self._audit.GetLogResource(request, timeout=CALL_SECONDS, metadata=metadata)
        if tile is None:
            await exchange.send_bytes(
                200, response.data, "text/plain; charset=utf-8", headers=CHECKPOINT_HEADERS
            )
        else:
            await exchange.send_bytes(200, response.data, "application/octet-stream", headers=TILE_HEADERS)


def _tile(path: str) -> TilePath:
    try:
        return TilePath.parse(path)
    except VerificationError as error:
        raise NotFoundError(error.message) from error


def _as_bearer(authorization: str) -> str:
    """The same with the password of basic authentication as a bearer's token."""
    scheme, _, value = authorization.partition(" ")
    if scheme.lower() != "basic":
        return authorization
    try:
        password = base64.b64decode(value.strip(), validate=True).partition(b":")[2]
        return f"Bearer {password.decode('ascii')}"
    except (binascii.Error, ValueError):
        return authorization
