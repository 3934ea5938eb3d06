"""Nodes of the tree at any size from tiles of 256 hashes (c2sp.org/tlog-tiles), read as few tiles as a path crosses."""

from __future__ import annotations

from collections.abc import Callable

from kala.audit.merkle import node_hash
from kala.audit.report import TILE_LEVELS, TILE_WIDTH
from kala.errors import DataLossError

# Gives the hashes [first, last) of a tile level: leaf hashes for level 0, roots of full tiles above.
HashReader = Callable[[int, int, int], list[bytes]]


class TileReader:
    """Reads tree nodes for one proof or several, remembering the tiles it has seen."""

    def __init__(self, size: int, read_hashes: HashReader) -> None:
        """`size` is the tree's: no tile is read beyond it."""
        self._size = size
        self._read_hashes = read_hashes
        self._tiles: dict[tuple[int, int], list[bytes]] = {}

    def node(self, level: int, index: int) -> bytes:
        """The root of the complete subtree at this place; raises `DataLossError` when storage has no such hash."""
        tile_level, step = divmod(level, TILE_LEVELS)
        first = index << step
        tile = self._tile(tile_level, first // TILE_WIDTH)
        offset = first % TILE_WIDTH
        row = tile[offset : offset + (1 << step)]
        if len(row) != 1 << step:
            raise DataLossError(f"the stored tiles lack the node {level}/{index}")
        while len(row) > 1:
            row = [node_hash(row[i], row[i + 1]) for i in range(0, len(row), 2)]
        return row[0]

    def _tile(self, level: int, number: int) -> list[bytes]:
        tile = self._tiles.get((level, number))
        if tile is None:
            first = number * TILE_WIDTH
            last = min(first + TILE_WIDTH, self._size >> TILE_LEVELS * level)
            tile = self._tiles[level, number] = self._read_hashes(level, first, last)
        return tile


def open_tiles(size: int, read_hashes: HashReader) -> dict[int, list[bytes]]:
    """The hashes of the tile that still grows, per tile level, in a tree of this size."""
    tiles: dict[int, list[bytes]] = {}
    level = 0
    while size >> TILE_LEVELS * level:
        count = size >> TILE_LEVELS * level
        tiles[level] = read_hashes(level, count & ~(TILE_WIDTH - 1), count)
        level += 1
    return tiles
