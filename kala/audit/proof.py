"""Verification of RFC 6962 inclusion and consistency proofs.

Each verifier returns what it verified or raises `VerificationError`; none returns a bool that a caller may drop.
"""

from __future__ import annotations

from collections.abc import Sequence

from kala.audit.merkle import EMPTY_ROOT, HASH_BYTES, node_hash
from kala.errors import VerificationError


def _require_hashes(*digests: bytes) -> None:
    if any(len(digest) != HASH_BYTES for digest in digests):
        raise VerificationError("a hash is not 32 bytes long")


def verify_inclusion(digest: bytes, index: int, size: int, proof: Sequence[bytes], root: bytes) -> bytes:
    """Returns the leaf hash when `proof` leads from it, at `index`, to `root` at `size`; RFC 9162 section 2.1.3.2."""
    _require_hashes(digest, root, *proof)
    if not 0 <= index < size:
        raise VerificationError(f"leaf {index} is not in a tree of size {size}")
    node, last, computed = index, size - 1, digest
    for sibling in proof:
        if last == 0:
            raise VerificationError("the inclusion proof is too long")
        if node & 1 or node == last:
            computed = node_hash(sibling, computed)
            while not node & 1 and node:
                node, last = node >> 1, last >> 1
        else:
            computed = node_hash(computed, sibling)
        node, last = node >> 1, last >> 1
    if last != 0:
        raise VerificationError("the inclusion proof is too short")
    if computed != root:
        raise VerificationError(
            f"the inclusion proof of leaf {index} does not lead to the root at size {size}"
        )
    return digest


def verify_consistency(
    old_size: int, new_size: int, proof: Sequence[bytes], old_root: bytes, new_root: bytes
) -> bytes:
    """Returns `new_root` when the tree of `old_size` is a prefix of its tree; RFC 9162 section 2.1.4.2.

    Size 0 is rejected: nothing can be proved from an empty tree, and accepting it would hide a rollback.
    """
    if old_size == 0:
        raise VerificationError("nothing is consistent with an empty tree")
    verify_subtree_consistency(0, old_size, new_size, proof, old_root, new_root)
    return new_root


def prefix_root(old_size: int, new_size: int, proof: Sequence[bytes], new_root: bytes) -> bytes:
    """The root over the first `old_size` leaves of the tree with `new_root`, as a consistency proof shows it.

    Raises `VerificationError` when the proof leads elsewhere, or `old_size` is a power of two: no proof holds its root.
    """
    _require_hashes(new_root, *proof)
    if not 0 < old_size < new_size or old_size & (old_size - 1) == 0:
        raise VerificationError(f"a consistency proof does not hold the root at {old_size} of {new_size}")
    old, new = _fold_consistency(0, old_size - 1, new_size - 1, proof, b"")
    if new != new_root:
        raise VerificationError(f"the proof does not lead to the tree of size {new_size}")
    return old


def verify_subtree_consistency(
    start: int, end: int, size: int, proof: Sequence[bytes], subtree_root: bytes, root: bytes
) -> bytes:
    """Returns `subtree_root` when it is the root over leaves [start, end) in the tree of `size` with `root`.

    The general form of a consistency proof (draft-ietf-plants-merkle-tree-certs section 4.4).
    An empty subtree proves nothing about the tree; it is accepted only with the hash of nothing.
    """
    if (start, end) == (0, size) and not proof and subtree_root == root and size:
        return subtree_root
    if start == end <= size and not proof and subtree_root == EMPTY_ROOT:
        return subtree_root
    _require_hashes(subtree_root, root, *proof)
    if not 0 <= start < end <= size or start % (1 << (end - start - 1).bit_length()):
        raise VerificationError(f"[{start}, {end}) is not a subtree of a tree of size {size}")
    old, new = _fold_consistency(start, end - 1, size - 1, proof, subtree_root)
    if old != subtree_root or new != root:
        raise VerificationError(
            f"the tree of size {size} does not contain the one of leaves [{start}, {end})"
        )
    return subtree_root


def _fold_consistency(
    first: int, node: int, last: int, proof: Sequence[bytes], subtree_root: bytes
) -> tuple[bytes, bytes]:
    """The roots of subtree and tree that `proof` leads to; the arguments are leaf indexes, inclusive."""
    while first != node and (node == last or node & 1):
        first, node, last = first >> 1, node >> 1, last >> 1
    path = list(proof)
    if first != node and not path:
        raise VerificationError("the consistency proof is too short")
    old = new = subtree_root if first == node else path.pop(0)
    for sibling in path:
        if last == 0:
            raise VerificationError("the consistency proof is too long")
        if node & 1 or node == last:
            old = node_hash(sibling, old) if first < node else old
            new = node_hash(sibling, new)
            while not node & 1:
                first, node, last = first >> 1, node >> 1, last >> 1
        else:
            new = node_hash(new, sibling)
        first, node, last = first >> 1, node >> 1, last >> 1
    if last != 0:
        raise VerificationError("the consistency proof is too short")
    return old, new
