"""Queries over the log: conditions on derived columns, and page tokens that pin one tree size for all pages."""

from __future__ import annotations

import base64
import binascii
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Final

from kala.audit.note import MAX_TREE_SIZE
from kala.errors import InvalidArgumentError

DEFAULT_PAGE_SIZE: Final = 100
MAX_PAGE_SIZE: Final = 1_000
# Version, snapshot size, next index, digest of the conditions.
_TOKEN: Final = struct.Struct(">BQQ8s")
_TOKEN_VERSION: Final = 1


@dataclass(frozen=True, slots=True)
class Condition:
    """A derived column must hold one of these values."""

    column: str
    values: tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class PageToken:
    """Where the next page starts, in a query whose conditions have this digest, over a tree of this size."""

    snapshot_size: int
    index: int
    digest: bytes

    def text(self) -> str:
        """The opaque form."""
        packed = _TOKEN.pack(_TOKEN_VERSION, self.snapshot_size, self.index, self.digest)
        return base64.urlsafe_b64encode(packed).decode().rstrip("=")

    @classmethod
    def parse(cls, text: str, digest: bytes) -> PageToken:
        """Reads a token of the query with this digest, or raises `InvalidArgumentError`."""
        try:
            packed = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
            version, size, index, token_digest = _TOKEN.unpack(packed)
        except (binascii.Error, ValueError, struct.error) as error:
            raise InvalidArgumentError(
                "page_token", "is not a page token; start again without one"
            ) from error
        if version != _TOKEN_VERSION or token_digest != digest or max(size, index) > MAX_TREE_SIZE:
            raise InvalidArgumentError("page_token", "belongs to another query; start again without one")
        return cls(size, index, digest)


def digest_of(conditions: Sequence[Condition], *facts: object) -> bytes:
    """What makes a page token belong to one query."""
    return sha256(repr((conditions, facts)).encode()).digest()[:8]


def page_size_of(asked: int) -> int:
    """The page size to use; raises `InvalidArgumentError` outside 0 to the largest."""
    if not 0 <= asked <= MAX_PAGE_SIZE:
        raise InvalidArgumentError(
            "page_size", f"must be 1 to {MAX_PAGE_SIZE}; {DEFAULT_PAGE_SIZE} when unset"
        )
    return asked or DEFAULT_PAGE_SIZE
