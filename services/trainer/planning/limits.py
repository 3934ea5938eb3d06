"""The bounds of a job's numbers, in one table for YAML and for specs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

MAX_RANK: Final = 1_024
MAX_ALPHA: Final = 65_536
MAX_STEPS: Final = 10**9
MAX_BATCH: Final = 1 << 20
MAX_WORKERS: Final = 4_096
MAX_SEED: Final = 2**63 - 1
MAX_SECONDS: Final = 14 * 86_400
MAX_DATASETS: Final = 64
MAX_LABELS: Final = 64
MAX_LABEL_CHARS: Final = 64
"""As many as a dataset's labels have."""
MAX_PARENTS: Final = 64
MAX_TRACKERS: Final = 8
MAX_TARGETS: Final = 64
MAX_SUMMARY_CHARS: Final = 4_096
LARGE: Final = 1e9
"""More than any rate, weight or norm that means something."""


@dataclass(frozen=True, slots=True)
class Bound:
    """The least and the most that a number may be."""

    least: float = 0
    most: float = LARGE
    is_above: bool = False
    """Whether `least` itself is too little."""
    is_whole: bool = False

    def problem(self, value: float) -> str:
        """What is wrong with a number; empty when nothing is."""
        fits = value > self.least if self.is_above else value >= self.least
        if fits and value <= self.most and not math.isnan(value):
            return ""
        low = f"above {self.least:g}" if self.is_above else f"{self.least:g}"
        return f"is {value:g}; it must be from {low} to {self.most:g}"


def _whole(least: int = 1, most: int = MAX_BATCH) -> Bound:
    return Bound(least, most, is_whole=True)


BOUNDS: Final[Mapping[str, Mapping[str, Bound]]] = {
    "lora": {
        "rank": _whole(most=MAX_RANK),
        "alpha": _whole(most=MAX_ALPHA),
        "dropout": Bound(most=math.nextafter(1, 0)),
    },
    "hyperparameters": {
        "learning_rate": Bound(is_above=True),
        "warmup_share": Bound(most=1),
        "epochs": Bound(is_above=True),
        "max_steps": _whole(most=MAX_STEPS),
        "batch_size": _whole(),
        "micro_batch_size": _whole(),
        "max_sequence_tokens": _whole(least=8),
        "weight_decay": Bound(),
        "max_gradient_norm": Bound(),
        "seed": _whole(least=0, most=MAX_SEED),
        "checkpoint_steps": _whole(most=MAX_STEPS),
        "checkpoints_kept": _whole(most=100),
        "validation_steps": _whole(least=0, most=MAX_STEPS),
    },
    "placement": {
        "workers": _whole(most=MAX_WORKERS),
        "min_workers": _whole(most=MAX_WORKERS),
        "cpus_per_worker": Bound(most=1_024, is_above=True),
        "gpus_per_worker": Bound(most=64),
    },
    "constitutional": {
        "drafts": _whole(most=16),
        "max_new_tokens": _whole(most=4_096),
        "temperature": Bound(most=2),
        "sft_share": Bound(most=1),
        "benign_share": Bound(most=1),
        "dpo_beta": Bound(is_above=True),
    },
}
