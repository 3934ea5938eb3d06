"""Which web pages may call the gateway from a browser: none, unless their exact origins are configured.

Requests without an Origin are not a browser's and pass; credentials are never allowed, for callers bring their keys themselves.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, Final
from urllib.parse import urlsplit

from gateway.edge import Receive, Scope, Send
from kala.errors import InvalidArgumentError

PREFLIGHT_SECONDS: Final = 600
METHODS: Final = b"GET, POST, PUT, PATCH, DELETE, OPTIONS"
REQUEST_HEADERS: Final = (
    b"authorization, content-type, idempotency-key, openai-organization, openai-project, traceparent, "
    b"x-goog-fieldmask, x-kala-adapters, x-kala-mid-stream, x-kala-provider, x-kala-role, x-kala-truncation, "
    b"x-request-id, x-stainless-arch, x-stainless-lang, x-stainless-os, x-stainless-package-version, "
    b"x-stainless-retry-count, x-stainless-runtime, x-stainless-runtime-version, x-stainless-timeout"
)
"""Those that the gateway reads, and those that OpenAI's clients add by themselves."""

ANSWER_HEADERS: Final = (
    b"retry-after, x-kala-attempts, x-kala-overhead-ms, x-kala-receipt, x-ratelimit-limit-requests, "
    b"x-ratelimit-limit-tokens, x-ratelimit-remaining-requests, x-ratelimit-remaining-tokens, "
    b"x-ratelimit-reset-requests, x-ratelimit-reset-tokens, x-request-id, x-should-retry"
)


class Cors:
    """An ASGI application behind its list of origins."""

    def __init__(self, app: Any, origins: Collection[str]) -> None:  # Any: an ASGI application
        self._app = app
        self._origins = frozenset(origin.encode() for origin in origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        origin = next((value for name, value in scope["headers"] if name == b"origin"), None)
        if origin is None:
            await self._app(scope, receive, send)
            return
        is_known = origin in self._origins
        if scope["method"] == "OPTIONS" and any(
            name == b"access-control-request-method" for name, _ in scope["headers"]
        ):
            await _answer_preflight(send, origin if is_known else None)
            return

        async def send_with_headers(message: Any) -> None:  # Any: ASGI's open dictionaries
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *_headers(origin if is_known else None)]
            await send(message)

        await self._app(scope, receive, send_with_headers)


def checked_origins(origins: Sequence[str]) -> tuple[str, ...]:
    """Give them back, or raise InvalidArgumentError: each is exactly what a browser sends, and `*` is none."""
    for origin in origins:
        parts = urlsplit(origin)
        exact = f"{parts.scheme}://{parts.netloc}"
        if (
            parts.scheme not in {"http", "https"}
            or not parts.netloc
            or "*" in origin
            or origin != exact.lower()
            or "@" in origin
        ):
            raise InvalidArgumentError(
                "cors_origins", f"{origin!r} must be an exact origin, such as https://chat.example.org"
            )
    return tuple(origins)


def _headers(origin: bytes | None) -> list[tuple[bytes, bytes]]:
    if origin is None:
        return [(b"vary", b"origin")]
    return [
        (b"access-control-allow-origin", origin),
        (b"access-control-expose-headers", ANSWER_HEADERS),
        (b"vary", b"origin"),
    ]


async def _answer_preflight(send: Send, origin: bytes | None) -> None:
    headers = [*_headers(origin), (b"content-length", b"0")]
    if origin is not None:
        headers += [
            (b"access-control-allow-methods", METHODS),
            (b"access-control-allow-headers", REQUEST_HEADERS),
            (b"access-control-max-age", str(PREFLIGHT_SECONDS).encode()),
        ]
    status = 403 if origin is None else 204
    if status == 204:  # noqa: PLR2004 - RFC 9110 section 8.6: it has no content-length
        headers.remove((b"content-length", b"0"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": b""})
