"""The HTTP edge in plain ASGI: one request's headers, body, answer and headers of the answer, without middleware.

Each route is an `Endpoint`; it gives every answer its `x-request-id`, turns errors into the route's shape, counts and
logs once, and ends the work of clients that went away.
"""

from __future__ import annotations

import asyncio
import math
import re
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, MutableMapping
from typing import TYPE_CHECKING, Any, Final

import orjson
import structlog

from gateway.acts import Logged, Served
from gateway.errors import (
    CLIENT_CLOSED_REQUEST,
    INSUFFICIENT_QUOTA,
    METHOD_NOT_ALLOWED,
    REQUEST_TOO_LARGE,
    http_status,
)
from gateway.pipeline import CLIENT_CLOSED, Recorded
from kala.errors import DeadlineExceededError, InternalError, InvalidArgumentError, KalaError
from services.common.logs import bind_log_fields
from services.common.tracing import TRACEPARENT_KEY, current_trace, parse_traceparent

if TYPE_CHECKING:
    from gateway.gate import BodyRoom
    from gateway.limits.reservation import Reservation
    from services.common.telemetry import MethodTelemetry

# ASGI's own open dictionaries.
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

REQUEST_ID: Final = "x-request-id"
RECEIPT: Final = "x-kala-receipt"
ATTEMPTS: Final = "x-kala-attempts"
OVERHEAD: Final = "x-kala-overhead-ms"
SHOULD_RETRY: Final = "x-should-retry"
"""What OpenAI's clients go by before they send a failed request again by themselves."""

JSON: Final = "application/json"

_SANE_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,128}")
"""What may stand in a log line and a header without quoting."""

_UNPRINTABLE: Final = re.compile(r"[^ -~]")

_SECURITY: Final = (
    (b"x-content-type-options", b"nosniff"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"referrer-policy", b"no-referrer"),
)
"""An answer is data: no browser may guess another type, run it, frame it or tell others where it came from."""

_STAY_ON_HTTPS: Final = (b"strict-transport-security", b"max-age=31536000")
_KEEP_NOTHING: Final = ("cache-control", "no-store")


class ClientGoneError(Exception):
    """The client went away before its request was whole; there is nobody to answer."""


