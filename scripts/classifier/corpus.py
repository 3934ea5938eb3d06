"""Put the corpus together: public rows, authored lines, ordinary requests, and all of them in other shapes."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from scripts.classifier.authored import authored_conversations, authored_examples, authored_frames
from scripts.classifier.examples import UNKNOWN, Example, Intent
from scripts.classifier.ordinary import ordinary_requests
from scripts.classifier.public_data import DEV, DEV_OOD, TRAIN, public_examples
from scripts.classifier.wording import Rewording
from services.ethics.judge import Stage

# Groups of twins are held out whole, so that no twin of a development line was learnt from.
DEVELOPMENT_SHARE: Final = 0.07
ORDINARY_REQUESTS: Final = 5000
# About as many words as the tokens from which on the service reads halves too.
MIN_HALVED_WORDS: Final = 50
INDEPENDENT: Final = Path(__file__).parents[2] / "evaluation" / "development"


@dataclass(frozen=True, slots=True)
class Corpus:
    """What is learnt from, and what thresholds are chosen on."""

    train: list[Example]
    development: list[Example]


def make_corpus(data: Path | None, seed: int) -> Corpus:
    """The whole corpus; without a directory of public data only the project's own lines."""
    authored = [*authored_examples(seed), *authored_conversations()]
    ordinary = _ordinary(seed)
    held_out = _held_out({example.group for example in [*authored, *ordinary]}, seed)
    own = [example for example in [*authored, *ordinary] if example.group not in held_out]
    own_development = [example for example in [*authored, *ordinary] if example.group in held_out]
    public = [] if data is None else list(public_examples(data / TRAIN))
    public_development = (
        [] if data is None else [*public_examples(data / DEV), *public_examples(data / DEV_OOD)]
    )

    frames = authored_frames(seed)
    held_frames = _held_out({frame.id for frame in frames}, seed)
    learnt_frames = [frame for frame in frames if frame.id not in held_frames]
    padding = [example.text for example in ordinary if len(example.text) > 80]
    padding += [example.text for example in authored if example.unsafe == 0 and len(example.text) > 120
                and example.stage is Stage.REQUEST and example.group not in held_out]  # fmt: skip
    rewording = Rewording(learnt_frames, padding, seed)
    base = [*own, *public]
    train = [*map(rewording.lightly, base), *rewording.further(base, framed=0.16, padded=0.05)]
    held = Rewording([frame for frame in frames if frame.id in held_frames], padding, seed)
    development = [*own_development, *public_development]
    development += held.further(development, framed=0.5, padded=0.3)
    random.Random(seed).shuffle(train)
    return Corpus(train, development)


def independent_examples(directory: Path = INDEPENDENT) -> Iterator[Example]:
    """The prompts that thresholds are chosen on; written by other hands than the training lines."""
    for path in sorted(directory.glob("*.jsonl")):
        for line in path.read_text("utf-8").splitlines():
            row = json.loads(line)
            unsafe, stage = int(row["label"] == "harmful"), Stage(row.get("stage", "request"))
            is_document = stage is Stage.TOOL_RESULT
            yield Example(
                row["text"],
                # As in the training lines: an injected instruction is no harmful content of its own.
                UNKNOWN if is_document and unsafe else unsafe,
                f"independent_{path.stem}",
                str(row["id"]),
                stage,
                injection=unsafe if is_document else 0,
                law=int(row["law"]) if unsafe and row.get("law") is not None else UNKNOWN,
                category=row.get("category") or "",
                intent=Intent.HARMFUL if unsafe else Intent.BENIGN,
            )


def _ordinary(seed: int) -> list[Example]:
    texts = list(dict.fromkeys(ordinary_requests(seed)))
    random.Random(seed).shuffle(texts)
    return [
        Example(text, 0, "ordinary", f"ordinary:{number}", intent=Intent.BENIGN, draws=0.7)
        for number, text in enumerate(texts[:ORDINARY_REQUESTS])
    ]


def _held_out(names: Iterable[str], seed: int) -> set[str]:
    ordered = sorted(names)
    return set(random.Random(f"{seed}:held out").sample(ordered, round(len(ordered) * DEVELOPMENT_SHARE)))


def halves_of(examples: Sequence[Example]) -> list[Example]:
    """The halves of harmless long requests, as the service reads windows of them."""
    return [
        replace(example, text=" ".join(half))
        for example in examples
        if example.unsafe == 0 and not example.jailbreak and example.stage is Stage.REQUEST
        for words in [example.text.split(" ")]
        if len(words) >= MIN_HALVED_WORDS
        for half in (words[: len(words) // 2], words[len(words) // 2 :])
    ]


def without(examples: Sequence[Example], sources: set[str]) -> list[Example]:
    """The examples of all other sources: for leave-one-source-out estimates."""
    return [replace(example) for example in examples if example.source not in sources]
