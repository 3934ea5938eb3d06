"""What the model remembers of every text in a batch: attention keys and values, each text from its own first token on.

Texts lie side by side as rows 0 to n-1 of one tensor, so that a pass over all of them reads views and copies nothing.
A row that ends is replaced by the last one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import torch

FIRST_CAPACITY: Final = 64
"""Tokens that a row can hold at first; doubled when they are used up."""


class RowMemory:
    """Keys and values of `len(lengths)` rows; stands where transformers expects a cache and is handed 4D masks."""

    def __init__(self) -> None:
        self.lengths: list[int] = []
        self._keys: dict[int, torch.Tensor] = {}
        self._values: dict[int, torch.Tensor] = {}
        self._room = 0
        self._places: tuple[torch.Tensor, torch.Tensor] | None = None

    def __bool__(self) -> bool:
        """Stand for a cache also while it holds nothing."""
        return True

    def begin_reading(self, count: int) -> None:
        """Make ready for a pass that reads `count` more tokens into the only row."""
        self._room, self._places = self.lengths[0] + count, None

    def begin_step(self, places: tuple[torch.Tensor, torch.Tensor] | None) -> None:
        """Make ready for a pass that reads one more token into every row.

        `places` are the row numbers and the lengths, as index tensors; None for a single row.
        """
        self._room, self._places = max(self.lengths) + 1, places

    def ended(self, count: int) -> None:
        """Note that the pass is over."""
        self.lengths = [length + count for length in self.lengths]

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, layer: int, *_: object, **__: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keep the new keys and values of a layer, and give all that its attention looks at; called by the model."""
        return (
            self._kept(self._keys, layer, keys),
            self._kept(self._values, layer, values),
        )

    def adopt(self, other: RowMemory) -> None:
        """Take the only row of `other` in as the last one here."""
        for mine, theirs in ((self._keys, other._keys), (self._values, other._values)):
            for layer, tensor in theirs.items():
                row, length = len(self.lengths), other.lengths[0]
                mine[layer] = room = _with_room(mine.get(layer), tensor, row + 1, length)
                room[row, :, :length] = tensor[0, :, :length]
        self.lengths.append(other.lengths[0])

    def drop(self, row: int) -> None:
        """Forget a row; the last one takes its number."""
        last = len(self.lengths) - 1
        if row != last:
            length = self.lengths[last]
            for tensors in (self._keys, self._values):
                for tensor in tensors.values():
                    tensor[row, :, :length] = tensor[last, :, :length]
            self.lengths[row] = self.lengths[last]
        self.lengths.pop()

    def _kept(self, tensors: dict[int, torch.Tensor], layer: int, new: torch.Tensor) -> torch.Tensor:
        rows = new.shape[0]
        tensors[layer] = room = _with_room(tensors.get(layer), new, rows, self._room)
        if self._places is None:
            room[:1, :, self._room - new.shape[2] : self._room] = new
        else:
            room[self._places[0], :, self._places[1]] = new[:, :, 0]
        return room[:rows, :, : self._room]


def _with_room(held: torch.Tensor | None, like: torch.Tensor, rows: int, tokens: int) -> torch.Tensor:
    """Give a tensor that holds what `held` does and has room for so many rows and tokens."""
    _, heads, _, size = like.shape
    if held is None:
        # Zeros: what lies beyond a row's end is weighed with nought, and nought times NaN would be NaN.
        return like.new_zeros(rows, heads, _grown(FIRST_CAPACITY, tokens), size)
    has_rows, _, has_tokens, _ = held.shape
    if has_rows >= rows and has_tokens >= tokens:
        return held
    larger = like.new_zeros(_grown(has_rows, rows), heads, _grown(has_tokens, tokens), size)
    larger[:has_rows, :, :has_tokens] = held
    return larger


def _grown(size: int, needed: int) -> int:
    while size < needed:
        size *= 2
    return size
