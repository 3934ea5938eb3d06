"""A stage made ready: its rows as tokens, the order they come in, its steps and its learning rate."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from services.trainer.training.batches import length_of, weight_of
from services.trainer.training.encoding import Counts, Encoder, Item
from services.trainer.training.layout import Layout, Source
from services.trainer.training.recipe import Recipe, Stage
from services.trainer.training.rows import TRAIN_FILE, VALIDATION_FILE, Row, read_rows

MAX_VALIDATION_ROWS: Final = 512
"""Of each dataset; enough to see a loss rise, and few enough not to slow the steps."""


@dataclass(slots=True)
class ReadyStage:
    """One stage of a run."""

    recipe: Recipe
    layout: Layout
    items: list[list[Item]]
    validation: list[Item]
    steps: int
    counts: dict[str, Counts]

    def rows(self, first: int, count: int) -> list[list[Item]]:
        """The items of so many sequences; without packing the longest come first, so that little is padded."""
        found = [
            [self.items[dataset][row] for dataset, row in sequence]
            for sequence in self.layout.sequences(first, count)
        ]
        if not self.recipe.packing or self.recipe.objective != "sft":
            found.sort(key=lambda sequence: -length_of(sequence[0]))
        return found

    def learning_rate(self, step: int) -> float:
        """What step `step`, from 0, is taken with."""
        recipe = self.recipe
        warmup = math.ceil(recipe.warmup_share * self.steps)
        if step < warmup:
            return recipe.learning_rate * (step + 1) / warmup
        if recipe.schedule == "constant":
            return recipe.learning_rate
        # The last step still moves: what it is taken with is not nought.
        share = (step - warmup) / max(1, self.steps - warmup)
        if recipe.schedule == "linear":
            return recipe.learning_rate * (1 - share)
        return recipe.learning_rate * 0.5 * (1 + math.cos(math.pi * share))


def weight_of_all(sequences: Sequence[Sequence[Item]]) -> int:
    """What the loss of these is divided by."""
    return sum(weight_of(item) for sequence in sequences for item in sequence)


def make_ready(stage: Stage, encoder: Encoder, *, max_tokens: int, seed: int) -> ReadyStage:
    """Read and encode the rows of a stage; raises KalaError for rows that it cannot learn from."""
    recipe = stage.recipe
    counts: dict[str, Counts] = {}
    items: list[list[Item]] = []
    validation: list[Item] = []
    sources: list[Source] = []
    for dataset in stage.datasets:
        if dataset.use != "validation":
            counts[dataset.name] = Counts()
            found = encoder.encode(
                read_rows(dataset.directory / TRAIN_FILE, recipe.objective), counts[dataset.name]
            )
            items.append(found)
            lengths = [length_of(item) for item in found]
            sources.append(Source(dataset.name, lengths, dataset.weight, dataset.use == "replay"))
        if recipe.validation_steps:
            kept_apart = _validation_file(dataset.directory, is_whole=dataset.use == "validation")
            validation.extend(encoder.encode(_first(kept_apart, recipe.objective), Counts()))
    packing = recipe.packing and recipe.objective == "sft"
    layout = Layout(sources, seed=seed, max_tokens=max_tokens, packing=packing)
    steps = recipe.max_steps or math.ceil(layout.sequences_in(recipe.epochs) / recipe.batch_size)
    return ReadyStage(recipe, layout, items, validation, steps, counts)


def _validation_file(directory: Path, *, is_whole: bool) -> Path:
    path = directory / VALIDATION_FILE
    if is_whole and not (path.is_file() and path.stat().st_size):
        return directory / TRAIN_FILE
    return path


def _first(path: Path, objective: str) -> Iterator[Row]:
    if not path.is_file():
        return
    for number, row in enumerate(read_rows(path, objective)):
        if number == MAX_VALIDATION_ROWS:
            return
        yield row
