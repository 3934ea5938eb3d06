"""Rows from outcomes: answers to learn, preferences between answers, and where each came from."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from services.trainer.training.constitutional.journal import PASSES, REVISED, Outcome
from services.trainer.training.constitutional.prompts import Material, Prompt, Turn
from services.trainer.training.constitutional.revisions import Fault, Faulty, Fits, Revision, explanation
from services.trainer.training.rows import TRAIN_FILE
from services.trainer.work.results import write_atomically

SOURCE: Final = "constitutional"
MAX_PAIRS: Final = 4
"""Preference pairs of one prompt: more of the same revision teach nothing new."""

EXPLAINED_SHARE: Final = 0.125
"""Of the violations, those that also become a conversation that explains what was wrong."""

SAME_ANSWER_SHARE: Final = 0.1
"""Of the harmless rows, those that may have one and the same answer: a model that learns "I do not know" a thousand times
says it to what it should decline."""

Row = Mapping[str, Any]
"""A row as it is written, JSON."""


@dataclass(frozen=True, slots=True)
class Shares:
    """How outcomes are divided."""

    sft: float = 0.5
    """Of the revised answers, those that are learned; the others become preferences."""
    benign: float = 0.3
    """Of the learned answers, those to harmless requests, as far as there are so many."""


@dataclass(frozen=True, slots=True)
class Lessons:
    """What a job learns from."""

    learned: tuple[Row, ...]
    preferences: tuple[Row, ...]
    harmless: tuple[Row, ...] = ()
    """Answers to harmless requests that are still to be chosen from."""


def make_lessons(
    material: Material,
    outcomes: Iterable[Outcome],
    shares: Shares,
    *,
    seed: int,
    model_digest: bytes,
    reviser: str,
    fits: Fits = bool,
) -> Lessons:
    """Returns the rows, harmless ones apart; the same outcomes and seed give the same rows in the same order.

    An explanation that does not fit is left out: a few long texts would outweigh all the short answers beside them.
    """
    prompts = {prompt.id: prompt for prompt in material.prompts}
    learned: list[Row] = [dict(row) for row in material.kept]
    benign: list[Row] = []
    preferences: list[Row] = []
    origin = {"model": model_digest.hex(), "reviser": reviser}
    for outcome in outcomes:
        prompt = prompts.get(outcome.prompt)
        if prompt is None or not outcome.answer:
            continue
        row = _row(prompt, outcome, {"messages": [*prompt.turns, _said(outcome.answer)]}, origin)
        if outcome.end == PASSES and outcome.law is None:
            benign.append(row)
        elif outcome.end == REVISED and _share(seed, "sft", prompt.id) >= shares.sft and outcome.rejected:
            preferences += [
                _row(prompt, outcome, _pair(prompt, outcome.answer, rejected), origin)
                for rejected in outcome.rejected[:MAX_PAIRS]
            ]
        else:
            learned.append(row)
        if _share(seed, "explained", prompt.id) < EXPLAINED_SHARE:
            learned += _explained(prompt, outcome, origin, fits)
    return Lessons(tuple(learned), tuple(preferences), tuple(benign))


def with_harmless(lessons: Sequence[Lessons], share: float, *, seed: int) -> list[Lessons]:
    """Adds as many harmless rows of all datasets as make `share` of the drafted answers, whichever the seed draws."""
    drafted = sum(row.get("source") == SOURCE for each in lessons for row in each.learned)
    harmless = [row for each in lessons for row in each.harmless]
    if share < 1 and drafted:
        wanted = round(drafted * share / (1 - share))
        drawn = sorted(harmless, key=lambda row: _share(seed, "benign", str(row["id"])))
        harmless = _varied(drawn, max(1, round(wanted * SAME_ANSWER_SHARE)))[:wanted]
    taken = {str(row["id"]) for row in harmless}
    return [
        Lessons(
            tuple(sorted([*each.learned, *_of(each.harmless, taken)], key=lambda row: _order(seed, row))),
            each.preferences,
        )
        for each in lessons
    ]


def _varied(rows: Sequence[Row], most: int) -> list[Row]:
    """Leaves out what answers as `most` rows before it do."""
    seen: Counter[str] = Counter()
    kept: list[Row] = []
    for row in rows:
        answer = str(row["messages"][-1]["content"])
        seen[answer] += 1
        if seen[answer] <= most:
            kept.append(row)
    return kept


def write_rows(directory: Path, rows: Sequence[Row]) -> None:
    """Writes rows as a dataset that training reads."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_atomically(directory / TRAIN_FILE, "".join(_text(row) + "\n" for row in rows).encode())


def _of(rows: Sequence[Row], ids: AbstractSet[str]) -> list[Row]:
    return [row for row in rows if row["id"] in ids]


def _order(seed: int, row: Row) -> float:
    return _share(seed, "order", str(row.get("id", "")) or _text(row))


def _pair(prompt: Prompt, chosen: str, rejected: str) -> Row:
    return {"prompt": list(prompt.turns), "chosen": [_said(chosen)], "rejected": [_said(rejected)]}


def _explained(prompt: Prompt, outcome: Outcome, origin: Mapping[str, str], fits: Fits) -> list[Row]:
    if outcome.end != REVISED or outcome.fault != Fault.VIOLATION.value or not outcome.rejected:
        return []
    faulty = Faulty(prompt, outcome.rejected[0], Fault.VIOLATION, outcome.law, outcome.category)
    turns = explanation(faulty, Revision(outcome.critique, outcome.answer))
    if not fits(turns[-1]["content"]):
        return []
    return [_row(prompt, outcome, {"messages": turns}, origin)]


def _row(prompt: Prompt, outcome: Outcome, content: Row, origin: Mapping[str, str]) -> Row:
    facts = {
        "end": outcome.end,
        "request_decision": outcome.request_decision,
        "draft_decisions": " ".join(outcome.draft_decisions),
        "revision_decision": outcome.revision_decision,
        "constitution": outcome.constitution,
        "fault": outcome.fault,
        "law": "" if outcome.law is None else str(outcome.law),
        **origin,
    }
    return {
        **content,
        "id": hashlib.sha256(_text(content).encode()).hexdigest()[:32],
        "source": SOURCE,
        "category": prompt.category,
        "facts": {name: value for name, value in facts.items() if value},
    }


def _share(seed: int, purpose: str, text: str) -> float:
    """Returns a number from 0 to below 1 that depends on these alone."""
    digest = hashlib.sha256(f"{seed}\0{purpose}\0{text}".encode()).digest()
    return int.from_bytes(digest[:8]) / (1 << 64)


def _said(text: str) -> Turn:
    return {"role": "assistant", "content": text}


def _text(row: Row) -> str:
    return json.dumps(row, ensure_ascii=False, separators=(",", ":"))