class Exchange:
    """One HTTP request and its answer."""

    def __init__(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        *,
        clock: Callable[[], float] = time.monotonic,
        randomness: Callable[[int], str] = secrets.token_hex,
    ) -> None:
        self._scope = scope
        self._receive = receive
        self._send = send
        self._clock = clock
        self.started = clock()
        self.headers: dict[str, str] = {
            name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]
        }
        given = self.headers.get(REQUEST_ID, "")
        self.request_id = given if _SANE_ID.fullmatch(given) else f"req_{randomness(16)}"
        self.status = 0
        self.peer = "anonymous"
        self.acting_key = ""
        """Id of the key that code of this process acts for, in place of a header; never set from the wire."""
        self.receipt: Logged | None = None
        self.is_audited = False
        self.served = Served()
        self.overhead_ms: float | None = None
        self.limit_headers: Mapping[str, str] = {}
        self.reservation: Reservation | None = None
        self.body_room: BodyRoom | None = None
        self._held_bytes = 0
        self.has_acted = False  # and would act again, were the same request sent again
        self.allowed: Collection[str] = ()  # verbs of this path, where its route serves many paths
        self._streams = False

    @property
    def method(self) -> str:
        """The HTTP method in capitals."""
        return str(self._scope["method"])

    @property
    def path(self) -> str:
        """The decoded path."""
        return str(self._scope["path"])

    @property
    def query(self) -> str:
        """The raw query string."""
        return bytes(self._scope["query_string"]).decode("latin-1")

    @property
    def path_params(self) -> Mapping[str, str]:
        """What the route's pattern matched."""
        params: Mapping[str, str] = self._scope.get("path_params", {})
        return params

    @property
    def trace_id(self) -> str:
        """The W3C trace id of this request, or nothing."""
        trace = current_trace()
        return "" if trace is None else trace.trace_id

    @property
    def has_begun(self) -> bool:
        """Tell whether the answer's headers have left."""
        return self.status != 0

    @property
    def elapsed_ms(self) -> float:
        """Milliseconds since the request arrived."""
        return round((self._clock() - self.started) * 1000, 3)

    async def read_body(self, *, max_bytes: int, timeout_seconds: float) -> bytes:
        """Read the body, or raise InvalidArgumentError (413) as soon as it is too large."""
        declared = self.headers.get("content-length", "")
        if declared.isdigit() and int(declared) > max_bytes:
            raise too_large(max_bytes)
        try:
            async with asyncio.timeout(timeout_seconds):
                return await self._read(max_bytes)
        except TimeoutError as error:
            raise DeadlineExceededError(
                f"the body did not arrive within {timeout_seconds:g} s", reason="BODY_TIMEOUT"
            ) from error

    async def _read(self, max_bytes: int) -> bytes:
        body = b""
        parts: list[bytes] = []
        size = 0
        while True:
            message = await self._receive()
            if message["type"] != "http.request":
                raise ClientGoneError
            body = message.get("body", b"")
            size += len(body)
            if size > max_bytes:
                raise too_large(max_bytes)
            if self.body_room is not None:
                self.body_room.take(len(body))
                self._held_bytes += len(body)
            if not message.get("more_body", False):
                return b"".join((*parts, body)) if parts else body
            parts.append(body)

    def let_go(self) -> None:
        """Give back the room of the body, at the request's end."""
        if self.body_room is not None:
            self.body_room.give_back(self._held_bytes)
            self._held_bytes = 0

    async def body_parts(self, *, max_bytes: int, idle_seconds: float) -> AsyncIterator[bytes]:
        """Give the body piece by piece, or raise as `read_body` does; the time is that between two pieces."""
        declared = self.headers.get("content-length", "")
        if declared.isdigit() and int(declared) > max_bytes:
            raise too_large(max_bytes)
        size, is_last = 0, False
        while not is_last:
            try:
                async with asyncio.timeout(idle_seconds):
                    message = await self._receive()
            except TimeoutError as error:
                raise DeadlineExceededError(
                    f"nothing of the body arrived for {idle_seconds:g} s", reason="BODY_TIMEOUT"
                ) from error
            if message["type"] != "http.request":
                raise ClientGoneError
            body, is_last = message.get("body", b""), not message.get("more_body", False)
            size += len(body)
            if size > max_bytes:
                raise too_large(max_bytes)
            yield body

    async def wait_for_disconnect(self) -> None:
        """Return when the client has gone away; call only after the body is read."""
        while (await self._receive())["type"] != "http.disconnect":
            pass

    async def send_json(
        self, status: int, value: object, *, headers: Mapping[str, str] | None = None
    ) -> None:
        """Answer with JSON."""
        await self.send_bytes(status, orjson.dumps(value), JSON, headers=headers)

    async def send_bytes(
        self, status: int, body: bytes, content_type: str, *, headers: Mapping[str, str] | None = None
    ) -> None:
        """Answer with a whole body."""
        lines = self._head(content_type, headers)
        lines.append((b"content-length", str(len(body)).encode()))
        self.status = status
        await self._send({"type": "http.response.start", "status": status, "headers": lines})
        await self._send({"type": "http.response.body", "body": b"" if self.method == "HEAD" else body})

    async def begin_stream(self, content_type: str) -> None:
        """Send the headers of a streamed answer."""
        lines = self._head(content_type, {"cache-control": "no-cache", "x-accel-buffering": "no"})
        self.status, self._streams = 200, True
        await self._send({"type": "http.response.start", "status": 200, "headers": lines})

    async def send_part(self, data: bytes) -> None:
        """Send more of a streamed answer."""
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def end_stream(self) -> None:
        """End a streamed answer."""
        if self._streams:
            await self._send({"type": "http.response.body", "body": b""})

    def _head(self, content_type: str, headers: Mapping[str, str] | None) -> list[tuple[bytes, bytes]]:
        lines = [
            (b"content-type", content_type.encode()),
            *_SECURITY,
            _line(REQUEST_ID, self.request_id),
        ]
        if self._scope.get("scheme") == "https":
            lines.append(_STAY_ON_HTTPS)
        if headers is None or _KEEP_NOTHING[0] not in headers:
            lines.append(_line(*_KEEP_NOTHING))
        if self.receipt is not None:
            lines.append(_line(RECEIPT, self.receipt.id))
        if self.receipt is not None or self.is_audited:
            overhead = self.elapsed_ms if self.overhead_ms is None else self.overhead_ms
            lines += [_line(ATTEMPTS, self.served.header), _line(OVERHEAD, f"{overhead:.3f}")]
        lines += [_line(name, value) for name, value in self.limit_headers.items()]
        return lines + [_line(name, value) for name, value in (headers or {}).items()]


