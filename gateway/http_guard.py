"""The HTTP connection itself: bounded heads, no header that two readers could understand in two ways, nobody who just waits."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final

import orjson
import structlog
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

MAX_HEADERS: Final = 100
"""Three times what browsers and their proxies send."""

ONCE: Final = frozenset(
    {
        b"authorization",
        b"content-length",
        b"content-type",
        b"host",
        b"idempotency-key",
        b"origin",
        b"traceparent",
        b"transfer-encoding",
        b"x-request-id",
    }
)
"""What has one value: a proxy before this gateway might read the other one."""

OUR_PREFIX: Final = b"x-kala-"

_VERSIONS: Final = frozenset({"1.0", "1.1"})


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """What one connection may take."""

    max_connections: int
    max_header_bytes: int
    header_timeout_seconds: float
    write_timeout_seconds: float


class _RefusedHeadError(Exception):
    """A head that is not answered by the application."""

    def __init__(self, status: HTTPStatus, problem: str) -> None:
        super().__init__(problem)
        self.status = status


class GuardedProtocol(HttpToolsProtocol):
    """uvicorn's connection with limits; made by `guarded_protocol`."""

    limits: ConnectionLimits

    def __init__(self, *args: Any, **options: Any) -> None:  # Any: uvicorn's own arguments
        super().__init__(*args, **options)
        self._waiting: asyncio.TimerHandle | None = None
        self._stalled: asyncio.TimerHandle | None = None
        self._head_bytes = 0
        self._is_in_head = True
        self._has_begun = False
        self._refused: _RefusedHeadError | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's
        """Take a connection, or turn it away when there are too many."""
        super().connection_made(transport)
        if len(self.connections) > self.limits.max_connections:
            self._refuse(
                HTTPStatus.SERVICE_UNAVAILABLE, "too many connections are open; try again in a second"
            )
            return
        self._wait(self.limits.header_timeout_seconds)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the timers."""
        self._stop_waiting()
        self._stop_stalling()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take bytes; a head may neither grow nor last without end."""
        if self.transport.is_closing():
            return
        if self._is_in_head:
            self._has_begun = True
            self._head_bytes += len(data)
        super().data_received(data)
        if not self._is_in_head:
            return
        if self._head_bytes > self.limits.max_header_bytes:
            self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, self._too_large())
        elif self._waiting is None and self._may_write() and not self.transport.is_closing():
            # Empty lines before a request begin none, and must not keep a connection open.
            self._wait(self.limits.header_timeout_seconds)

    def on_message_begin(self) -> None:
        """Begin to count a request's head."""
        super().on_message_begin()
        self._is_in_head = True
        if self._waiting is None:
            self._wait(self.limits.header_timeout_seconds)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header; one that comes behind the body (RFC 9112 section 7.1.2) is left out, for it was looked at by nobody."""
        if self._is_in_head:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Look at the head before the application does."""
        self._stop_waiting()
        self._is_in_head, self._head_bytes = False, 0
        parser: Any = (
            self.parser
        )  # Any: uvicorn's stub lets it be None, which it is only behind the connection's end
        self.scope["http_version"] = parser.get_http_version()
        try:
            self._check_head()
        except _RefusedHeadError as refused:
            # The parser passes errors of ours on as its own, without their words.
            self._refused = refused
            raise
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """The next head may begin."""
        self._stop_waiting()
        self._is_in_head, self._has_begun = True, False
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Give a body that nobody reads as long as a head."""
        super().on_response_complete()
        if not self.transport.is_closing() and not self._is_in_head and self._waiting is None:
            self._wait(self.limits.header_timeout_seconds)

    def send_400_response(self, msg: str) -> None:
        """Answer what is not HTTP, or is more than one kind of it; uvicorn's words for it say less."""
        del msg
        refused = self._refused or _RefusedHeadError(HTTPStatus.BAD_REQUEST, "this is not valid HTTP/1.1")
        self._refuse(refused.status, str(refused))

    def pause_writing(self) -> None:
        """Wait for a client that does not read, for a time."""
        super().pause_writing()
        if self._stalled is None:
            self._stalled = self.loop.call_later(self.limits.write_timeout_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        """The client reads again."""
        self._stop_stalling()
        super().resume_writing()

    def _check_head(self) -> None:
        counts = Counter(name for name, _ in self.headers)
        size = len(self.url) + sum(len(name) + len(value) for name, value in self.headers)
        if size > self.limits.max_header_bytes or len(self.headers) > MAX_HEADERS:
            raise _RefusedHeadError(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, self._too_large())
        for name, count in counts.items():
            if count > 1 and (name in ONCE or name.startswith(OUR_PREFIX)):
                shown = name.decode("ascii", "replace")
                raise _RefusedHeadError(
                    HTTPStatus.BAD_REQUEST, f"the header {shown} came {count} times; send it once"
                )
        if dict(self.headers).get(b"transfer-encoding", b"chunked").lower() != b"chunked":
            # The parser would refuse it only when the application has begun.
            raise _RefusedHeadError(HTTPStatus.BAD_REQUEST, "transfer-encoding must be `chunked`")
        if self.scope["http_version"] not in _VERSIONS:
            raise _RefusedHeadError(HTTPStatus.BAD_REQUEST, "send HTTP/1.1")
        if b"host" not in counts and self.scope["http_version"] == "1.1":
            raise _RefusedHeadError(HTTPStatus.BAD_REQUEST, "the header host is missing")

    def _wait(self, seconds: float) -> None:
        self._waiting = self.loop.call_later(seconds, self._waited_too_long)

    def _waited_too_long(self) -> None:
        self._waiting = None
        if self._has_begun and self._is_in_head:
            self._refuse(
                HTTPStatus.REQUEST_TIMEOUT,
                f"the headers did not arrive within {self.limits.header_timeout_seconds:g} s",
            )
        elif not self.transport.is_closing():
            self.transport.close()

    def _stop_waiting(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None

    def _stop_stalling(self) -> None:
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None

    def _may_write(self) -> bool:
        """Tell whether no answer of an earlier request is on its way."""
        cycle: RequestResponseCycle | None = self.cycle
        return cycle is None or cycle.response_complete

    def _too_large(self) -> str:
        return f"the headers have more than {self.limits.max_header_bytes} bytes or {MAX_HEADERS} lines"

    def _refuse(self, status: HTTPStatus, problem: str) -> None:
        """Answer in place of the application, and end the connection: what follows cannot be told apart."""
        self._stop_waiting()
        if self.transport.is_closing():
            return
        structlog.get_logger().info("a connection is refused", status=status.value, problem=problem)
        kind = "server_error" if status >= HTTPStatus.INTERNAL_SERVER_ERROR else "invalid_request_error"
        error = {"message": problem, "type": kind, "param": None, "code": status.name.lower()}
        body = orjson.dumps({"error": error})
        if self._may_write():
            head = (
                f"HTTP/1.1 {status.value} {status.phrase}\r\ncontent-type: application/json\r\n"
                f"content-length: {len(body)}\r\nx-content-type-options: nosniff\r\nconnection: close\r\n\r\n"
            )
            self.transport.write(head.encode() + body)
        # Else an earlier request's answer is on its way, and nothing may be mixed into it.
        self.transport.close()


def guarded_protocol(limits: ConnectionLimits) -> type[GuardedProtocol]:
    """Give the class of connections with these limits."""
    return type("LimitedProtocol", (GuardedProtocol,), {"limits": limits})
