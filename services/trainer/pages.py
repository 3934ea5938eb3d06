"""Pages of the service's lists: signed tokens that name their list, filters, caller and position, and end loudly."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import secrets
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from kala.common.v1.clearance_pb2 import Principal
from kala.errors import InvalidArgumentError

TOKEN_SECONDS: Final = 3600
"""A list that nobody continued for an hour has changed anyway."""

DEFAULT_SIZE: Final = 100
MAX_SIZE: Final = 1_000

_SEAL_BYTES: Final = 16
_QUESTION_BYTES: Final = 16
# Unix time when the token ends and the digest of what is listed; the position follows.
_HEAD: Final = struct.Struct(f">Q{_QUESTION_BYTES}s")


@dataclass(frozen=True, slots=True)
class Page:
    """Which part of a list was asked for."""

    limit: int
    after: bytes
    """Position to continue after; empty at the beginning."""
    question: str


class PageTokens:
    """Makes and reads page tokens. The key is this process's own: a restart ends every list."""

    def __init__(
        self,
        *,
        key: bytes | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._key = key or secrets.token_bytes(32)
        self._now = now

    def page(self, rpc: str, principal: Principal, size: int, token: str, *filters: object) -> Page:
        """Read a request's page; raises InvalidArgumentError for a size or token that is not good."""
        if not 0 <= size <= MAX_SIZE:
            raise InvalidArgumentError("page_size", f"must be 1 to {MAX_SIZE}; {DEFAULT_SIZE} when unset")
        question = repr((rpc, principal.tenant, *filters))
        return Page(size or DEFAULT_SIZE, self._after(question, token), question)

    def next_token(self, page: Page, after: bytes) -> str:
        """The token that continues after this position; empty when there is none."""
        if not after:
            return ""
        body = _HEAD.pack(int(self._now()) + TOKEN_SECONDS, _digest(page.question)) + after
        return base64.urlsafe_b64encode(self._seal(body) + body).decode().rstrip("=")

    def _after(self, question: str, token: str) -> bytes:
        if not token:
            return b""
        try:
            raw = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
            seal, body = raw[:_SEAL_BYTES], raw[_SEAL_BYTES:]
            expires_at, digest = _HEAD.unpack_from(body)
        except (binascii.Error, ValueError, struct.error):
            raise InvalidArgumentError("page_token", "is not a page token; start again without one") from None
        if not hmac.compare_digest(seal, self._seal(body)):
            raise InvalidArgumentError("page_token", "was not made by this process; start again without one")
        if digest != _digest(question):
            raise InvalidArgumentError("page_token", "belongs to another list; start again without one")
        if expires_at < self._now():
            raise InvalidArgumentError("page_token", "has expired; start again without one")
        return body[_HEAD.size :]

    def _seal(self, body: bytes) -> bytes:
        return hmac.digest(self._key, b"kala-trainer-page-v1\0" + body, "sha256")[:_SEAL_BYTES]


def _digest(question: str) -> bytes:
    return hashlib.sha256(question.encode()).digest()[:_QUESTION_BYTES]
