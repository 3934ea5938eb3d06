"""The connection to one model server: a pooled client, time limits by phase, and every failure with its own name."""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any, Final

import aiohttp
import httpx
import orjson
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import ThreadedResolver
from httpx_aiohttp import AiohttpTransport

from services.inference.backend import BackendFailure
from services.inference.base_url import BaseUrl, is_forbidden_text
from services.inference.retry_after import retry_after_seconds

MAX_ANSWER_BYTES: Final = 32 * 1024 * 1024
"""Largest body that is no stream; the gRPC message limit is 36 MiB."""

MAX_STREAM_BYTES: Final = 256 * 1024 * 1024
"""Most that is read of one stream: ten times the longest answer with all its log probabilities.  What does not stream to
the caller is held until its end."""

MAX_LOOK_BYTES: Final = 4 * 1024 * 1024
"""Largest document that tells a state: a list of some thousand models, which takes ten times as much once it is read."""

MAX_ERROR_BYTES: Final = 64 * 1024
"""What is read of an error body; the rest of a web page says no more."""

PIECE_BYTES: Final = 512 * 1024
"""Largest piece of a request that is written at once."""

KEPT_URLS: Final = 64
"""Paths whose URL is kept ready; some hold a model's name, and servers may make up names without end."""

KEEPALIVE_SECONDS: Final = 4.0
"""llama-server closes idle connections after 5 s; using one at that moment would fail for nothing."""

LOOK_SECONDS: Final = 5.0
"""Longest wait for a health or model list answer (design: routing decisions under 5 s)."""

LOOKS_AT_ONCE: Final = 4
"""Connections kept for health and model lists."""

FIRST_ERROR_STATUS: Final = 400

DRAIN_SECONDS: Final = 0.05
"""How long to wait after `[DONE]` for the stream's formal end, so that the connection can be used again."""


@dataclass(frozen=True, slots=True)
class TimeLimits:
    """How long to wait, by phase; seconds."""

    connect: float
    first_byte: float
    idle: float
    total: float


@dataclass(frozen=True, slots=True)
class Reply:
    """A whole answer."""

    status: int
    headers: httpx.Headers
    body: bytes

    def json(self) -> Any:
        """Give the JSON value, or None where the body is none."""
        try:
            return orjson.loads(self.body)
        except orjson.JSONDecodeError:
            return None


class GuardedResolver(AbstractResolver):
    """Resolves names and refuses those that point at link-local or metadata addresses, at every connection."""

    def __init__(self) -> None:
        self._resolver = ThreadedResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """Give the addresses of a name; one forbidden address condemns the name."""
        found = await self._resolver.resolve(host, port, family)
        if any(is_forbidden_text(result["host"]) for result in found):
            raise ForbiddenAddressError(f"{host} resolves to a link-local or metadata address")
        return found

    async def close(self) -> None:
        """Hold nothing."""
        await self._resolver.close()


class ForbiddenAddressError(OSError):
    """A name resolved to an address where no model server may be."""


class StreamedAnswer:
    """An answer whose body is still coming."""

    __slots__ = ("_chunks", "_left", "_limits", "_response", "_waits_for_first")

    def __init__(self, response: httpx.Response, limits: TimeLimits) -> None:
        self._response = response
        self._limits = limits
        self._chunks = response.stream.__aiter__()  # type: ignore[union-attr]  # an async client's stream is async
        self._waits_for_first = True
        self._left = MAX_STREAM_BYTES

    @property
    def status(self) -> int:
        return self._response.status_code

    @property
    def content_type(self) -> str:
        content_type: str = self._response.headers.get("content-type", "")
        return content_type.lower()

    async def read(self) -> bytes:
        """Give what came in the next read, b"" at the end; raises BackendFailure for too slow or too much."""
        limit = self._limits.first_byte if self._waits_for_first else self._limits.idle
        try:
            async with asyncio.timeout(limit):
                chunk = await anext(self._chunks, b"")
        except TimeoutError:
            raise self._too_slow(limit) from None
        except TRANSPORT_ERRORS as error:
            raise explain(error) from error
        self._waits_for_first = False
        self._left -= len(chunk)
        if self._left < 0:
            raise BackendFailure("ANSWER_TOO_LONG", f"answered with more than {MAX_STREAM_BYTES} bytes")
        return chunk

    async def body(self, limit: int = MAX_ANSWER_BYTES) -> bytes:
        """Give the whole body; raises BackendFailure when it is longer than `limit`."""
        pieces: list[bytes] = []
        size = 0
        while chunk := await self.read():
            pieces.append(chunk)
            size += len(chunk)
            if size > limit:
                raise BackendFailure("ANSWER_TOO_LONG", f"answered with more than {limit} bytes")
        return b"".join(pieces)

    async def error_body(self) -> bytes:
        """Give the start of an error body, whatever else is wrong with it."""
        pieces: list[bytes] = []
        try:
            while sum(map(len, pieces)) < MAX_ERROR_BYTES and (chunk := await self.read()):
                pieces.append(chunk)
        except BackendFailure:
            return b"".join(pieces)
        return b"".join(pieces)[:MAX_ERROR_BYTES]

    async def drain(self) -> None:
        """Read the formal end of a stream whose last event was seen; gives up at once when more comes."""
        try:
            async with asyncio.timeout(DRAIN_SECONDS):
                await anext(self._chunks, b"")
                await anext(self._chunks, b"")
        except (TimeoutError, *TRANSPORT_ERRORS):
            return

    def _too_slow(self, limit: float) -> BackendFailure:
        if self._waits_for_first:
            return BackendFailure("FIRST_BYTE_TIMED_OUT", f"sent nothing for {limit:g} s")
        return BackendFailure("STREAM_STALLED", f"fell silent for {limit:g} s in the middle of the answer")


