"""Finds rows that are the same, or nearly, as one that was kept before."""

from __future__ import annotations

import hashlib
from typing import Final, cast

from datasketch import MinHash, MinHashLSH

from services.trainer.datasets.contamination import words_of
from services.trainer.datasets.rows import Row

DEFAULT_SIMILARITY: Final = 0.8
SHINGLE_WORDS: Final = 5
# 128 permutations estimate a Jaccard similarity to about 0.04 around 0.8.
PERMUTATIONS: Final = 128
# The index misses some rows at its own threshold, so it proposes from a little below.
_MARGIN: Final = 0.1
_EXACT_BYTES: Final = 16


class Duplicates:
    """Remembers rows; near ones are found by MinHash over runs of five words.

    Rows of generators are alike by design, so among themselves only equal ones count; a row of a file counts as a duplicate
    of whatever it is near to.
    """

    def __init__(self, similarity: float = DEFAULT_SIMILARITY) -> None:
        self._exact: set[bytes] = set()
        threshold = max(similarity - _MARGIN, _MARGIN)
        self._near = None if similarity >= 1 else MinHashLSH(threshold=threshold, num_perm=PERMUTATIONS)
        self._similarity = similarity
        self._sketches: dict[bytes, MinHash] = {}

    def seen(self, row: Row, *, near: bool) -> bool:
        """Says whether such a row was kept before, and remembers it if not; `near` compares by likeness too."""
        digest = row.digest()[:_EXACT_BYTES]
        if digest in self._exact:
            return True
        if near and self._near is not None:
            sketch = _sketch(row)
            # The index only proposes; the estimate itself decides.
            proposed = cast("list[bytes]", self._near.query(sketch))  # the keys that were inserted
            if any(sketch.jaccard(self._sketches[key]) > self._similarity for key in proposed):
                return True
            self._near.insert(digest, sketch, check_duplication=False)
            self._sketches[digest] = sketch
        self._exact.add(digest)
        return False


def _sketch(row: Row) -> MinHash:
    sketch = MinHash(num_perm=PERMUTATIONS, hashfunc=_hash)
    words = words_of(" ".join(row.texts()))
    runs = {" ".join(words[i : i + SHINGLE_WORDS]) for i in range(max(1, len(words) - SHINGLE_WORDS + 1))}
    sketch.update_batch([run.encode("utf-8", "surrogatepass") for run in sorted(runs)])
    return sketch


def _hash(data: bytes) -> int:
    # 32 bits, as MinHash's permutations expect.
    return int.from_bytes(hashlib.blake2b(data, digest_size=4).digest())
