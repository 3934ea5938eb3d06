"""Which rows make up which step: a pure function of rows, seed and step, so that a position is all there is to resume.

Every worker computes the same layout and takes its own part of each step.  Pure.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from kala.errors import FailedPreconditionError

OPEN_SEQUENCES: Final = 32
"""Sequences that a next row may still be fitted into; more pack hardly tighter and cost time."""

RowId = tuple[int, int]
"""Number of the dataset and of the row in it."""

Sequenced = tuple[RowId, ...]
"""The rows that share one sequence, in their order."""


@dataclass(frozen=True, slots=True)
class Source:
    """A dataset's rows by their lengths in tokens."""

    name: str
    lengths: Sequence[int]
    weight: float
    is_replay: bool = False


class Layout:
    """The endless order of sequences, epoch after epoch."""

    def __init__(self, sources: Sequence[Source], *, seed: int, max_tokens: int, packing: bool) -> None:
        for source in sources:
            if not source.lengths:
                raise FailedPreconditionError(
                    f"{source.name}: has no row with anything to learn in it; look at its card",
                    reason="NO_ROWS",
                )
        if not any(not source.is_replay for source in sources):
            raise FailedPreconditionError("datasets: none is there to train on", reason="NO_ROWS")
        self._sources = sources
        self._seed = seed
        self._max_tokens = max_tokens
        self._packing = packing
        self._draws = _draws(sources)
        self._epochs: dict[int, list[Sequenced]] = {}
        self._sizes: list[int] = []

    def epoch(self, number: int) -> list[Sequenced]:
        """The sequences of one pass; the last two asked for are kept."""
        if number not in self._epochs:
            while len(self._epochs) > 1:
                del self._epochs[min(self._epochs)]
            self._epochs[number] = self._laid_out(number)
        return self._epochs[number]

    def sequences(self, first: int, count: int) -> list[Sequenced]:
        """`count` sequences from the `first` on, over the ends of epochs."""
        found: list[Sequenced] = []
        number, offset = self._epoch_of(first)
        while len(found) < count:
            found.extend(self.epoch(number)[offset : offset + count - len(found)])
            number, offset = number + 1, 0
        return found

    def sequences_in(self, epochs: float) -> int:
        """Sequences in so many passes, rounded up."""
        whole = int(epochs)
        total = sum(self._size(number) for number in range(whole))
        return total + (math.ceil((epochs - whole) * self._size(whole)) if epochs > whole else 0)

    def passes(self, sequences: int) -> float:
        """Passes over the data after so many sequences."""
        number, offset = self._epoch_of(sequences)
        return number + offset / self._size(number)

    def _epoch_of(self, sequence: int) -> tuple[int, int]:
        number = 0
        while sequence >= self._size(number):
            sequence -= self._size(number)
            number += 1
        return number, sequence

    def _size(self, number: int) -> int:
        while len(self._sizes) <= number:
            self._sizes.append(len(self.epoch(len(self._sizes))))
        return self._sizes[number]

    def _laid_out(self, number: int) -> list[Sequenced]:
        rows: list[RowId] = []
        for index, (source, count) in enumerate(zip(self._sources, self._draws, strict=True)):
            rows.extend(
                (index, row) for row in self._drawn(index, len(source.lengths), number * count, count)
            )
        order = random.Random(f"{self._seed}/epoch/{number}")  # noqa: S311 - an order, no secret
        order.shuffle(rows)
        if not self._packing:
            return [(row,) for row in rows]
        packed = _packed([(row, self._length(row)) for row in rows], self._max_tokens)
        order.shuffle(packed)
        return packed

    def _length(self, row: RowId) -> int:
        return min(self._sources[row[0]].lengths[row[1]], self._max_tokens)

    def _drawn(self, index: int, rows: int, first: int, count: int) -> list[int]:
        """`count` rows from the `first` on of a dataset that is shuffled anew each time it has been gone through."""
        found: list[int] = []
        lap, offset = divmod(first, rows)
        while len(found) < count:
            order = list(range(rows))
            random.Random(f"{self._seed}/rows/{index}/{lap}").shuffle(order)  # noqa: S311 - as above
            found.extend(order[offset : offset + count - len(found)])
            lap, offset = lap + 1, 0
        return found


def _draws(sources: Sequence[Source]) -> list[int]:
    """Rows of each dataset per epoch: as many of those to train on as they have, the rest by weight."""
    weight = sum(source.weight for source in sources if not source.is_replay)
    rows = sum(len(source.lengths) for source in sources if not source.is_replay)
    return [max(1, round(rows * source.weight / weight)) for source in sources]


def _packed(rows: Sequence[tuple[RowId, int]], max_tokens: int) -> list[Sequenced]:
    """First fit into the sequences that are still open, the oldest of which is closed when there are too many."""
    done: list[Sequenced] = []
    open_: list[tuple[list[RowId], int]] = []
    for row, length in rows:
        for number, (members, used) in enumerate(open_):
            if used + length <= max_tokens:
                members.append(row)
                open_[number] = (members, used + length)
                break
        else:
            open_.append(([row], length))
            if len(open_) > OPEN_SEQUENCES:
                done.append(tuple(open_.pop(0)[0]))
    return done + [tuple(members) for members, _ in open_]
