"""The files beside the weights: the training report and the manifest of digests."""

from __future__ import annotations

import hashlib
import json
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import tokenizers
import torch
import transformers

from scripts.embedded import network, optimizer, tokens, training
from scripts.embedded.wording import Split

if TYPE_CHECKING:
    from scripts.embedded.dialogue import Curriculum
    from scripts.embedded.scoring import Score
    from scripts.embedded.training import TrainingRecord

MANIFEST: Final = "manifest.json"
REPORT: Final = "TRAINING_REPORT.md"
_SHOWN_FAILURES: Final = 60
_TITLES: Final = {
    Split.COMBINATION.value: "known wordings, unseen combinations",
    Split.DEV.value: "unseen wordings, looked at while writing templates",
    Split.TEST.value: "unseen wordings, only scored",
    "free": "free prompts, written by hand outside all templates",
}
_INTRODUCTION: Final = """# Training report of the embedded demo model
This model is a demo and a test fixture.
It is never a safety layer: its refusals are memorised sentences, and only the ethics service decides.
It knows the few hundred things in its template files and answers "I do not know" to most others, not to all.

It has the architecture of Pythia (GPT-NeoX, untied embeddings) and was trained from random weights on text that
`scripts/embedded` generates from templates written for it; it has seen no other text.
"""
_HISTORY: Final = """## What was looked at before this run
Unfinished pilot runs were scored on combinations, dev and free prompts, never on test.
After them the learning rate of AdamW, the weights of tokens in the loss, the share of small sums and of typing errors
and the number of layers were set, and a leak between spelled and written sums was closed.
No wording was added because of a failure in any set.
All products up to 12 times 12 are trained, so their score is memory, not arithmetic.
bf16 products speed up training; weights, optimiser state and scoring are fp32, and the stored weights are fp16.
"""


@dataclass(frozen=True, slots=True)
class Run:
    """What the report says of one run of the training script."""

    command: str
    seed: int
    curriculum: Curriculum
    record: TrainingRecord
    scores: tuple[Score, ...]
    parameters: int
    total_wall_seconds: float
    total_cpu_seconds: float


def write_report(folder: Path, run: Run) -> None:
    """Writes the training report: sizes, machine, times, scores and the failures themselves."""
    sections = [
        _INTRODUCTION,
        _made(run),
        _data(run.curriculum),
        _scores(run.scores),
        *map(_failures, run.scores),
    ]
    (folder / REPORT).write_text("\n".join(sections), encoding="utf-8")


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]}, {len(names)} cores" if names else platform.processor()


def _made(run: Run) -> str:
    record = run.record
    return f"""## How it was made
| what | value |
| --- | --- |
| command | `{run.command}` |
| seed | {run.seed} |
| machine | {_processor()}; one thread, other work on the machine |
| software | Python {platform.python_version()}, torch {torch.__version__}, transformers {transformers.__version__}, tokenizers {tokenizers.__version__} |
| model | {network.LAYERS} layers, width {network.HIDDEN}, {network.HEADS} heads, feed-forward {network.FEED_FORWARD}, vocabulary {network.VOCABULARY}, context {tokens.CONTEXT_TOKENS}, {run.parameters:,} parameters |
| optimiser | Muon at {optimizer.MUON_RATE} for the matrices of the layers, AdamW at {optimizer.ADAM_RATE} for the rest, falling in a line |
| batches | {record.steps:,} of at most {training.BATCH_TOKENS:,} tokens, one conversation per row |
| seen | {record.conversations:,} conversations, {record.tokens:,} tokens, {record.learned_tokens:,} of them learned |
| final loss | {record.final_loss:.4f} nats per learned token (running mean) |
| training time | {record.wall_seconds:.0f} s wall, {record.cpu_seconds:.0f} s CPU |
| whole script with scoring | {run.total_wall_seconds:.0f} s wall, {run.total_cpu_seconds:.0f} s CPU |
"""


def _data(curriculum: Curriculum) -> str:
    def families(split: Split) -> int:
        return sum(len(intent.by_split[split]) for intent in curriculum.intents)

    cases = sum(len(intent.cases) for intent in curriculum.intents)
    return f"""## Data and splits
{len(curriculum.intents)} intents with {cases:,} cases and {sum(map(families, (Split.TRAIN, Split.DEV, Split.TEST))):,} wording families; a family is one template line with its alternatives.
Families are divided by the digest of their text: {families(Split.TRAIN):,} train, {families(Split.DEV):,} dev, {families(Split.TEST):,} test.
Where an answer can be computed, one case in twenty is never trained on; where it can only be remembered, one pair of family and case in forty.
Openings, politeness, letter case, punctuation and typing errors are drawn from the same lists in all splits.
An answer to a split question counts only when it equals an accepted answer exactly; an answer to a free prompt counts when it holds an accepted text.
"""


def _scores(scores: tuple[Score, ...]) -> str:
    rows = [
        f"| {score.name} | {_TITLES[score.name]} | {score.right} | {score.asked} | {100 * score.share:.1f} % |"
        for score in scores
    ]
    return "\n".join(
        ["## Scores", "| set | what | right | asked | share |", "| --- | --- | --- | --- | --- |", *rows, ""]
    )


def _failures(score: Score) -> str:
    weak = ", ".join(
        f"{name} {right}/{asked}" for name, (right, asked) in score.by_intent.items() if right < asked
    )
    rows = [
        f"| {_cell(f.intent)} | {_cell(f.prompt)} | {_cell(f.expected)} | {_cell(f.answer)} |"
        for f in score.failures[:_SHOWN_FAILURES]
    ]
    head = [
        f"## Failures: {score.name}",
        f"Intents with any failure: {weak or 'none'}.",
        f"The first {len(rows)} of {len(score.failures)} failures:",
        "",
        "| intent | asked | expected | answered |",
        "| --- | --- | --- | --- |",
    ]
    return "\n".join([*head, *rows, ""])


def _cell(text: str) -> str:
    shown = text if len(text) <= 120 else text[:117] + "..."
    return shown.replace("|", "\\|").replace("\n", " / ") or "(nothing)"


def write_manifest(folder: Path, seed: int) -> None:
    """Writes the SHA-256 digest and the size in bytes of every other file in the folder."""
    files = {
        path.name: {"sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "bytes": path.stat().st_size}
        for path in sorted(folder.iterdir())
        if path.name != MANIFEST
    }
    manifest = {
        "model": "kala-embedded-demo",
        "purpose": "demo and test fixture",
        "seed": seed,
        "files": files,
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