def _line(name: str, value: str) -> tuple[bytes, bytes]:
    """Write a header; a character that could end the line or is not ASCII becomes `?`."""
    return name.encode(), _UNPRINTABLE.sub("?", value).encode()


Handler = Callable[[Exchange], Awaitable[None]]
ErrorBody = Callable[[KalaError], dict[str, Any]]  # Any: JSON


class Endpoint:
    """A route as an ASGI application: one handler, its methods and the shape of its errors."""

    def __init__(
        self, handler: Handler, *, methods: Collection[str], error_body: ErrorBody, telemetry: MethodTelemetry
    ) -> None:
        self._handler = handler
        self._methods = frozenset(methods)
        self._error_body = error_body
        self._telemetry = telemetry

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        exchange = Exchange(scope, receive, send)
        observed = self._telemetry.begin(parse_traceparent(exchange.headers.get(TRACEPARENT_KEY, "")))
        bind_log_fields(request_id=exchange.request_id)
        reason = ""
        try:
            reason = await self._serve(exchange)
        finally:
            exchange.let_go()
            self._telemetry.end(
                observed,
                code=str(exchange.status or CLIENT_CLOSED_REQUEST),
                peer=exchange.peer,
                reason=reason,
            )

    async def _serve(self, exchange: Exchange) -> str:
        try:
            self._require_method(exchange.method)
            await self._handler(exchange)
        except ClientGoneError:
            return CLIENT_CLOSED
        except Recorded as recorded:
            exchange.receipt = recorded.receipt
            return await self._answer(exchange, recorded.error)
        except KalaError as error:
            return await self._answer(exchange, error)
        except Exception as error:  # noqa: BLE001 - the process edge: a bug must not reach the wire
            structlog.get_logger().exception("a request met a bug", exc_info=error)
            return await self._answer(exchange, InternalError("internal error; the log has the request's id"))
        return ""

    def _require_method(self, method: str) -> None:
        if method not in self._methods:
            allowed = ", ".join(sorted(self._methods))
            raise InvalidArgumentError(
                "", f"{method} is not allowed here; use {allowed}", reason=METHOD_NOT_ALLOWED
            )

    async def _answer(self, exchange: Exchange, error: KalaError) -> str:
        if exchange.has_begun:
            # Too late for a status: the stream is cut short, which every client takes for a failure.
            await exchange.end_stream()
            return error.reason
        headers = {}
        if error.retry_after_seconds is not None:
            headers["retry-after"] = str(max(1, math.ceil(error.retry_after_seconds)))
        if exchange.has_acted or error.reason == INSUFFICIENT_QUOTA:
            headers[SHOULD_RETRY] = "false"
        status = http_status(error)
        if status == 401:  # noqa: PLR2004 - RFC 9110 section 15.5.2 demands the challenge
            headers["www-authenticate"] = "Bearer"
        if status == 405:  # noqa: PLR2004 - RFC 9110 section 15.5.6 demands the list
            headers["allow"] = ", ".join(sorted(exchange.allowed or self._methods))
        await exchange.send_json(status, self._error_body(error), headers=headers)
        return error.reason


def too_large(max_bytes: int) -> InvalidArgumentError:
    """Give the error for a body over its limit."""
    return InvalidArgumentError(
        "body", f"is larger than {max_bytes} bytes; shorten the request", reason=REQUEST_TOO_LARGE
    )


async def until_disconnect(exchange: Exchange, work: Awaitable[None]) -> None:
    """Do work for a client, and cancel it at once when the client goes away; then there is nobody to answer."""
    task = asyncio.current_task()
    watcher = asyncio.ensure_future(exchange.wait_for_disconnect())

    is_gone = False

    def stop(_watcher: asyncio.Task[None]) -> None:
        nonlocal is_gone
        if task is not None and not watcher.cancelled():
            is_gone = True
            task.cancel()

    watcher.add_done_callback(stop)
    try:
        await work
    except asyncio.CancelledError:
        if task is None or not is_gone:
            raise
        # Ours, and dealt with: the request's task ends as if answered.
        task.uncancel()
    finally:
        watcher.remove_done_callback(stop)
        watcher.cancel()
