"""Choose temperatures and thresholds on development data, before any evaluation is looked at.

A threshold is the lowest that keeps every set of harmless texts within its limit: what the limits leave is recall.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from scripts.classifier.examples import UNKNOWN, Example, Intent
from scripts.classifier.scoring import (
    INJECTION,
    INTENTS,
    JAILBREAK,
    UNSAFE,
    Floats,
    Temperatures,
    distribution,
    fit_temperature,
    probability,
)
from services.ethics.judge import Stage

FORMAT: Final = 1
# Refusals of harmless texts that only sound alarming: under the goal of one in ten, with room for other wordings.
MAX_CONTRAST_REFUSED: Final = 0.06
# The same on prompts by other authors, which are harder on purpose: most harmless ones are twins of a harmful one, many
# but for a word. For them the goal itself is the limit.
MAX_INDEPENDENT_REFUSED: Final = 0.10
# Everyday traffic: the goal itself, one in two hundred.
MAX_ORDINARY_REFUSED: Final = 0.005
# A long text is read in several windows without what stands around them, and each gets a chance to be mistaken.
MAX_WINDOW_REFUSED: Final = 0.01
MAX_JAILBREAK_MISTAKEN: Final = 0.002
# Of requests whose intent is plain, hardly any should be asked back about.
MAX_PLAIN_ASKED: Final = 0.003
# Documents, nearly all of which differ from one with an injection by a sentence.
MAX_INJECTION_MISTAKEN: Final = 0.06
MAX_OUTPUT_REFUSED: Final = 0.03
# A guard model costs seconds: so few harmless texts are left open for it, everyday ones and those that sound alarming.
MAX_ORDINARY_OPEN: Final = 0.02
MAX_CONTRAST_OPEN: Final = 0.15
# Missing what Law 0 forbids costs most, so its threshold lies this much lower (in log odds).
LAW_SHIFTS: Final = {0: -0.7, 1: 0.0, 2: 0.0, 3: 0.0, 4: 0.0}
ORDINARY_SOURCES: Final = ("ordinary", "gsm8k", "self_instruct", "gpteacher", "mmlu", "independent_everyday")
# No threshold leaves this range: beyond it the probabilities mean nothing.
LOWEST, HIGHEST = 0.1, 0.98


@dataclass(frozen=True, slots=True)
class Scored:
    """Development examples with their logits (N, columns), row by row."""

    examples: Sequence[Example]
    logits: Floats

    def where(self, chosen: Sequence[bool]) -> Scored:
        """The rows that are chosen."""
        rows = [row for row, keep in enumerate(chosen) if keep]
        return Scored([self.examples[row] for row in rows], self.logits[rows])


def fit_temperatures(scored: Scored) -> Temperatures:
    """One temperature for each yes-or-no question."""

    def fit(column: int, truth: Sequence[int]) -> float:
        known = np.array(truth) != UNKNOWN
        return fit_temperature(scored.logits[known, column], np.array(truth)[known])

    return Temperatures(
        fit(UNSAFE, [example.unsafe for example in scored.examples]),
        fit(JAILBREAK, [example.jailbreak for example in scored.examples]),
        fit(
            INJECTION,
            [
                example.injection if example.stage is Stage.TOOL_RESULT else UNKNOWN
                for example in scored.examples
            ],
        ),
    )


def choose_thresholds(scored: Scored, halves: Scored, temperatures: Temperatures) -> dict[str, object]:
    """Every threshold of `calibration.json`; `halves` are harmless long requests cut in two, as windows are read."""
    unsafe = probability(scored.logits[:, UNSAFE], temperatures.unsafe)
    jailbreak = probability(scored.logits[:, JAILBREAK], temperatures.jailbreak)
    injection = probability(scored.logits[:, INJECTION], temperatures.injection)
    harmless = np.array([example.unsafe == 0 for example in scored.examples])
    stage = np.array([example.stage.value for example in scored.examples])
    marks = [example.marks for example in scored.examples]
    long = np.array([bool(mark & {"frame", "padded"}) for mark in marks])
    ordinary = np.array([_is_ordinary(example) for example in scored.examples])
    request = stage == Stage.REQUEST.value
    plain = request & harmless & ~long & np.array(["jailbreak" not in mark for mark in marks])

    independent = np.array([example.source.startswith("independent") for example in scored.examples])
    refuse = _lowest(
        [
            (unsafe[plain & ~ordinary & ~independent], MAX_CONTRAST_REFUSED),
            (unsafe[plain & ~ordinary & independent], MAX_INDEPENDENT_REFUSED),
            (unsafe[plain & ordinary], MAX_ORDINARY_REFUSED),
        ]
    )
    windows = np.maximum(
        probability(halves.logits[:, UNSAFE], temperatures.unsafe),
        probability(halves.logits[:, JAILBREAK], temperatures.jailbreak),
    )
    output = _lowest([(unsafe[harmless & (stage == Stage.OUTPUT.value)], MAX_OUTPUT_REFUSED)])
    untold = np.array([example.jailbreak == 0 for example in scored.examples])
    uncertain = min(
        refuse,
        _lowest(
            [(unsafe[plain & ~ordinary], MAX_CONTRAST_OPEN), (unsafe[plain & ordinary], MAX_ORDINARY_OPEN)]
        ),
    )
    documents = stage == Stage.TOOL_RESULT.value
    clean = np.array([example.injection == 0 for example in scored.examples])
    return {
        "refuse": {str(law): _shifted(refuse, shift) for law, shift in LAW_SHIFTS.items()},
        # It holds for both kinds: what is harmful, and what tries to switch rules off.
        "window_refuse": max(_lowest([(windows, MAX_WINDOW_REFUSED)]), refuse),
        "uncertain": uncertain,
        "ambiguous": _ambiguous(scored),
        "jailbreak": _lowest([(jailbreak[request & untold & harmless], MAX_JAILBREAK_MISTAKEN)]),
        "injection": _lowest([(injection[documents & clean], MAX_INJECTION_MISTAKEN)]),
        "output_refuse": output,
        "output_uncertain": min(output, uncertain),
    }


def write_calibration(
    path: Path, categories: Sequence[str], temperatures: Temperatures, thresholds: Mapping[str, object]
) -> None:
    """Write `calibration.json` beside the model and the tokenizer that it belongs to."""
    document = {
        "format": FORMAT,
        "model_sha256": _sha256(path.parent / "model.onnx"),
        "tokenizer_sha256": _sha256(path.parent / "tokenizer.json"),
        "categories": list(categories),
        "temperatures": {
            "unsafe": round(temperatures.unsafe, 4),
            "jailbreak": round(temperatures.jailbreak, 4),
            "injection": round(temperatures.injection, 4),
        },
        "thresholds": _rounded(thresholds),
    }
    path.write_text(json.dumps(document, indent=2) + "\n", "utf-8")


def _lowest(sets: Sequence[tuple[Floats, float]]) -> float:
    """The lowest threshold at which each set of probabilities has at most its share at or above it."""
    found = LOWEST
    for values, limit in sets:
        if len(values):
            allowed = int(limit * len(values))
            found = max(found, float(np.sort(values)[::-1][min(allowed, len(values) - 1)]) + 1e-4)
    return min(found, HIGHEST)


def _ambiguous(scored: Scored) -> float:
    """The probability of an ambiguous intent that hardly any clear request reaches."""
    intents = distribution(scored.logits[:, INTENTS])[:, Intent.AMBIGUOUS]
    clear = np.array([example.intent in {Intent.BENIGN, Intent.HARMFUL} for example in scored.examples])
    return float(np.quantile(intents[clear], 1 - MAX_PLAIN_ASKED))


def _is_ordinary(example: Example) -> bool:
    return example.source.startswith(ORDINARY_SOURCES)


def _shifted(threshold: float, shift: float) -> float:
    odds = np.log(threshold / (1 - threshold)) + shift
    return float(1 / (1 + np.exp(-odds)))


def _rounded(value: object) -> object:
    if isinstance(value, Mapping):
        return {key: _rounded(item) for key, item in value.items()}
    return round(value, 4) if isinstance(value, float) else value


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
