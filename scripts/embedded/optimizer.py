"""Muon for the matrices inside the layers and AdamW for all else (Keller Jordan et al., 2024)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import torch

if TYPE_CHECKING:
    from torch import Tensor, nn

_NEWTON_SCHULZ: Final = (3.4445, -4.7750, 2.0315)
_MOMENTUM: Final = 0.95
_ITERATIONS: Final = 5
_MATRIX: Final = 2
MUON_RATE: Final = 0.02
ADAM_RATE: Final = 4e-3
_WARM_UP_STEPS: Final = 60


def orthogonalised(matrix: Tensor) -> Tensor:
    """Returns the nearest half-orthogonal matrix, roughly, by five Newton-Schulz steps."""
    a, b, c = _NEWTON_SCHULZ
    x = (matrix / (matrix.norm() + 1e-7)).bfloat16()
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    for _ in range(_ITERATIONS):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    update: Tensor = (x.T if tall else x).float()
    return update


class Optimizer:
    """Steps every parameter of a model by Muon or AdamW at a share of their peak rates."""

    def __init__(self, model: nn.Module) -> None:
        matrices = {n: p for n, p in model.named_parameters() if p.ndim == _MATRIX and "layers." in n}
        others = [p for n, p in model.named_parameters() if n not in matrices]
        self._matrices = list(matrices.values())
        self._momenta = [torch.zeros_like(p) for p in self._matrices]
        self._adam = torch.optim.AdamW(
            others, lr=ADAM_RATE, betas=(0.9, 0.98), weight_decay=0.0, foreach=True
        )

    @torch.no_grad()
    def step(self, share: float) -> None:
        """Applies the gradients with both rates scaled by `share`, then clears them."""
        for parameter, momentum in zip(self._matrices, self._momenta, strict=True):
            gradient = parameter.grad
            if gradient is None:
                continue
            momentum.mul_(_MOMENTUM).add_(gradient)
            update = orthogonalised(gradient + _MOMENTUM * momentum)
            scale = max(1.0, parameter.shape[0] / parameter.shape[1]) ** 0.5
            parameter.mul_(1 - MUON_RATE * share * 0.01).add_(update, alpha=-MUON_RATE * share * scale)
            parameter.grad = None
        for group in self._adam.param_groups:
            group["lr"] = ADAM_RATE * share
        self._adam.step()
        self._adam.zero_grad(set_to_none=True)


def rate_share(step: int, steps: int) -> float:
    """Returns the share of the peak rates at a step: a linear warm-up, then a line down to zero."""
    warm_up = (step + 1) / _WARM_UP_STEPS
    return min(warm_up, 1 - step / steps)
