"""Ask the exported file, as the ethics service will, and read its columns as probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from services.ethics.classifier.encoding import Encoded, batch_arrays

Floats = NDArray[np.float64]
UNSAFE, JAILBREAK, INJECTION = 0, 1, 2
LAWS: Final = slice(3, 8)
INTENTS: Final = slice(8, 11)


@dataclass(frozen=True, slots=True)
class Temperatures:
    """What the yes-or-no logits are divided by, so that the probabilities mean what they say."""

    unsafe: float = 1.0
    jailbreak: float = 1.0
    injection: float = 1.0


def ask(path: Path, encoded: Sequence[Encoded]) -> Floats:
    """Logits (N, columns), one text at a time: batches change int8's activation scales, the service asks so too."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 2
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    rows = []
    for item in encoded:
        ids, mask, types = batch_arrays([item], len(item.ids))
        (columns,) = session.run(None, {"input_ids": ids, "attention_mask": mask, "token_type_ids": types})
        rows.append(np.asarray(columns, np.float64)[0])
    return np.stack(rows)


def probability(logits: Floats, temperature: float = 1.0) -> Floats:
    """Sigmoid of the tempered logits."""
    result: Floats = 1.0 / (1.0 + np.exp(-logits / temperature))
    return result


def distribution(logits: Floats) -> Floats:
    """Softmax over the last axis."""
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
    result: Floats = shifted / shifted.sum(axis=-1, keepdims=True)
    return result


def fit_temperature(logits: Floats, truth: NDArray[np.int64]) -> float:
    """The temperature under which these yes-or-no answers are most likely; by a scan, for it is one number."""
    candidates = np.geomspace(0.5, 4.0, 61)

    def loss(temperature: float) -> float:
        p = np.clip(probability(logits, temperature), 1e-6, 1 - 1e-6)
        return float(-np.mean(truth * np.log(p) + (1 - truth) * np.log(1 - p)))

    return float(min(candidates, key=loss))
