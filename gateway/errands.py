"""Calls of this gateway's own endpoints from within, in the name of a key, without a socket.

An errand meets all that a request meets: the key's scope and limits, the judge, the log. Nothing of it comes from a
wire, so only here may it say for which key it acts.
"""

from __future__ import annotations

import asyncio
from collections.abc import MutableMapping
from dataclasses import dataclass
from typing import Any, Final

import orjson
import structlog

from gateway.edge import JSON, Exchange, Handler
from gateway.errors import http_status, openai_body
from gateway.pipeline import Recorded
from kala.errors import InternalError, KalaError

MAX_ANSWER_BYTES: Final = 36 * 1024 * 1024
"""As much as one message of the suite may hold."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What an endpoint answered."""

    status: int
    body: dict[str, Any]  # Any: JSON
    request_id: str
    retry_after_seconds: float | None = None
    has_acted: bool = False
    """Whether a tool has run, so that the same request again would run it again."""

    @property
    def code(self) -> str:
        """The code of an error; empty for an answer."""
        error = self.body.get("error")
        return str(error.get("code") or "") if isinstance(error, dict) else ""


class _Wire:
    """The two ends of a request that never was on a wire."""

    def __init__(self, body: bytes) -> None:
        self._body: bytes | None = body
        self.sent = bytearray()

    async def receive(self) -> MutableMapping[str, Any]:  # Any: ASGI's own
        if self._body is None:
            # Nobody goes away here: whoever waits for it is cancelled at the errand's end.
            await asyncio.Event().wait()
        body, self._body = self._body, None
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(self, message: MutableMapping[str, Any]) -> None:  # Any: ASGI's own
        self.sent += message.get("body", b"")
        if len(self.sent) > MAX_ANSWER_BYTES:
            raise InternalError(f"the answer is larger than {MAX_ANSWER_BYTES} bytes")


async def run_errand(
    handler: Handler,
    *,
    path: str,
    body: bytes,
    acting_key: str,
    request_id: str,
    method: str = "POST",
    query: str = "",
) -> Reply:
    """Send JSON to an endpoint in the name of a key's id; every failure is a reply too."""
    wire = _Wire(body)
    headers = [(b"content-type", JSON.encode()), (b"x-request-id", request_id.encode())]
    target = {"path": path, "query_string": query.encode()}
    scope = {"type": "http", "method": method, **target, "headers": headers}
    exchange = Exchange(scope, wire.receive, wire.send)
    exchange.acting_key = acting_key
    try:
        await handler(exchange)
    except Recorded as recorded:
        return _failed(recorded.error, exchange)
    except KalaError as error:
        return _failed(error, exchange)
    except Exception as error:  # noqa: BLE001 - as at the process's edge: a bug must not end the work on others
        structlog.get_logger().exception("an errand met a bug", exc_info=error)
        return _failed(InternalError("internal error; the log has the request's id"), exchange)
    return Reply(exchange.status, orjson.loads(bytes(wire.sent)), exchange.request_id)


def _failed(error: KalaError, exchange: Exchange) -> Reply:
    return Reply(
        http_status(error),
        openai_body(error),
        exchange.request_id,
        error.retry_after_seconds,
        exchange.has_acted,
    )
