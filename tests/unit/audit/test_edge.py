"""The growing edge and the stored tiles give the proofs of the whole tree."""

from __future__ import annotations

import random

import pytest

from kala.audit.merkle import consistency_proof, inclusion_proof, leaf_hash, root_of
from kala.audit.proof import verify_consistency, verify_inclusion
from kala.audit.tile_nodes import TileReader, open_tiles
from kala.errors import DataLossError
from services.audit.edge import Tile, TreeEdge, split_hashes

LEAVES = [leaf_hash(str(number).encode()) for number in range(70_000)]


class Storage:
    """Tiles as the store keeps them."""

    def __init__(self) -> None:
        self.tiles: dict[tuple[int, int], Tile] = {}
        self.leaves: list[bytes] = []

    def hashes(self, level: int, first: int, last: int) -> list[bytes]:
        if level == 0:
            return self.leaves[first:last]
        tile = self.tiles.get((level, first // 256))
        return [] if tile is None else split_hashes(tile.data)[first % 256 : first % 256 + last - first]


def grow(edge: TreeEdge, storage: Storage, count: int) -> None:
    for digest in LEAVES[edge.size : edge.size + count]:
        edge.append(digest)
        storage.leaves.append(digest)
    storage.tiles.update({(tile.level, tile.number): tile for tile in edge.changed_tiles()})


def test_fresh_entries_are_proved_without_storage_and_old_ones_from_tiles() -> None:
    rng, edge, storage = random.Random(3), TreeEdge(0, b"", {}), Storage()
    while edge.size < 69_000:
        before = edge.size
        grow(edge, storage, rng.choice([1, 2, 100, 255, 256, 257, 1_000, 5_000]))
        size, root = edge.size, edge.root()
        for index in {before, size - 1, rng.randrange(before, size)}:
            verify_inclusion(LEAVES[index], index, size, edge.prove(index), root)
        edge.settle()
        reader = TileReader(size, storage.hashes)
        index, old = rng.randrange(size), rng.randrange(1, size + 1)
        verify_inclusion(LEAVES[index], index, size, inclusion_proof(index, size, reader.node), root)
        proof = consistency_proof(old, size, reader.node)
        verify_consistency(old, size, proof, root_of(LEAVES[:old]), root)
        if rng.random() < 0.3:
            edge = TreeEdge(size, edge.range_bytes, open_tiles(size, storage.hashes))
            assert edge.root() == root
    assert {level for level, _ in storage.tiles} == {0, 1, 2}


def test_a_proof_of_an_older_tree_ignores_what_was_added_since() -> None:
    edge, storage = TreeEdge(0, b"", {}), Storage()
    grow(edge, storage, 3_000)
    reader = TileReader(700, storage.hashes)
    verify_inclusion(LEAVES[650], 650, 700, inclusion_proof(650, 700, reader.node), root_of(LEAVES[:700]))


def test_the_memory_of_an_edge_is_bounded() -> None:
    edge, storage = TreeEdge(0, b"", {}), Storage()
    for _ in range(70):
        grow(edge, storage, 1_000)
        edge.settle()
        assert len(edge._nodes) < 3 * 512


@pytest.mark.parametrize("damage", ["missing", "changed", "range"])
def test_an_edge_is_not_restored_from_tiles_that_disagree_with_the_head(damage: str) -> None:
    edge, storage = TreeEdge(0, b"", {}), Storage()
    grow(edge, storage, 300)
    tiles = open_tiles(300, storage.hashes)
    data = edge.range_bytes
    if damage == "missing":
        tiles[0] = tiles[0][:-1]
    elif damage == "changed":
        tiles[0][3] = b"x" * 32
    else:
        data = b"x" * len(data)
    with pytest.raises(DataLossError):
        TreeEdge(300, data, tiles)


def test_a_missing_tile_is_an_error_not_a_wrong_proof() -> None:
    edge, storage = TreeEdge(0, b"", {}), Storage()
    grow(edge, storage, 600)
    del storage.tiles[1, 0]
    with pytest.raises(DataLossError, match="lack the node"):
        inclusion_proof(599, 600, TileReader(600, storage.hashes).node)