class _Pieces(httpx.AsyncByteStream):
    """A large body in pieces, between which the event loop serves others."""

    def __init__(self, body: bytes) -> None:
        self._body = body

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for start in range(0, len(self._body), PIECE_BYTES):
            yield self._body[start : start + PIECE_BYTES]


class ModelServerClient:
    """Talks to one server; pools connections, follows no redirect, uses no proxy, asks for no compression.

    It speaks to the httpx transport without an httpx client around it: cookies, redirects, authentication flows and
    merging of URLs are not wanted here and cost more than the rest of a request's way through this class.
    """

    def __init__(
        self,
        base: BaseUrl,
        *,
        limits: TimeLimits,
        api_key: str | None = None,
        max_connections: int = 64,
        extra_headers: Mapping[str, str] | None = None,
    ) -> None:
        self._base = base
        self._limits = limits
        self._max_connections = max_connections
        self._slots = asyncio.Semaphore(max_connections)
        headers = {"accept": "*/*", "accept-encoding": "identity", "content-type": "application/json"}
        if api_key:
            headers["authorization"] = f"Bearer {api_key}"
        self._headers = httpx.Headers({**headers, **(extra_headers or {})})
        self._timeouts = {"connect": limits.connect}
        self._urls: dict[str, httpx.URL] = {}
        """By path, at the present address."""
        self._transport = AiohttpTransport(verify=base.is_tls, client=self._session)

    @property
    def url(self) -> str:
        return str(self._base)

    def use(self, base: BaseUrl) -> None:
        """Send further requests to another address of the same server; those that run go on."""
        if base != self._base:
            self._base, self._urls = base, {}

    async def get(self, path: str, *, within_seconds: float = LOOK_SECONDS) -> Reply:
        """Fetch a small document; raises BackendFailure for transport errors, never for a status."""
        return await self._fetch(self._request("GET", path), within_seconds, limit=MAX_LOOK_BYTES)

    async def tell(self, path: str, value: object, *, within_seconds: float = LOOK_SECONDS) -> Reply:
        """Post a small JSON value and give the whole answer; raises BackendFailure as `get` does."""
        request = self._request("POST", path, orjson.dumps(value))
        return await self._fetch(request, within_seconds, limit=MAX_ANSWER_BYTES)

    @asynccontextmanager
    async def post(
        self,
        path: str,
        body: bytes,
        begin: Callable[[], None],
        *,
        streams: bool,
        idle_seconds: float | None = None,
    ) -> AsyncIterator[StreamedAnswer]:
        """Send a request and give its answer as soon as the head is there; leaving the context ends the exchange.

        `begin` is called when a connection is free for it, right before the first byte leaves.  A server that does
        not stream sends the head with the whole answer, so then the head has all the time there is.  `idle_seconds`
        is for an answer that may be silent for longer than a generation.
        """
        limits = self._limits if idle_seconds is None else replace(self._limits, idle=idle_seconds)
        async with self._slots:
            begin()
            limit = self._limits.first_byte if streams else self._limits.total
            response = await self._send(self._request("POST", path, body), limit)
            try:
                yield StreamedAnswer(response, limits)
            except BackendFailure as failure:
                if response.status_code >= FIRST_ERROR_STATUS and failure.retry_after_seconds is None:
                    failure.retry_after_seconds = retry_after_seconds(response.headers, now=time.time())
                raise
            finally:
                await response.aclose()

    async def aclose(self) -> None:
        """Close every connection."""
        await self._transport.aclose()

    async def _fetch(self, request: httpx.Request, within_seconds: float, *, limit: int) -> Reply:
        try:
            async with asyncio.timeout(within_seconds):
                response = await self._transport.handle_async_request(request)
                try:
                    answer = StreamedAnswer(response, self._limits)
                    return Reply(response.status_code, response.headers, await answer.body(limit))
                finally:
                    await response.aclose()
        except TimeoutError:
            raise BackendFailure("LOOK_TIMED_OUT", f"did not answer within {within_seconds:g} s") from None
        except TRANSPORT_ERRORS as error:
            raise explain(error) from error

    def _request(self, method: str, path: str, body: bytes | None = None) -> httpx.Request:
        url = self._urls.get(path)
        if url is None:
            if len(self._urls) >= KEPT_URLS:
                self._urls.clear()
            url = self._urls[path] = httpx.URL(f"{self._base}{path}")
        extensions = {"timeout": self._timeouts}
        if body is None or len(body) <= PIECE_BYTES:
            return httpx.Request(method, url, headers=self._headers, content=body, extensions=extensions)
        # With its length said, because mlx_lm.server reads no chunked requests.
        headers = {**self._headers, "content-length": str(len(body))}
        return httpx.Request(method, url, headers=headers, stream=_Pieces(body), extensions=extensions)

    async def _send(self, request: httpx.Request, limit: float) -> httpx.Response:
        for is_last in (False, True):
            try:
                async with asyncio.timeout(limit):
                    return await self._transport.handle_async_request(request)
            except TimeoutError:
                raise BackendFailure("FIRST_BYTE_TIMED_OUT", f"sent nothing for {limit:g} s") from None
            except TRANSPORT_ERRORS as error:
                failure = explain(error)
                # A pooled connection that the server closed as we wrote: nothing was answered, so once more is safe.
                if is_last or failure.reason != "DISCONNECTED":
                    raise failure from error
        raise AssertionError  # pragma: no cover - the loop returns or raises

    def _session(self) -> aiohttp.ClientSession:
        connector = aiohttp.TCPConnector(
            # Room beyond the slots, so that a look at the server never waits for a generation.
            limit=self._max_connections + LOOKS_AT_ONCE,
            keepalive_timeout=KEEPALIVE_SECONDS,
            resolver=GuardedResolver(),
            ssl=ssl.create_default_context() if self._base.is_tls else False,
        )
        return aiohttp.ClientSession(
            connector=connector, cookie_jar=aiohttp.DummyCookieJar(), trust_env=False
        )


