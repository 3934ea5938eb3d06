"""Reading and hashing open files, in pieces."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from typing import Final

PIECE_BYTES: Final = 1024 * 1024


def pieces(descriptor: int, *, offset: int = 0, most: int | None = None) -> Iterator[bytes]:
    """The bytes from `offset` on, at most so many; the descriptor's own position does not matter."""
    left = most
    while left is None or left > 0:
        piece = os.pread(descriptor, PIECE_BYTES if left is None else min(PIECE_BYTES, left), offset)
        if not piece:
            return
        yield piece
        offset += len(piece)
        if left is not None:
            left -= len(piece)


def write_all(descriptor: int, data: bytes) -> None:
    """Write every byte or raise OSError."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def digest_of(descriptor: int) -> bytes:
    """SHA-256 of all of an open file."""
    digest = hashlib.sha256()
    for piece in pieces(descriptor):
        digest.update(piece)
    return digest.digest()
