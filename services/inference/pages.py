"""Pages of a short list: opaque tokens that name their RPC and filter, and end loudly."""

from __future__ import annotations

import base64
import hashlib
from typing import TYPE_CHECKING, Final, TypeVar

from google.protobuf.message import DecodeError
from google.protobuf.timestamp_pb2 import Timestamp

from kala.common.v1.paging_pb2 import PageToken
from kala.errors import InvalidArgumentError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

DEFAULT_PAGE_SIZE: Final = 100
MAX_PAGE_SIZE: Final = 1000
TOKEN_SECONDS: Final = 3600
"""A list that nobody continued for an hour has changed anyway."""

T = TypeVar("T")


def page(
    items: Sequence[T],
    *,
    key: Callable[[T], str],
    rpc: str,
    filters: str,
    size: int,
    token: str,
    now: float,
) -> tuple[list[T], str]:
    """Give one page and the token of the next ("" at the end); raises InvalidArgumentError for a bad size or token."""
    if not 0 <= size <= MAX_PAGE_SIZE:
        raise InvalidArgumentError("page_size", f"must be 1 to {MAX_PAGE_SIZE}")
    size = size or DEFAULT_PAGE_SIZE
    digest = hashlib.sha256(filters.encode()).digest()
    start = 0
    if token:
        after = _after(token, rpc=rpc, digest=digest, now=now)
        keys = [key(item) for item in items]
        if after not in keys:
            raise InvalidArgumentError("page_token", "the list has changed; start again without a token")
        start = keys.index(after) + 1
    chosen = list(items[start : start + size])
    if start + size >= len(items):
        return chosen, ""
    following = PageToken(
        rpc=rpc,
        filter_digest=digest,
        after=key(chosen[-1]).encode(),
        expires_at=Timestamp(seconds=int(now) + TOKEN_SECONDS),
    )
    return chosen, base64.urlsafe_b64encode(following.SerializeToString()).decode()


def _after(token: str, *, rpc: str, digest: bytes, now: float) -> str:
    try:
        parsed = PageToken.FromString(base64.urlsafe_b64decode(token))
        after = parsed.after.decode()
    except (ValueError, DecodeError):
        raise InvalidArgumentError("page_token", "is not a token of this service") from None
    if parsed.rpc != rpc or parsed.filter_digest != digest:
        raise InvalidArgumentError("page_token", "belongs to another list")
    if parsed.expires_at.seconds < now:
        raise InvalidArgumentError("page_token", "has expired; start again without a token")
    return after