TRANSPORT_ERRORS: Final = (httpx.HTTPError, httpx.InvalidURL, aiohttp.ClientError, OSError, ValueError)
"""What httpx, its aiohttp transport and aiohttp itself raise; the transport translates only some of them."""


_EXPLANATIONS: Final[tuple[tuple[type[Exception], str, str], ...]] = (
    (aiohttp.ClientConnectorDNSError, "DNS_FAILED", "its host name cannot be resolved"),
    (aiohttp.ClientConnectorCertificateError, "TLS_FAILED", "its TLS certificate is not accepted"),
    (aiohttp.ClientConnectorSSLError, "TLS_FAILED", "its TLS handshake failed"),
    (aiohttp.ConnectionTimeoutError, "CONNECT_TIMED_OUT", "did not accept a connection in time"),
    (aiohttp.ServerTimeoutError, "BACKEND_TIMED_OUT", "did not answer in time"),
    (aiohttp.ServerDisconnectedError, "DISCONNECTED", "closed the connection without an answer"),
    (aiohttp.ClientPayloadError, "STREAM_CUT", "closed the connection in the middle of the answer"),
    (aiohttp.ClientResponseError, "MALFORMED_ANSWER", "answered with something that is not HTTP"),
)
"""Subclasses before their bases."""


def explain(error: Exception) -> BackendFailure:
    """Name a transport error; the transport maps unlike errors to one class, so the cause decides."""
    cause = error
    while isinstance(cause, httpx.HTTPError) and isinstance(cause.__cause__, Exception):
        cause = cause.__cause__
    os_error = cause.os_error if isinstance(cause, aiohttp.ClientConnectorError) else cause
    if isinstance(os_error, ForbiddenAddressError):
        return BackendFailure("FORBIDDEN_ADDRESS", str(os_error))
    for kind, reason, detail in _EXPLANATIONS:
        if isinstance(cause, kind):
            return BackendFailure(reason, detail)
    return _explain_os_error(os_error)


def _explain_os_error(error: BaseException) -> BackendFailure:
    number = error.errno if isinstance(error, OSError) else None
    if number == errno.ECONNREFUSED:
        return BackendFailure("CONNECTION_REFUSED", "nothing listens at its address")
    if number in {errno.ECONNRESET, errno.EPIPE}:
        return BackendFailure("DISCONNECTED", "closed the connection without an answer")
    if number in {errno.EHOSTUNREACH, errno.ENETUNREACH}:
        return BackendFailure("UNREACHABLE", "its host cannot be reached")
    return BackendFailure("CONNECTION_FAILED", f"the connection failed: {type(error).__name__}")
