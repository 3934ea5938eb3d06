"""Signed page tokens: they name their list and the position in it, belong to one process, and end loudly."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import struct
from collections.abc import Callable
from typing import Final

from kala.errors import InvalidArgumentError

TOKEN_SECONDS: Final = 3600
"""A list that nobody continued for an hour has changed anyway."""

_SEAL_BYTES: Final = 16
# The moment when the token ends, in whole seconds since 1970, and the digest of what is listed; the position follows.
_HEAD: Final = struct.Struct(">Q16s")


class SignedPageTokens:
    """Makes and reads page tokens of one service, `domain`. The key is this process's own: a restart ends every list."""

    def __init__(self, domain: str, *, key: bytes, now: Callable[[], float]) -> None:
        self._domain = f"kala-{domain}-page-v1\0".encode()
        self._key = key
        self._now = now

    def make(self, question: str, after: bytes) -> str:
        """A token that continues `question`, the RPC with its filters and caller, strictly after this key."""
        head = _HEAD.pack(int(self._now()) + TOKEN_SECONDS, _digest(question))
        return base64.urlsafe_b64encode(self._seal(head + after) + head + after).decode().rstrip("=")

    def after(self, question: str, token: str) -> bytes | None:
        """The key to continue after; None without a token. Raises InvalidArgumentError for any that is not good."""
        if not token:
            return None
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
        return hmac.digest(self._key, self._domain + body, "sha256")[:_SEAL_BYTES]


def page_size_of(asked: int, *, default: int, most: int) -> int:
    """The page size to use; raises InvalidArgumentError outside 0 to `most`."""
    if not 0 <= asked <= most:
        raise InvalidArgumentError("page_size", f"must be 1 to {most}; {default} when unset")
    return asked or default


def _digest(question: str) -> bytes:
    return hashlib.sha256(question.encode()).digest()[:16]
