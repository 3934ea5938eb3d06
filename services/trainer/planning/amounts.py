"""How many steps a job takes and how many tokens bear loss, from what its datasets' reports say."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from kala.common.v1 import adapter_pb2 as common
from kala.trainer.v1 import job_pb2 as pb
from kala.trainer.v1.dataset_pb2 import Dataset
from services.trainer.planning.shapes import Shape

TRAIN_FILE: Final = "train.jsonl"

LARGE_VOCABULARY: Final = 10_000
BYTES_PER_TOKEN: Final = 4.0
BYTES_PER_TOKEN_SMALL: Final = 2.5
"""Bytes of JSON per token, for a vocabulary below LARGE_VOCABULARY."""

MOST: Final = 1 << 62
"""What every message can hold."""

TOKENS_PER_ROW: Final = 64
"""Of a row from templates, question and answer, before anybody has counted."""

LOSS_SHARE: Final = 0.5
"""Share of the tokens that are the assistant's; prompts bear no loss."""

PACKED_SHARE: Final = 0.9
"""Share of a packed sequence that is filled."""


@dataclass(frozen=True, slots=True)
class Amounts:
    """What a job works through."""

    steps: int
    tokens: int
    """Those that bear loss, over all steps."""
    passed_tokens: int
    """All that pass through the model."""


def amounts(spec: pb.TrainingSpec, shape: Shape, datasets: Sequence[Dataset | None]) -> Amounts | None:
    """An estimate; None where nothing says how much data there is and no max_steps either.

    A pass goes over the rows to be learned once; replay comes on top by its weight.
    """
    values = spec.hyperparameters
    rows = tokens = 0.0
    weights = {common.DATASET_USE_TRAIN: 0.0, common.DATASET_USE_REPLAY: 0.0}
    for share, dataset in zip(spec.datasets, datasets, strict=True):
        if share.use in weights:
            weights[share.use] += share.weight or 1
        if dataset is not None and share.use == common.DATASET_USE_TRAIN:
            rows += dataset.report.train_rows
            tokens += _tokens(dataset, shape)
    if not rows and not values.HasField("max_steps"):
        return None
    if weights[common.DATASET_USE_TRAIN]:
        growth = 1 + weights[common.DATASET_USE_REPLAY] / weights[common.DATASET_USE_TRAIN]
        rows, tokens = rows * growth, tokens * growth
    if spec.objective == pb.TRAINING_OBJECTIVE_CONSTITUTIONAL:
        drafts = max(spec.constitutional.drafts, 1)
        rows, tokens = rows * drafts, tokens * drafts
    per_row = (
        min(tokens / rows, values.max_sequence_tokens) if rows else values.max_sequence_tokens * LOSS_SHARE
    )
    per_sequence = values.max_sequence_tokens * PACKED_SHARE if values.packing else per_row
    sequences = rows * per_row / per_sequence if rows else 0
    steps = (
        values.max_steps
        if values.HasField("max_steps")
        else max(1, math.ceil(sequences * values.epochs / values.batch_size))
    )
    steps = min(steps, MOST)
    passed = min(int(steps * values.batch_size * per_sequence), MOST)
    return Amounts(steps, int(passed * LOSS_SHARE), passed)


def unbuilt(rows: int) -> Dataset | None:
    """Stands for a dataset that is to be built, by its rows; None where nobody knows how many."""
    if not rows:
        return None
    made = Dataset()
    made.report.train_rows = min(rows, MOST)
    made.report.tokens = min(rows * TOKENS_PER_ROW, MOST)
    return made


def _tokens(dataset: Dataset, shape: Shape) -> float:
    """Those its report counted with some tokenizer, else a guess by the size of its rows."""
    if dataset.report.HasField("tokens"):
        # They are those of both parts.
        report = dataset.report
        return report.tokens * report.train_rows / max(report.train_rows + report.validation_rows, 1)
    size = sum(file.bytes for file in dataset.files if file.name == TRAIN_FILE)
    is_small = shape.vocabulary < LARGE_VOCABULARY
    return size / (BYTES_PER_TOKEN_SMALL if is_small else BYTES_PER_TOKEN)
