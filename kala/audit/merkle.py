"""RFC 6962 Merkle trees: hashes, roots and proofs, made by pure functions; `proof.py` verifies them.

Sizes and indexes are counts of leaves. Every hash is SHA-256, 32 bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from hashlib import sha256
from typing import Final

from kala.errors import VerificationError

HASH_BYTES: Final = 32
# RFC 6962 section 2.1: the prefixes that keep a leaf from posing as a node.
LEAF_PREFIX: Final = b"\x00"
NODE_PREFIX: Final = b"\x01"
EMPTY_ROOT: Final = sha256(b"").digest()

# Gives the hash of the complete subtree that starts at leaf `index << level` and holds `1 << level` leaves.
NodeReader = Callable[[int, int], bytes]


def leaf_hash(leaf: bytes) -> bytes:
    """The hash of one leaf (RFC 6962 section 2.1)."""
    return sha256(LEAF_PREFIX + leaf).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """The hash of an interior node (RFC 6962 section 2.1)."""
    return sha256(NODE_PREFIX + left + right).digest()


def root_of(leaf_hashes: Iterable[bytes]) -> bytes:
    """The root of the tree over these leaf hashes, in constant memory."""
    tree = CompactRange()
    for digest in leaf_hashes:
        tree.append(digest)
    return tree.root()


class CompactRange:
    """The right edge of a growing tree: the roots of its complete subtrees, largest first.

    It holds at most 64 hashes whatever the size, so appending and taking the root need no other state.
    """

    __slots__ = ("hashes", "size")

    def __init__(self, size: int = 0, hashes: Sequence[bytes] = ()) -> None:
        if size < 0 or len(hashes) != size.bit_count() or any(len(h) != HASH_BYTES for h in hashes):
            raise VerificationError(
                f"a compact range of size {size} has {size.bit_count()} hashes of 32 bytes"
            )
        self.size = size
        self.hashes = list(hashes)

    def append(self, digest: bytes, on_node: Callable[[int, int, bytes], None] | None = None) -> None:
        """Adds one leaf hash; `on_node(level, index, hash)` sees every node above the leaf that it completes."""
        size, hashes = self.size, self.hashes
        level = 0
        while size >> level & 1:
            digest = sha256(NODE_PREFIX + hashes.pop() + digest).digest()
            level += 1
            if on_node is not None:
                on_node(level, size >> level, digest)
        hashes.append(digest)
        self.size = size + 1

    def append_subtree(self, level: int, digest: bytes) -> None:
        """Adds the root of the complete subtree of `1 << level` leaves that begins here; it must fit here."""
        if self.size & ((1 << level) - 1):
            raise VerificationError(f"no subtree of {1 << level} leaves begins at leaf {self.size}")
        place = self.size >> level
        while place & 1:
            digest = sha256(NODE_PREFIX + self.hashes.pop() + digest).digest()
            place >>= 1
        self.hashes.append(digest)
        self.size += 1 << level

    def root(self) -> bytes:
        """The root of the tree so far; the hash of nothing for an empty tree."""
        if not self.hashes:
            return EMPTY_ROOT
        digest = self.hashes[-1]
        for left in self.hashes[-2::-1]:
            digest = node_hash(left, digest)
        return digest

    def to_bytes(self) -> bytes:
        """The hashes, joined; the inverse of `from_bytes` with the same size."""
        return b"".join(self.hashes)

    @classmethod
    def from_bytes(cls, size: int, data: bytes) -> CompactRange:
        """Restores a range that `to_bytes` wrote, or raises `VerificationError`."""
        if len(data) % HASH_BYTES:
            raise VerificationError("a compact range is a whole number of hashes")
        return cls(size, [data[i : i + HASH_BYTES] for i in range(0, len(data), HASH_BYTES)])

    def copy(self) -> CompactRange:
        """An independent range of the same content."""
        return CompactRange(self.size, self.hashes)


def _split(size: int) -> int:
    """The largest power of two smaller than `size` (RFC 6962's k); `size` is at least 2."""
    return 1 << ((size - 1).bit_length() - 1)


def _subtree_root(start: int, end: int, read: NodeReader) -> bytes:
    """The root over leaves [start, end), where start is a multiple of the power of two not below its length."""
    size = end - start
    if size & (size - 1) == 0:
        level = size.bit_length() - 1
        return read(level, start >> level)
    middle = start + _split(size)
    return node_hash(_subtree_root(start, middle, read), _subtree_root(middle, end, read))


def inclusion_proof(index: int, size: int, read: NodeReader) -> list[bytes]:
    """The hashes from the sibling of leaf `index` up to the child of the root (RFC 6962 section 2.1.1)."""
    if not 0 <= index < size:
        raise VerificationError(f"leaf {index} is not in a tree of size {size}")
    proof: list[bytes] = []
    node, last, level = index, size - 1, 0
    while last:
        if node & 1:
            proof.append(read(level, node - 1))
        elif node + 2 <= size >> level:
            proof.append(read(level, node + 1))
        elif node < last:
            proof.append(_subtree_root(node + 1 << level, size, read))
        node, last, level = node >> 1, last >> 1, level + 1
    return proof


def consistency_proof(old_size: int, new_size: int, read: NodeReader) -> list[bytes]:
    """The hashes that show the tree of `old_size` to be a prefix of that of `new_size` (RFC 6962 section 2.1.2)."""
    if not 1 <= old_size <= new_size:
        raise VerificationError(f"no consistency proof leads from size {old_size} to {new_size}")
    proof: list[bytes] = []
    start, end = 0, new_size
    while old_size != end:
        middle = start + _split(end - start)
        if old_size <= middle:
            proof.append(_subtree_root(middle, end, read))
            end = middle
        else:
            proof.append(_subtree_root(start, middle, read))
            start = middle
    if start > 0:
        proof.append(_subtree_root(start, end, read))
    proof.reverse()
    return proof
