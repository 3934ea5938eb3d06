"""The log over plain HTTP, as any tlog client reads it: `/checkpoint` for everybody, `/tile/…` for who holds the token.

Tiles carry what every tenant did, without content; so they ask for the token, as a bearer's or as the password of HTTP's
basic authentication, which most clients take from a URL.  Without a token in the settings no tile is served at all.
"""

from __future__ import annotations

import base64
import binascii
import gzip
import hmac
import re
import threading
from collections.abc import Callable, Iterable
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

import structlog

from kala.audit.tile_paths import CHECKPOINT_PATH, TilePath
from kala.errors import FailedPreconditionError, KalaError, NotFoundError, VerificationError
from services.audit.publishing.published import PublishedLog
from services.common.secret_keys import read_private_file

if TYPE_CHECKING:
    from pathlib import Path
    from wsgiref.types import StartResponse

# As much as 32 random bytes in base64 without padding.
MIN_TOKEN_CHARS: Final = 43
# A checkpoint is new within a second; clients and proxies must ask again.
CHECKPOINT_CACHING: Final = "no-cache"
# A tile never changes; only who showed the token may keep it.
TILE_CACHING: Final = "private, max-age=31536000, immutable"
# Quick rather than small: mirrors are bound by the network's delay, the log by its processor.
GZIP_LEVEL: Final = 1

# Accepted, and not with the weight 0, which refuses it (RFC 9110 section 12.5.3).
_GZIP: Final = re.compile(r"(?:^|,)\s*gzip\s*(?:,|$|;\s*q=(?!0(?:\.0{0,3})?\s*(?:,|$)))", re.IGNORECASE)

CHECKPOINT_TYPE: Final = "text/plain; charset=utf-8"
TILE_TYPE: Final = "application/octet-stream"

# Any: WSGI's own open dictionary.
Environ = dict[str, Any]
Headers = list[tuple[str, str]]


class _RefusedError(Exception):
    """The request is answered with this status and these words."""

    def __init__(self, status: HTTPStatus, words: str, headers: Headers | None = None) -> None:
        super().__init__(words)
        self.status, self.words, self.headers = status, words, headers or []


class TileApi:
    """Serves what the log publishes, as a WSGI application for many threads."""

    def __init__(
        self, published: PublishedLog, *, token: str | None, note_reader: Callable[[str], None]
    ) -> None:
        """`note_reader` puts in the log that an address reads entries, before it does; it raises when it cannot."""
        self._published = published
        self._token = None if token is None else token.encode()
        self._note_reader = note_reader
        # The reader has one connection.
        self._lock = threading.Lock()

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        """Answer one request."""
        try:
            status, headers, body = self._answer(environ)
        except _RefusedError as refused:
            status, headers, body = refused.status, refused.headers, f"{refused.words}\n".encode()
            headers = [("Content-Type", CHECKPOINT_TYPE), ("Cache-Control", "no-store"), *headers]
        headers += [("Content-Length", str(len(body))), ("X-Content-Type-Options", "nosniff")]
        start_response(f"{status.value} {status.phrase}", headers)
        return [b""] if environ["REQUEST_METHOD"] == "HEAD" else [body]

    def _answer(self, environ: Environ) -> tuple[HTTPStatus, Headers, bytes]:
        if environ["REQUEST_METHOD"] not in {"GET", "HEAD"}:
            raise _RefusedError(HTTPStatus.METHOD_NOT_ALLOWED, "only GET and HEAD", [("Allow", "GET, HEAD")])
        path = str(environ.get("PATH_INFO", "")).removeprefix("/")
        if path == CHECKPOINT_PATH:
            text = self._read(self._published.checkpoint)
            headers = [("Content-Type", CHECKPOINT_TYPE), ("Cache-Control", CHECKPOINT_CACHING)]
            return HTTPStatus.OK, headers, text.encode()
        self._require_token(environ.get("HTTP_AUTHORIZATION", ""))
        return self._tile(environ, path)

    def _tile(self, environ: Environ, path: str) -> tuple[HTTPStatus, Headers, bytes]:
        try:
            tile = TilePath.parse(path)
        except VerificationError as error:
            raise _RefusedError(HTTPStatus.NOT_FOUND, error.message) from None
        if tile.level is None:
            self._read(self._note_reader, str(environ.get("REMOTE_ADDR", "unknown")), is_locked=False)
        body = self._read(self._published.resource, tile)
        headers = [("Content-Type", TILE_TYPE), ("Cache-Control", TILE_CACHING)]
        if tile.level is None:
            headers.append(("Vary", "Accept-Encoding"))
            if _GZIP.search(str(environ.get("HTTP_ACCEPT_ENCODING", ""))):
                headers.append(("Content-Encoding", "gzip"))
                body = gzip.compress(body, GZIP_LEVEL, mtime=0)
        return HTTPStatus.OK, headers, body

    def _require_token(self, authorization: str) -> None:
        if self._token is None:
            raise _RefusedError(
                HTTPStatus.FORBIDDEN,
                "tiles are not served here: set KALA_AUDIT_TILE_TOKEN_FILE, or read them at the gateway with an API key",
            )
        if not hmac.compare_digest(_shown_token(authorization), self._token):
            raise _RefusedError(
                HTTPStatus.UNAUTHORIZED,
                "tiles need the log's reading token, as a bearer's or as the password of basic authentication",
                [
                    ("WWW-Authenticate", 'Basic realm="audit log", charset="UTF-8"'),
                    ("WWW-Authenticate", "Bearer"),
                ],
            )

    # Any: whatever the method takes and gives.
    def _read(self, method: Callable[..., Any], *arguments: object, is_locked: bool = True) -> Any:
        try:
            if not is_locked:
                return method(*arguments)
            with self._lock:
                return method(*arguments)
        except NotFoundError as error:
            raise _RefusedError(HTTPStatus.NOT_FOUND, error.message) from None
        except KalaError as error:
            raise _RefusedError(
                HTTPStatus.SERVICE_UNAVAILABLE, error.message, [("Retry-After", "1")]
            ) from error
        except Exception as error:  # the edge of a thread: the traceback is for us, not for the reader
            structlog.get_logger().exception("the log's HTTP met a bug")
            raise _RefusedError(HTTPStatus.INTERNAL_SERVER_ERROR, "internal error") from error


def load_token(path: Path) -> str:
    """The reading token in a private file; raises `FailedPreconditionError` naming the file."""
    token = read_private_file(path).decode("ascii", "replace").strip()
    if len(token) < MIN_TOKEN_CHARS or not token.isascii() or not token.isprintable() or " " in token:
        raise FailedPreconditionError(
            f"{path} holds no token: one line of at least {MIN_TOKEN_CHARS} characters, such as `openssl rand -base64 33` gives"
        )
    return token


def _shown_token(authorization: str) -> bytes:
    """What a request shows as the token; empty when it shows none."""
    scheme, _, value = authorization.partition(" ")
    if scheme.lower() == "bearer":
        return value.strip().encode("utf-8", "replace")
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(value.strip(), validate=True).partition(b":")[2]
        except (binascii.Error, ValueError):
            return b""
    return b""
