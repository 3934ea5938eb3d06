"""The growing edge of the tree: what proofs of fresh entries need, and the tiles that an append completes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from kala.audit.merkle import HASH_BYTES, CompactRange, inclusion_proof, node_hash
from kala.audit.report import TILE_LEVELS, TILE_WIDTH
from kala.errors import DataLossError, VerificationError

_MASK: Final = TILE_WIDTH - 1


class Tile(NamedTuple):
    """A tile as stored: its place, how many hashes it holds and the hashes, joined."""

    level: int
    number: int
    width: int
    data: bytes


class TreeEdge:
    """The compact range of a log with every node of the tiles that still grow.

    Proofs of entries appended since the last `settle` need no storage. After a failed commit, make a new edge from the
    store: an edge only moves forward.
    """

    def __init__(self, size: int, range_bytes: bytes, open_tiles: Mapping[int, Sequence[bytes]]) -> None:
        """`open_tiles` gives, per tile level, the hashes of the tile that still grows; raises `DataLossError`."""
        try:
            self._range = CompactRange.from_bytes(size, range_bytes)
        except VerificationError as error:
            raise DataLossError(f"the log's head is damaged: {error.message}") from error
        self._nodes: dict[tuple[int, int], bytes] = {}
        self._open: dict[int, list[bytes]] = {}
        self._full: list[Tile] = []
        self._touched: set[int] = set()
        for level in range(_tile_levels(size)):
            hashes = list(open_tiles.get(level, ()))
            if len(hashes) != (size >> TILE_LEVELS * level) & _MASK:
                raise DataLossError(
                    f"the growing tile of level {level} holds {len(hashes)} hashes at size {size}"
                )
            self._open[level] = hashes
            self._restore_nodes(level, hashes)
        if any(self._nodes.get(place) != digest for place, digest in self._peaks()):
            raise DataLossError(f"the stored tiles do not agree with the log's head at size {size}")

    @property
    def size(self) -> int:
        """How many leaves the tree has."""
        return self._range.size

    @property
    def range_bytes(self) -> bytes:
        """The compact range, as the head row keeps it."""
        return self._range.to_bytes()

    def root(self) -> bytes:
        """The root over all leaves."""
        return self._range.root()

    def append(self, digest: bytes) -> None:
        """Adds one leaf hash."""
        index = self._range.size
        self._nodes[0, index] = digest
        self._add_to_tile(0, index, digest)
        self._range.append(digest, self._note_node)

    def prove(self, index: int) -> list[bytes]:
        """The inclusion proof of an entry appended since the last `settle`."""
        return inclusion_proof(index, self._range.size, self._read)

    def changed_tiles(self) -> list[Tile]:
        """The tiles to store: those completed since `settle`, and the growing ones above level 0 that changed."""
        size = self._range.size
        growing = [
            Tile(level, size >> TILE_LEVELS * (level + 1), len(hashes), b"".join(hashes))
            for level, hashes in self._open.items()
            if level in self._touched and level and hashes
        ]
        return self._full + growing

    def settle(self) -> None:
        """Forgets what only the proofs of the last entries needed; call it when they are stored."""
        if self._full:
            size = self._range.size
            self._nodes = {
                (level, index): digest
                for (level, index), digest in self._nodes.items()
                if index >> TILE_LEVELS - level % TILE_LEVELS
                == size >> TILE_LEVELS * (level // TILE_LEVELS + 1)
            }
            self._full = []
        self._touched.clear()

    def _read(self, level: int, index: int) -> bytes:
        return self._nodes[level, index]

    def _note_node(self, level: int, index: int, digest: bytes) -> None:
        self._nodes[level, index] = digest
        if level % TILE_LEVELS == 0:
            self._add_to_tile(level // TILE_LEVELS, index, digest)

    def _add_to_tile(self, level: int, index: int, digest: bytes) -> None:
        hashes = self._open.setdefault(level, [])
        hashes.append(digest)
        self._touched.add(level)
        if len(hashes) == TILE_WIDTH:
            self._full.append(Tile(level, index >> TILE_LEVELS, TILE_WIDTH, b"".join(hashes)))
            hashes.clear()

    def _restore_nodes(self, tile_level: int, hashes: Sequence[bytes]) -> None:
        level = tile_level * TILE_LEVELS
        start = (self.size >> level) & ~_MASK
        row = dict(enumerate(hashes, start))
        for step in range(TILE_LEVELS):
            self._nodes.update({(level + step, index): digest for index, digest in row.items()})
            row = {i >> 1: node_hash(row[i], row[i + 1]) for i in row if not i & 1 and i + 1 in row}

    def _peaks(self) -> list[tuple[tuple[int, int], bytes]]:
        """The places of the compact range's hashes in the tree."""
        size = self.size
        levels = [level for level in reversed(range(size.bit_length())) if size >> level & 1]
        return [
            ((level, (size >> level) - 1), digest)
            for level, digest in zip(levels, self._range.hashes, strict=True)
        ]


def split_hashes(data: bytes) -> list[bytes]:
    """The hashes that a tile joins."""
    return [data[i : i + HASH_BYTES] for i in range(0, len(data), HASH_BYTES)]


def _tile_levels(size: int) -> int:
    """How many levels of tiles a tree of this size has begun."""
    return (size.bit_length() + TILE_LEVELS - 1) // TILE_LEVELS
