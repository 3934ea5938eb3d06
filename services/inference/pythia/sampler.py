"""Draws the next token of each row from its logits."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import TYPE_CHECKING

from services.inference.chat import Sampling

if TYPE_CHECKING:
    import torch


class Sampler:
    """One row's way of drawing; the same seed draws the same tokens from the same logits."""

    def __init__(self, sampling: Sampling, *, default_temperature: float) -> None:
        import torch

        self._sampling = sampling
        self._temperature = default_temperature if sampling.temperature is None else sampling.temperature
        self._presence = sampling.presence_penalty or 0.0
        self._frequency = sampling.frequency_penalty or 0.0
        self._counts: dict[int, int] = {}
        self._generator: torch.Generator | None = None
        if self._temperature != 0:
            seed = secrets.randbits(63) if sampling.seed is None else sampling.seed & (2**63 - 1)
            self._generator = torch.Generator().manual_seed(seed)

    @property
    def is_greedy(self) -> bool:
        """Whether it always takes the likeliest token as the model has it."""
        return self._temperature == 0 and not self._has_penalties

    def draw(self, logits: torch.Tensor) -> int:
        """Draw from one row's logits, single precision and on the CPU."""
        logits = self._penalised(logits)
        token = int(logits.argmax()) if self._temperature == 0 else self._drawn(logits)
        if self._has_penalties:
            self._counts[token] = self._counts.get(token, 0) + 1
        return token

    @property
    def _has_penalties(self) -> bool:
        return self._presence != 0 or self._frequency != 0

    def _penalised(self, logits: torch.Tensor) -> torch.Tensor:
        if not (self._has_penalties and self._counts):
            return logits
        logits = logits.clone()
        for token, count in self._counts.items():
            logits[token] -= self._presence + self._frequency * count
        return logits

    def _drawn(self, logits: torch.Tensor) -> int:
        import torch

        logits = logits / self._temperature
        if self._sampling.top_k:
            weakest = logits.topk(min(self._sampling.top_k, logits.numel())).values[-1]
            logits = logits.masked_fill(logits < weakest, float("-inf"))
        top_p = self._sampling.top_p
        if top_p is not None and top_p < 1:
            ordered, order = logits.softmax(-1).sort(descending=True)
            # Keep the likeliest until their sum reaches top_p; the one that crosses it stays.
            beyond = order[ordered.cumsum(-1) - ordered >= top_p]
            logits = logits.index_fill(0, beyond, float("-inf"))
        return int(torch.multinomial(logits.softmax(-1), 1, generator=self._generator))


def draw_each(samplers: Sequence[Sampler], logits: torch.Tensor) -> list[int]:
    """Draw one token per row of `logits`."""
    likeliest: list[int] = logits.argmax(-1).tolist()
    if all(sampler.is_greedy for sampler in samplers):
        return likeliest
    rows = logits.float().cpu()
    return [
        likeliest[row] if sampler.is_greedy else sampler.draw(rows[row])
        for row, sampler in enumerate(samplers)
    ]
