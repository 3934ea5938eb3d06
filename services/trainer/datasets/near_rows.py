"""Rows that are nearly the same as one before: MinHash over runs of words, and an index in little memory."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterator
from typing import Final

import numpy as np
from datasketch import MinHash, MinHashLSH
from numpy.typing import NDArray

from services.trainer.datasets.contamination import words_of
from services.trainer.datasets.rows import Row

SHINGLE_WORDS: Final = 5
# 128 permutations estimate a Jaccard similarity to about 0.04 around 0.8.
PERMUTATIONS: Final = 128
# The index misses some rows at its own threshold, so it proposes from a little below.
_MARGIN: Final = 0.1
_PART: Final = 4096
"""Sketches compared at once: two megabytes."""

Sketch = NDArray[np.uint32]


class NearRows:
    """Remembers sketches of rows, about 2 KB of memory each."""

    def __init__(self, similarity: float) -> None:
        self._similarity = similarity
        self._index = _Index(max(similarity - _MARGIN, _MARGIN))

    def seen(self, row: Row) -> bool:
        """Says whether a row more alike than the similarity was remembered before, and remembers it if not."""
        sketch = _sketch(row)
        # The index only proposes; the estimate itself decides.
        if self._index.most_alike(sketch) > self._similarity:
            return True
        self._index.add(sketch)
        return False


class _Index:
    """Locality-sensitive hashing in little memory: datasketch's own keeps some 7 KB per row, 7 GB for a million."""

    def __init__(self, threshold: float) -> None:
        # Bands and rows per band as datasketch balances them for this threshold.
        tuned = MinHashLSH(threshold=threshold, num_perm=PERMUTATIONS)
        self._bands, self._width = int(tuned.b), int(tuned.r)
        self._sketches = array("I")
        # By band and bucket: the number of its sketch, or of all of them where it has more, as few buckets do.
        self._members: list[dict[int, int | array[int]]] = [{} for _ in range(self._bands)]

    def most_alike(self, sketch: Sketch) -> float:
        """Returns the largest estimate of likeness with a sketch that shares a band with this one."""
        proposed = np.zeros(len(self._sketches) // PERMUTATIONS, dtype=np.bool_)
        for members, bucket in zip(self._members, self._buckets(sketch), strict=True):
            found = members.get(bucket)
            if found is not None:
                proposed[found] = True
        numbers = np.flatnonzero(proposed)
        if not numbers.size:
            return 0.0
        sketches = np.frombuffer(self._sketches, dtype=np.uint32).reshape(-1, PERMUTATIONS)
        # In parts: rows of one template share a bucket by the ten thousand.
        return max(
            float(np.count_nonzero(sketches[part] == sketch, axis=1).max()) / PERMUTATIONS
            for part in np.split(numbers, range(_PART, numbers.size, _PART))
        )

    def add(self, sketch: Sketch) -> None:
        """Remembers a sketch."""
        number = len(self._sketches) // PERMUTATIONS
        self._sketches.frombytes(sketch.tobytes())
        for members, bucket in zip(self._members, self._buckets(sketch), strict=True):
            found = members.get(bucket)
            if found is None:
                members[bucket] = number
            elif isinstance(found, int):
                members[bucket] = array("I", (found, number))
            else:
                found.append(number)

    def _buckets(self, sketch: Sketch) -> Iterator[int]:
        data, size = sketch.tobytes(), self._width * sketch.itemsize
        for band in range(self._bands):
            yield int.from_bytes(
                hashlib.blake2b(data[band * size : (band + 1) * size], digest_size=7).digest()
            )


def _sketch(row: Row) -> Sketch:
    sketch = MinHash(num_perm=PERMUTATIONS, hashfunc=_hash)
    words = words_of(" ".join(row.texts()))
    runs = {" ".join(words[i : i + SHINGLE_WORDS]) for i in range(max(1, len(words) - SHINGLE_WORDS + 1))}
    sketch.update_batch([run.encode("utf-8", "surrogatepass") for run in sorted(runs)])
    # Its values are those of a 32-bit hash, kept in 64 bits.
    return np.asarray(sketch.hashvalues, dtype=np.uint32)


def _hash(data: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(data, digest_size=4).digest())
