"""What is minimised: a sum of losses over a batch, computed where it is needed and nowhere else.

Each is a torch module around the model, so that DDP and FSDP see one forward pass.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from services.trainer.training.batches import Batch

# Unknown to every stub: peft's wrappers are used through a handful of calls.
Untyped = Any


def make_objective(name: str, model: Untyped, *, beta: float = 0.1) -> Untyped:
    """Give the torch module whose forward pass takes a batch and gives the sum of its losses in fp32.

    `pursue` changes what it computes: a run of several stages wraps one module once, however many objectives it has.
    """
    import torch
    from torch.nn import functional

    causal, head = _parts(model)

    class Objective(torch.nn.Module):
        """Owns the model, computes what the loss needs."""

        def __init__(self) -> None:
            super().__init__()
            self.model = model
            self.pursue(name, beta)

        def pursue(self, name: str, beta: float) -> None:
            """Say what the next passes are for."""
            self._prefers, self._beta = name == "dpo", beta

        def states(self, batch: Batch) -> torch.Tensor:
            """The last layer's states where something is predicted."""
            hidden = causal(input_ids=batch.ids, attention_mask=batch.sees, position_ids=batch.positions)
            states: torch.Tensor = hidden.last_hidden_state.flatten(0, 1)[batch.predicts]
            return states

        def forward(self, batch: Batch, reference: torch.Tensor | None = None) -> torch.Tensor:
            logits = head(self.states(batch)).float()
            if not self._prefers:
                # Over all tokens, or over the rows of a classifier.
                return functional.cross_entropy(logits, batch.targets, reduction="sum")
            likelihoods = self.likelihoods(batch, logits)
            if reference is None:
                return likelihoods
            chosen, rejected = (likelihoods - reference).chunk(2)
            return -functional.logsigmoid(self._beta * (chosen - rejected)).sum()

        def likelihoods(self, batch: Batch, logits: torch.Tensor) -> torch.Tensor:
            """Log likelihood of each answer."""
            each = -functional.cross_entropy(logits, batch.targets, reduction="none")
            return torch.zeros(batch.sequences, device=each.device).index_add(0, batch.owners, each)

    return Objective()


def _parts(model: Untyped) -> tuple[Untyped, Untyped]:
    """The model without its head, and the head, inside whatever PEFT wrapped around them."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    head = inner.score if hasattr(inner, "score") else inner.lm_head
    return inner.gpt_neox, head
