"""The published vectors of RFC 6962 logs, and properties of our own trees."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pymerkle import InmemoryTree

from kala.audit.merkle import (
    EMPTY_ROOT,
    CompactRange,
    consistency_proof,
    inclusion_proof,
    leaf_hash,
    node_hash,
    root_of,
)
from kala.audit.proof import verify_consistency, verify_inclusion, verify_subtree_consistency
from kala.errors import VerificationError

VECTORS = Path(__file__).parents[2] / "vectors" / "audit"
TESTDATA = VECTORS / "transparency-dev-merkle" / "testdata"


def cases(kind: str) -> list[object]:
    paths = sorted((TESTDATA / kind).rglob("*.json"))
    return [
        pytest.param(json.loads(p.read_text()), id=str(p.relative_to(TESTDATA).with_suffix("")))
        for p in paths
    ]


def data(text: str | None) -> bytes:
    return base64.b64decode(text or "")


def accepts(verify: object, *args: object) -> bool:
    try:
        verify(*args)  # type: ignore[operator] # one of the verifiers
    except VerificationError:
        return False
    return True


@pytest.mark.parametrize("case", cases("inclusion"))
def test_a_published_inclusion_case_is_judged_as_published(case: dict[str, object]) -> None:
    proof = [data(item) for item in case["proof"] or []]
    arguments = (data(case["leafHash"]), case["leafIdx"], case["treeSize"], proof, data(case["root"]))
    assert accepts(verify_inclusion, *arguments) is not case["wantErr"]


@pytest.mark.parametrize("case", cases("consistency"))
def test_a_published_consistency_case_is_judged_as_published(case: dict[str, object]) -> None:
    proof = [data(item) for item in case["proof"] or []]
    arguments = (case["size1"], case["size2"], proof, data(case["root1"]), data(case["root2"]))
    assert accepts(verify_consistency, *arguments) is not case["wantErr"]


@pytest.mark.parametrize("case", cases("subtreeinclusion"))
def test_a_published_subtree_inclusion_case_is_judged_as_published(case: dict[str, object]) -> None:
    start, end, index = case["start"], case["end"], case["leafIdx"]
    proof = [data(item) for item in case["proof"] or []]
    is_subtree = start < end and start % (1 << (end - start - 1).bit_length()) == 0
    accepted = is_subtree and accepts(
        verify_inclusion, data(case["leafHash"]), index - start, end - start, proof, data(case["root"])
    )
    assert accepted is not case["wantErr"]


@pytest.mark.parametrize("case", cases("subtreeconsistency"))
def test_a_published_subtree_consistency_case_is_judged_as_published(case: dict[str, object]) -> None:
    proof = [data(item) for item in case["proof"] or []]
    arguments = (case["start"], case["end"], case["size"], proof, data(case["root1"]), data(case["root2"]))
    assert accepts(verify_subtree_consistency, *arguments) is not case["wantErr"]


def test_all_published_cases_are_there() -> None:
    counts = {
        kind: len(cases(kind))
        for kind in ("inclusion", "consistency", "subtreeinclusion", "subtreeconsistency")
    }
    assert counts == {"inclusion": 98, "consistency": 98, "subtreeinclusion": 204, "subtreeconsistency": 118}


def test_the_reference_tree_of_certificate_transparency_has_its_published_roots() -> None:
    reference = json.loads((VECTORS / "rfc6962" / "ct_reference_tree.json").read_text())
    leaves = [leaf_hash(bytes.fromhex(leaf)) for leaf in reference["leaves_hex"]]
    assert [root_of(leaves[:size]) for size in range(9)] == [
        data(root) for root in reference["roots_b64_by_size"]
    ]


def fuzz_ranges() -> list[tuple[int, int]]:
    """The published fuzz corpus of ranges: where each begins and ends."""
    corpus = VECTORS / "transparency-dev-merkle" / "compact" / "testdata" / "fuzz" / "FuzzRangeNodes"
    found = [re.findall(r"uint64\((\d+)\)", path.read_text()) for path in sorted(corpus.iterdir())]
    return [(int(begin), int(end)) for begin, end in found]


@pytest.mark.parametrize(("begin", "end"), fuzz_ranges())
def test_a_tree_that_grows_over_a_published_range_proves_that_it_grew(begin: int, end: int) -> None:
    if begin > end:
        with pytest.raises(VerificationError):
            consistency_proof(begin, end, Tree(begin).node)
        return
    tree = Tree(end)
    grown = CompactRange()
    for digest in tree.hashes[:begin]:
        grown.append(digest)
    assert grown.root() == tree.root(0, begin)
    for digest in tree.hashes[begin:]:
        grown.append(digest)
    assert grown.root() == tree.root()
    if begin:
        proof = consistency_proof(begin, end, tree.node)
        verify_consistency(begin, end, proof, tree.root(0, begin), tree.root())
    if begin < end:
        proof = inclusion_proof(begin, end, tree.node)
        verify_inclusion(tree.hashes[begin], begin, end, proof, tree.root())


def test_the_whole_published_fuzz_corpus_is_there() -> None:
    assert len(fuzz_ranges()) == 19


def test_pymerkle_finds_the_same_roots_and_accepts_the_same_growth() -> None:
    """A second opinion that shares no code with ours."""
    other, grown = InmemoryTree(algorithm="sha256"), CompactRange()
    assert other.get_root() == grown.root()
    for number in range(130):
        other.append_entry(str(number).encode())
        grown.append(leaf_hash(str(number).encode()))
        assert other.get_root() == grown.root()
    assert [other.get_root(size) for size in range(131)] == [Tree(size).root() for size in range(131)]


class Tree:
    """The definition of RFC 6962 section 2.1, word for word, to compare with."""

    def __init__(self, size: int) -> None:
        self.hashes = [leaf_hash(str(number).encode()) for number in range(size)]

    def root(self, first: int = 0, last: int | None = None) -> bytes:
        last = len(self.hashes) if last is None else last
        if last - first == 0:
            return EMPTY_ROOT
        if last - first == 1:
            return self.hashes[first]
        split = 1 << ((last - first - 1).bit_length() - 1)
        return node_hash(self.root(first, first + split), self.root(first + split, last))

    def node(self, level: int, index: int) -> bytes:
        return self.root(index << level, (index + 1) << level)


@given(st.integers(0, 300))
@settings(max_examples=60)
def test_a_compact_range_has_the_root_of_the_definition(size: int) -> None:
    tree = Tree(size)
    grown = CompactRange()
    for digest in tree.hashes:
        grown.append(digest)
    assert grown.root() == root_of(tree.hashes) == tree.root()
    assert CompactRange.from_bytes(size, grown.to_bytes()).root() == tree.root()


@given(st.data(), st.integers(1, 300))
@settings(max_examples=80)
def test_generated_proofs_verify_and_no_longer_do_with_one_bit_changed(
    draws: st.DataObject, size: int
) -> None:
    tree = Tree(size)
    index = draws.draw(st.integers(0, size - 1))
    proof = inclusion_proof(index, size, tree.node)
    assert verify_inclusion(tree.hashes[index], index, size, proof, tree.root()) == tree.hashes[index]
    old = draws.draw(st.integers(1, size))
    steps = consistency_proof(old, size, tree.node)
    assert verify_consistency(old, size, steps, tree.root(0, old), tree.root()) == tree.root()
    for hashes, verify in (
        (proof, lambda p: verify_inclusion(tree.hashes[index], index, size, p, tree.root())),
        (steps, lambda p: verify_consistency(old, size, p, tree.root(0, old), tree.root())),
    ):
        if hashes:
            place, bit = draws.draw(st.integers(0, len(hashes) - 1)), draws.draw(st.integers(0, 255))
            changed = (int.from_bytes(hashes[place], "big") ^ 1 << bit).to_bytes(32, "big")
            with pytest.raises(VerificationError):
                verify([*hashes[:place], changed, *hashes[place + 1 :]])


@pytest.mark.parametrize("digest", [b"", b"x" * 31, b"x" * 33])
def test_a_hash_of_another_length_is_rejected(digest: bytes) -> None:
    tree = Tree(2)
    with pytest.raises(VerificationError, match="32 bytes"):
        verify_inclusion(digest, 0, 2, [tree.hashes[1]], tree.root())
    with pytest.raises(VerificationError, match="32 bytes"):
        verify_consistency(1, 2, [digest], tree.hashes[0], tree.root())


def test_nothing_is_consistent_with_an_empty_tree() -> None:
    with pytest.raises(VerificationError, match="empty tree"):
        verify_consistency(0, 0, [], EMPTY_ROOT, EMPTY_ROOT)


@pytest.mark.parametrize(("index", "size"), [(-1, 3), (3, 3), (0, 0)])
def test_a_proof_is_only_made_for_a_leaf_of_the_tree(index: int, size: int) -> None:
    with pytest.raises(VerificationError, match="not in a tree"):
        inclusion_proof(index, size, Tree(3).node)
    with pytest.raises(VerificationError):
        verify_inclusion(Tree(3).hashes[0], index, size, [], EMPTY_ROOT)


@pytest.mark.parametrize(("old", "new"), [(0, 3), (4, 3)])
def test_a_consistency_proof_leads_only_forward_from_a_tree_that_holds_something(old: int, new: int) -> None:
    with pytest.raises(VerificationError, match="no consistency proof"):
        consistency_proof(old, new, Tree(4).node)


@pytest.mark.parametrize(("size", "hashes"), [(-1, []), (3, [b"x" * 32]), (1, [b"short"])])
def test_a_compact_range_holds_one_hash_per_bit_of_its_size(size: int, hashes: list[bytes]) -> None:
    with pytest.raises(VerificationError):
        CompactRange(size, hashes)


def test_a_compact_range_is_read_from_whole_hashes_only() -> None:
    with pytest.raises(VerificationError, match="whole number"):
        CompactRange.from_bytes(1, b"x" * 33)


def test_a_copy_of_a_compact_range_grows_alone() -> None:
    first = CompactRange()
    second = first.copy()
    second.append(leaf_hash(b""))
    assert (first.size, second.size) == (0, 1)


def test_a_subtree_is_appended_whole_only_where_it_begins() -> None:
    tree = Tree(300)
    grown = CompactRange()
    grown.append_subtree(8, tree.node(8, 0))
    grown.append_subtree(5, tree.node(5, 8))
    for digest in tree.hashes[288:]:
        grown.append(digest)
    assert grown.root() == tree.root()
    with pytest.raises(VerificationError, match="no subtree of 8 leaves begins at leaf 300"):
        grown.append_subtree(3, tree.hashes[0])
