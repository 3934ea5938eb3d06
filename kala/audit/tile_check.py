"""Stored tiles against the hashes that belong in them, collected while the leaves go by."""

from __future__ import annotations

import sqlite3
from typing import Final

from kala.audit.merkle import HASH_BYTES
from kala.audit.report import TILE_WIDTH, TamperedError

# One SQLite file holds one log.
_TILE: Final = "SELECT width, data FROM tile WHERE log_id = 1 AND level = ? AND n = ?"


def require_tile(level: int, number: int, expected: bytes, stored: bytes | None) -> None:
    """Raises `TamperedError` naming the first entry below the first hash that a stored tile has wrong."""
    if stored == expected:
        return
    stored = stored or b""
    same = next(
        (
            i
            for i in range(0, len(expected), HASH_BYTES)
            if stored[i : i + HASH_BYTES] != expected[i : i + HASH_BYTES]
        ),
        0,
    )
    first = (number * TILE_WIDTH + same // HASH_BYTES) * TILE_WIDTH**level
    raise TamperedError(first, f"the tile {level}/{number} does not hold the entries' hashes")


class TileCheck:
    """Takes every hash of every tile level in order; compares each tile when it is full, the rest at the end."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._db = connection
        self._growing: dict[int, list[bytes]] = {}
        self._full: dict[int, int] = {}

    def take(self, level: int, digest: bytes) -> None:
        """Takes the next hash of a tile level; raises `TamperedError` when it completes a tile that is not stored."""
        hashes = self._growing.setdefault(level, [])
        hashes.append(digest)
        if len(hashes) == TILE_WIDTH:
            number = self._full.get(level, 0)
            self._check(level, number, b"".join(hashes))
            self._full[level] = number + 1
            hashes.clear()

    def _check(self, level: int, number: int, expected: bytes) -> None:
        row = self._db.execute(_TILE, (level, number)).fetchone()
        width, data = row or (0, None)
        fits = width == len(expected) // HASH_BYTES and isinstance(data, bytes)
        require_tile(level, number, expected, data if fits else None)

    def finish(self) -> None:
        """Compares the tiles that still grow: those above level 0 are stored, that of level 0 is not.

        Raises `TamperedError` also when there are tiles that do not belong.
        """
        for level, hashes in self._growing.items():
            if level and hashes:
                self._check(level, self._full.get(level, 0), b"".join(hashes))
        expected = sum(self._full.values()) + sum(1 for level, h in self._growing.items() if level and h)
        (stored,) = self._db.execute("SELECT count(*) FROM tile").fetchone()
        if stored != expected:
            raise TamperedError(None, f"{stored} tiles are stored where {expected} belong")
