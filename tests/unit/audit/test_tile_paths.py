"""The paths of tiles: the specification's examples, one spelling each, and what a tree of some size has."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kala.audit.merkle import leaf_hash
from kala.audit.tile_paths import TilePath, bundle, bundles_of, tiles_of, unbundle
from kala.errors import VerificationError

VECTORS = Path(__file__).parents[2] / "vectors" / "audit"
EXAMPLES = json.loads((VECTORS / "c2sp" / "examples.json").read_text())
TESSERA = VECTORS / "tessera" / "testdata" / "log"


def test_a_number_is_spelled_as_the_specification_spells_it() -> None:
    for number, path in EXAMPLES["tile_index_paths"].items():
        assert str(TilePath(0, int(number))) == f"tile/0/{path}"


@pytest.mark.parametrize("size", [70_000, 256])
def test_a_tree_has_the_tiles_that_the_specification_counts(size: int) -> None:
    tiles = list(tiles_of(size))
    counted: dict[str, int] = {}
    for tile in tiles:
        if tile.width == 256:
            counted[f"full_l{tile.level}"] = counted.get(f"full_l{tile.level}", 0) + 1
        else:
            counted[f"partial_l{tile.level}"] = tile.width
    assert counted == EXAMPLES[f"tile_counts_size_{size}"]
    assert all(tile.is_in(size) for tile in tiles)


def test_the_published_log_holds_just_the_tiles_of_its_sizes() -> None:
    expected = {str(tile) for size in range(1, 16) for tile in (*tiles_of(size), *bundles_of(size))}
    assert {str(p.relative_to(TESSERA)) for p in (TESSERA / "tile").rglob("*") if p.is_file()} == expected


@pytest.mark.parametrize("size", range(1, 16))
def test_a_published_bundle_holds_the_leaves_of_its_tile(size: int) -> None:
    (tile,), (entries,) = tiles_of(size), bundles_of(size)
    data = (TESSERA / str(entries)).read_bytes()
    leaves = unbundle(data)
    assert b"".join(map(leaf_hash, leaves)) == (TESSERA / str(tile)).read_bytes()
    assert bundle(leaves) == data


@given(st.one_of(st.none(), st.integers(0, 63)), st.integers(0, 10**15), st.integers(1, 256))
def test_a_path_is_read_as_it_was_written(level: int | None, number: int, width: int) -> None:
    tile = TilePath(level, number, width)
    assert TilePath.parse(str(tile)) == tile


@pytest.mark.parametrize(
    "path",
    [
        "tile/0/0",
        "tile/0/1000",
        "tile/0/x000/001",
        "tile/0/x00/001",
        "tile/0/001/002",
        "tile/00/000",
        "tile/64/000",
        "tile/-1/000",
        "tile/0/000.p/0",
        "tile/0/000.p/256",
        "tile/0/000.p/01",
        "tile/0/000.p/",
        "tile/0/000/",
        "tile/0/000\n",
        "tile/0/\u0660\u0660\u0660",
        "tile/8/0/000",
        "tile/entries/",
        "tile/../checkpoint",
        "/tile/0/000",
        "",
    ],
)
def test_any_other_spelling_is_no_tile(path: str) -> None:
    with pytest.raises(VerificationError, match="not the path of a tile"):
        TilePath.parse(path)


@given(st.integers(0, 200_000), st.integers(0, 2_000))
def test_what_a_log_gained_is_just_what_the_smaller_one_lacks(old: int, more: int) -> None:
    new = old + more
    gained = [*tiles_of(new, since=old), *bundles_of(new, since=old)]
    before = {*tiles_of(old), *bundles_of(old)}
    assert before.isdisjoint(gained)
    assert {*tiles_of(new), *bundles_of(new)} <= before.union(gained)


def test_a_tile_is_in_a_tree_that_has_all_its_hashes() -> None:
    assert TilePath(0, 0, 5).is_in(5)
    assert not TilePath(0, 0, 6).is_in(5)
    assert TilePath(1, 0, 1).is_in(256)
    assert not TilePath(1, 0, 1).is_in(255)
    assert TilePath(None, 1, 1).is_in(257)
    assert not TilePath(None, 1, 2).is_in(257)


@pytest.mark.parametrize("data", [b"\0", b"\0\5abcd", b"\0\1a\0"])
def test_a_bundle_that_ends_within_an_entry_is_refused(data: bytes) -> None:
    with pytest.raises(VerificationError, match="ends within an entry"):
        unbundle(data)


def test_an_empty_entry_and_the_longest_survive_a_bundle() -> None:
    entries = [b"", b"x" * 65_535]
    assert unbundle(bundle(entries)) == entries
