"""Sequences as tensors: tokens, places, and a mask through which packed rows do not see each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from services.trainer.training.encoding import Encoded, Item, Pair

if TYPE_CHECKING:
    import numpy as np
    import torch


@dataclass(frozen=True, slots=True)
class Batch:
    """One pass of a worker."""

    ids: torch.Tensor
    """[sequences, length]; what lies behind a row's end is never looked at."""
    positions: torch.Tensor | None
    """[sequences, length], counted anew in every packed row; None where no row shares a sequence."""
    sees: torch.Tensor | None
    """[sequences, 1, length, length]: whether a token may look at another; None means at all before it."""
    predicts: torch.Tensor
    """Flat places whose next token bears loss; for a classifier the last token of each row."""
    targets: torch.Tensor
    """The tokens that are next there; for a classifier the labels."""
    owners: torch.Tensor
    """Which sequence each of them belongs to."""
    sequences: int
    weight: int
    """What the loss is a sum over: tokens, pairs or rows."""

    def to(self, device: torch.device) -> Batch:
        """Give the same on a device."""
        if device.type == "cpu":
            return self

        def moved(tensor: torch.Tensor) -> torch.Tensor:
            return tensor.to(device, non_blocking=True)

        return replace(
            self,
            ids=moved(self.ids),
            positions=None if self.positions is None else moved(self.positions),
            sees=None if self.sees is None else moved(self.sees),
            predicts=moved(self.predicts),
            targets=moved(self.targets),
            owners=moved(self.owners),
        )


def length_of(item: Item) -> int:
    """Tokens that a row takes of a sequence."""
    return max(len(item.chosen.ids), len(item.rejected.ids)) if isinstance(item, Pair) else len(item.ids)


def weight_of(item: Item) -> int:
    """What a row counts for in the loss: its learned tokens, or one."""
    return 1 if isinstance(item, Pair) or item.label >= 0 else item.weight


def collate(sequences: Sequence[Sequence[Item]], *, padding: int) -> Batch:
    """Lay rows out; pairs become all the chosen, then all the rejected."""
    if isinstance(sequences[0][0], Pair):
        pairs = [item for sequence in sequences for item in sequence if isinstance(item, Pair)]
        halves = [pair.chosen for pair in pairs] + [pair.rejected for pair in pairs]
        return _laid([[half] for half in halves], padding, weight=len(pairs))
    rows = [[item for item in sequence if isinstance(item, Encoded)] for sequence in sequences]
    return _laid(rows, padding, weight=sum(weight_of(item) for sequence in rows for item in sequence))


def _laid(sequences: Sequence[Sequence[Encoded]], padding: int, *, weight: int) -> Batch:
    import numpy as np
    import torch

    length = max(sum(len(item.ids) for item in sequence) for sequence in sequences)
    ids = np.full((len(sequences), length), padding, dtype=np.int64)
    is_packed = any(len(sequence) > 1 for sequence in sequences)
    # Each row has its own number; what is behind the last has -1 and sees itself and what is behind too.
    blocks = np.full((len(sequences), length), -1, dtype=np.int32) if is_packed else None
    positions = np.zeros((len(sequences), length), dtype=np.int64) if is_packed else None
    predicts: list[np.ndarray] = []
    targets: list[np.ndarray] = []
    owners: list[np.ndarray] = []
    for number, sequence in enumerate(sequences):
        start = 0
        for block, item in enumerate(sequence):
            tokens = np.frombuffer(item.ids, dtype=np.int32)
            end = start + len(tokens)
            ids[number, start:end] = tokens
            if blocks is not None and positions is not None:
                blocks[number, start:end] = block
                positions[number, start:end] = np.arange(len(tokens))
            if item.label >= 0:
                places, wanted = np.array([len(tokens)]), np.array([item.label])
            else:
                places = np.flatnonzero(np.frombuffer(item.learned, dtype=np.uint8))
                wanted = tokens[places]
            # A token is predicted from the place before it.
            predicts.append(places + (number * length + start - 1))
            targets.append(wanted)
            owners.append(np.full(len(places), number))
            start = end
    sees = None
    if blocks is not None:
        numbers = torch.from_numpy(blocks)
        sees = (numbers[:, :, None] == numbers[:, None, :]).tril()[:, None]
    return Batch(
        ids=torch.from_numpy(ids),
        positions=None if positions is None else torch.from_numpy(positions),
        sees=sees,
        predicts=torch.from_numpy(np.concatenate(predicts)),
        targets=torch.from_numpy(np.concatenate(targets).astype(np.int64)),
        owners=torch.from_numpy(np.concatenate(owners)),
        sequences=len(sequences),
        weight=weight,
    )
