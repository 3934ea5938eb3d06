"""Queries over the log: conditions on derived columns, and page tokens that pin one tree size for all pages."""

from __future__ import annotations

import base64
import binascii
import hmac
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Final

from kala.errors import InvalidArgumentError

DEFAULT_PAGE_SIZE: Final = 100
MAX_PAGE_SIZE: Final = 1_000
# Version, snapshot size, next index; the seal follows.
_TOKEN: Final = struct.Struct(">BQQ")
_TOKEN_VERSION: Final = 2
_SEAL_BYTES: Final = 16


@dataclass(frozen=True, slots=True)
class Condition:
    """A derived column must hold one of these values."""

    column: str
    values: tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class PageToken:
    """Where the next page of a question starts, over a tree of this size.

    The log seals it: a token that a reader made up would be a page that nobody asked for in the log.
    """

    snapshot_size: int
    index: int

    def text(self, key: bytes, question: bytes) -> str:
        """The opaque form; `key` is the log's alone, and `question` says what is asked, and by whom."""
        packed = _TOKEN.pack(_TOKEN_VERSION, self.snapshot_size, self.index)
        return base64.urlsafe_b64encode(packed + _seal(key, packed, question)).decode().rstrip("=")

    @classmethod
    def parse(cls, text: str, key: bytes, question: bytes) -> PageToken:
        """Reads a token that the log gave out for this question, or raises `InvalidArgumentError`."""
        try:
            data = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
            version, size, index = _TOKEN.unpack_from(data)
        except (binascii.Error, ValueError, struct.error) as error:
            raise InvalidArgumentError(
                "page_token", "is not a page token; start again without one"
            ) from error
        packed, seal = data[: _TOKEN.size], data[_TOKEN.size :]
        if version != _TOKEN_VERSION or not hmac.compare_digest(seal, _seal(key, packed, question)):
            raise InvalidArgumentError(
                "page_token", "belongs to another query or reader; start again without one"
            )
        return cls(size, index)


def digest_of(conditions: Sequence[Condition], *facts: object) -> bytes:
    """What makes a page token belong to one query of one reader."""
    return sha256(repr((tuple(conditions), facts)).encode()).digest()


def _seal(key: bytes, packed: bytes, question: bytes) -> bytes:
    return hmac.digest(key, packed + question, "sha256")[:_SEAL_BYTES]


def page_size_of(asked: int) -> int:
    """The page size to use; raises `InvalidArgumentError` outside 0 to the largest."""
    if not 0 <= asked <= MAX_PAGE_SIZE:
        raise InvalidArgumentError(
            "page_size", f"must be 1 to {MAX_PAGE_SIZE}; {DEFAULT_PAGE_SIZE} when unset"
        )
    return asked or DEFAULT_PAGE_SIZE
