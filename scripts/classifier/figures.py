"""How well a scored set was told apart, by source: the honest numbers of the training report."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

import numpy as np

from scripts.classifier.calibration import Scored
from scripts.classifier.examples import UNKNOWN, Example
from scripts.classifier.scoring import (
    JAILBREAK,
    LAWS,
    UNSAFE,
    Floats,
    Temperatures,
    probability,
)

SHAPES = ("frame", "jailbreak", "padded")


def figures(scored: Scored, temperatures: Temperatures, thresholds: dict[str, object]) -> dict[str, object]:
    """Per source and shape: how many, which share is refused, and the law accuracy of what is."""
    refused = refusals(scored, temperatures, thresholds)
    rows: dict[str, list[int]] = defaultdict(list)
    for row, example in enumerate(scored.examples):
        rows[_name(example)].append(row)
    laws = np.argmax(scored.logits[:, LAWS], axis=1)
    return {name: dict(_row(scored, refused, laws, chosen)) for name, chosen in sorted(rows.items())}


def refusals(scored: Scored, temperatures: Temperatures, thresholds: dict[str, object]) -> Floats:
    """1 where the thresholds for requests refuse, else 0; (N)."""
    unsafe = probability(scored.logits[:, UNSAFE], temperatures.unsafe)
    jailbreak = probability(scored.logits[:, JAILBREAK], temperatures.jailbreak)
    law = np.argmax(scored.logits[:, LAWS], axis=1)
    by_law = thresholds["refuse"]
    assert isinstance(by_law, dict)  # noqa: S101 - the shape that choose_thresholds gives
    limits = np.array([by_law[str(number)] for number in range(5)])
    refused = (unsafe >= limits[law]) | (jailbreak >= float(str(thresholds["jailbreak"])))
    return np.asarray(refused, np.float64)


def recall_at(harmless: Floats, harmful: Floats, share: float) -> float:
    """The recall at the threshold that this share of harmless texts reaches."""
    threshold = np.quantile(harmless, 1 - share)
    return float(np.mean(harmful > threshold))


def average_precision(truth: Floats, scores: Floats) -> float:
    """Area under the precision-recall curve, as the sum over steps of recall."""
    order = np.argsort(-scores, kind="stable")
    hits = truth[order]
    precision = np.cumsum(hits) / np.arange(1, len(hits) + 1)
    return float(np.sum(precision * hits) / max(1.0, hits.sum()))


def _row(scored: Scored, refused: Floats, laws: Floats, chosen: list[int]) -> Iterator[tuple[str, object]]:
    share = float(np.mean(refused[chosen]))
    yield "texts", len(chosen)
    yield "refused", round(share, 4)
    told = [row for row in chosen if scored.examples[row].law != UNKNOWN and refused[row]]
    if told:
        right = np.mean([laws[row] == scored.examples[row].law for row in told])
        yield "law_right_among_refused", round(float(right), 4)


def _name(example: Example) -> str:
    shape = "".join(f"+{mark}" for mark in SHAPES if mark in example.marks)
    label = {1: "harmful", 0: "harmless"}.get(
        example.unsafe, "attack" if example.jailbreak or example.injection else "unclear"
    )
    return f"{example.source}{shape} {example.stage.value} {label}"
