"""Page tokens of the gateway's own lists: sealed, bound to their query, and good for an hour."""

from __future__ import annotations

import base64
import hmac
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Final

from gateway.identity import Pseudonyms
from kala.common.v1 import paging_pb2
from kala.errors import InvalidArgumentError

DEFAULT_PAGE: Final = 100
MAX_PAGE: Final = 1000
TOKEN_LIFETIME: Final = timedelta(hours=1)
_SEAL_BYTES: Final = 32


class PageTokens:
    """Writes and reads them."""

    def __init__(self, pseudonyms: Pseudonyms, now: Callable[[], datetime]) -> None:
        self._pseudonyms = pseudonyms
        self._now = now

    def write(self, rpc: str, query: bytes, after: bytes) -> str:
        """Write where the next page begins; `query` tells this list from the same one with another filter."""
        token = paging_pb2.PageToken(rpc=rpc, filter_digest=query, after=after)
        token.expires_at.FromDatetime(self._now() + TOKEN_LIFETIME)
        data = token.SerializeToString(deterministic=True)
        return base64.urlsafe_b64encode(self._pseudonyms.seal(data) + data).decode()

    def read(self, text: str, rpc: str, query: bytes) -> bytes:
        """Give `after`, or raise InvalidArgumentError."""
        try:
            sealed = base64.b64decode(text, altchars=b"-_", validate=True)
        except ValueError as error:
            raise _bad_token("is not one that this service gave") from error
        seal, data = sealed[:_SEAL_BYTES], sealed[_SEAL_BYTES:]
        if not hmac.compare_digest(seal, self._pseudonyms.seal(data)):
            raise _bad_token("is not one that this service gave")
        token = paging_pb2.PageToken.FromString(data)
        if token.rpc != rpc or token.filter_digest != query:
            raise _bad_token("belongs to another query")
        if self._now() >= token.expires_at.ToDatetime(UTC):
            raise _bad_token("has expired; begin again without it")
        return token.after


def page_size(asked: int) -> int:
    """Give the size of a page, or raise InvalidArgumentError."""
    size = asked or DEFAULT_PAGE
    if not 1 <= size <= MAX_PAGE:
        raise InvalidArgumentError("page_size", f"must be 1 to {MAX_PAGE}")
    return size


def _bad_token(problem: str) -> InvalidArgumentError:
    return InvalidArgumentError("page_token", problem)
