"""What the model thought of each answer before a preference stage began: DPO's reference, computed once and kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from services.trainer.training.batches import collate
from services.trainer.training.encoding import Item
from services.trainer.training.stages import ReadyStage
from services.trainer.training.world import World

if TYPE_CHECKING:
    import torch

    from services.trainer.training.batches import Batch

# Unknown to every stub: objectives are torch modules that are made in a function.
Untyped = Any


class References:
    """Log likelihoods of chosen and rejected, for every pair of a stage that will be seen."""

    def __init__(self, stage: ReadyStage, saved: torch.Tensor | None) -> None:
        items = [item for dataset in stage.items for item in dataset] + list(stage.validation)
        self._places = {id(item): place for place, item in enumerate(items)}
        self._saved = saved
        self._items = items
        self.likelihoods: torch.Tensor | None = saved
        """[2, pairs]; nought for pairs that are never seen."""

    def compute(
        self,
        stage: ReadyStage,
        objective: Untyped,
        world: World,
        *,
        padding: int,
        arithmetic: Callable[[], AbstractContextManager[Any]],
    ) -> None:
        """Ask the model as it is now, each worker for its part; nothing to do where a checkpoint brought the answers."""
        if self.likelihoods is not None:
            return
        import torch

        device, size = world.torch_device(), stage.recipe.micro_batch_size
        objective.eval()
        found = torch.zeros(2, len(self._items), device=device)
        seen = self._seen(stage)
        # Every worker makes as many passes as any other, for a model in parts is gathered by all of them.
        mine = [
            seen[place % len(seen)]
            for place in range(world.rank, _rounded(len(seen), world.size), world.size)
        ]
        with torch.no_grad():
            for first in range(0, len(mine), size):
                part = [[self._items[place]] for place in mine[first : first + size]]
                batch: Batch = collate(part, padding=padding).to(device)
                with arithmetic():
                    found[:, mine[first : first + size]] = objective(batch).view(2, -1)
        repeated = _rounded(len(seen), world.size) - len(seen)
        if world.size > 1 and repeated:
            # What several workers computed is added up once too often.
            counts = torch.zeros(len(self._items), device=device)
            counts[mine] = 1
            found, counts = world.sum(found), world.sum(counts)
            found /= counts.clamp(min=1)
        else:
            found = world.sum(found)
        self.likelihoods = found.cpu()

    def of(self, part: Sequence[Sequence[Item]], device: torch.device) -> torch.Tensor:
        """The likelihoods of a batch, in its order: all the chosen, then all the rejected."""
        assert self.likelihoods is not None  # noqa: S101 - computed before the first step
        places = [self._places[id(item)] for sequence in part for item in sequence]
        return self.likelihoods[:, places].flatten().to(device)

    def _seen(self, stage: ReadyStage) -> list[int]:
        wanted = stage.steps * stage.recipe.batch_size
        rows = stage.layout.sequences(0, min(wanted, stage.layout.sequences_in(1.0)))
        # More than a pass sees every row.
        items = [stage.items[dataset][row] for sequence in rows for dataset, row in sequence]
        if wanted > len(rows):
            items = [item for dataset in stage.items for item in dataset]
        return sorted({self._places[id(item)] for item in [*items, *stage.validation]})


def _rounded(count: int, size: int) -> int:
    return -(-count // size) * size
