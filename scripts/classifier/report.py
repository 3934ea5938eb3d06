"""The training report: what was learnt from, by digest, and how well each development source is told apart."""

from __future__ import annotations

import dataclasses
import hashlib
import platform
from collections import Counter
from pathlib import Path
from typing import Final

import numpy as np
import onnxruntime
import torch

from scripts.classifier.calibration import Scored
from scripts.classifier.corpus import INDEPENDENT, Corpus
from scripts.classifier.figures import average_precision, figures, recall_at
from scripts.classifier.public_data import DEV, DEV_OOD, TRAIN
from scripts.classifier.scoring import UNSAFE, Temperatures, probability
from scripts.classifier.training import Plan
from services.ethics.judge import Stage

SOURCES: Final = Path(__file__).parent


def training_report(
    corpus: Corpus,
    scored: Scored,
    temperatures: Temperatures,
    thresholds: dict[str, object],
    data: Path | None,
    plan: Plan,
) -> dict[str, object]:
    """Everything a reader needs to judge the weights and to make them again."""
    return {
        "plan": dataclasses.asdict(plan),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "onnxruntime": onnxruntime.__version__,
        },
        "public_data": {name: _digest([data / name]) for name in (TRAIN, DEV, DEV_OOD)} if data else None,
        "sources_sha256": _digest(
            sorted(p for p in SOURCES.rglob("*") if p.suffix in {".py", ".txt", ".tsv"})
        ),
        "independent_development_sha256": _digest(sorted(INDEPENDENT.glob("*.jsonl"))),
        "trained_on": dict(sorted(Counter(example.source for example in corpus.train).items())),
        "summary": _summary(scored, temperatures),
        "development": figures(scored, temperatures, thresholds),
    }


def _summary(scored: Scored, temperatures: Temperatures) -> dict[str, object]:
    """The independent prompts together: their authors saw nothing that was learnt from."""
    chosen = scored.where(
        [e.source.startswith("independent") and e.stage is Stage.REQUEST for e in scored.examples]
    )
    truth = np.array([example.unsafe for example in chosen.examples], np.float64)
    p = probability(chosen.logits[:, UNSAFE], temperatures.unsafe)
    harmless, harmful = p[truth == 0], p[truth == 1]
    over_refusal = float(np.mean(harmless >= np.quantile(harmful, 0.15)))
    return {
        "texts": len(truth),
        "average_precision": round(average_precision(truth, p), 4),
        "harmless_refused_at_recall_0.85": round(over_refusal, 4),
        "recall_at_5_percent_refused": round(recall_at(harmless, harmful, 0.05), 4),
    }


def _digest(paths: list[Path]) -> str:
    """SHA-256 over the names and bytes of files, in the order given."""
    total = hashlib.sha256()
    for path in paths:
        total.update(path.name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()
