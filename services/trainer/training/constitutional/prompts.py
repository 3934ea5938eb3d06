"""What is drafted for: the conversations of the job's datasets up to the answer, and rows that are learned as they are."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Any, Final

from kala.errors import DataLossError
from services.trainer.evaluation.refusals import is_refusal
from services.trainer.training.rows import MAX_LINE_BYTES, TRAIN_FILE

Turn = dict[str, str]
"""{"role", "content"}, as chat templates read it."""

LAWS: Final = range(5)
# Rows of these categories ask for nothing that a law speaks to; a draft of them would only lose a good answer.
KEPT_CATEGORIES: Final = frozenset(
    {
        "template_task", "experiment_design", "refactoring", "derivation", "trade_offs", "uncertainty", "code",
        "mathematics", "physics",
    }
)  # fmt: skip
# An explanation of a wrong answer is itself the lesson.
KEPT_KINDS: Final = frozenset({"critique"})
_LAW_CATEGORY: Final = "law_"
_BENIGN: Final = "benign"
_CONFLICT: Final = "conflict"


class Meant(Enum):
    """What the dataset's author expects of an answer."""

    REFUSAL = "refusal"
    HELP = "help"
    DECISION = "decision"
    """Which of two laws comes first."""
    UNSAID = "unsaid"


@dataclass(frozen=True, slots=True)
class Prompt:
    """One conversation that ends with a user's turn; `reference` is the dataset's own answer, empty where it has none."""

    id: str
    """First 32 hex characters of SHA-256 over the turns."""
    turns: tuple[Turn, ...]
    category: str
    reference: str = ""
    law: int | None = None
    """The law that the dataset's author put it under; None where none is named."""
    against: int | None = None
    """In a conflict, the law that gives way."""
    meant: Meant = Meant.UNSAID

    @property
    def request(self) -> str:
        """The last thing that the user says."""
        return self.turns[-1]["content"]


@dataclass(frozen=True, slots=True)
class Material:
    """All that a job starts from."""

    prompts: tuple[Prompt, ...]
    kept: tuple[Mapping[str, Any], ...]
    """Rows that are learned as they are."""
    too_long: int = 0
    """Rows that would be, were their answers not longer than the longest revision."""


def read_material(directory: Path, fits: Callable[[str], bool] = bool) -> Material:
    """Reads a dataset's training rows; equal prompts are taken once, in the order in which they come.

    `fits` tells whether an answer is no longer than the longest revision; a longer one is never learned in a draft's place.
    Raises DataLossError naming file and row for a row that is none.
    """
    prompts: dict[str, Prompt] = {}
    kept = []
    too_long = 0
    for number, row in _lines(directory / TRAIN_FILE):
        try:
            if not _is_kept(row):
                prompt = _prompt(row)
                reference = prompt.reference if fits(prompt.reference) else ""
                prompts.setdefault(prompt.id, replace(prompt, reference=reference))
            elif "messages" not in row or fits(_split(row["messages"])[1]):
                kept.append(row)
            else:
                too_long += 1
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise DataLossError(
                f"{TRAIN_FILE} row {number}: is no conversation; build the dataset again",
                reason="DATASET_DAMAGED",
            ) from error
    return Material(tuple(prompts.values()), tuple(kept), too_long)


def prompt_id(turns: Sequence[Turn]) -> str:
    """Returns the id of a conversation."""
    text = json.dumps([[turn["role"], turn["content"]] for turn in turns], ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _is_kept(row: Mapping[str, Any]) -> bool:  # Any: parsed JSON
    return row.get("category") in KEPT_CATEGORIES or row.get("facts", {}).get("kind") in KEPT_KINDS


def _prompt(row: Mapping[str, Any]) -> Prompt:  # Any: parsed JSON
    if "messages" in row:
        turns, reference = _split(row["messages"])
    else:
        asked = row["prompt"]
        turns = _turns([{"role": "user", "content": asked}] if isinstance(asked, str) else asked)
        reference = _answer(row.get("completion", row.get("chosen", "")))
    if turns[-1]["role"] != "user":
        raise ValueError("no user's turn before the answer")
    category, facts = str(row.get("category", "")), dict(row.get("facts", {}))
    law = facts.get("law", category.removeprefix(_LAW_CATEGORY) if category.startswith(_LAW_CATEGORY) else "")
    return Prompt(
        prompt_id(turns),
        turns,
        category,
        reference,
        _law(law),
        _law(facts.get("against", "")),
        _meant(category, reference, _law(law)),
    )


def _meant(category: str, reference: str, law: int | None) -> Meant:
    if category == _CONFLICT and law is not None and reference:
        return Meant.DECISION
    if category == _BENIGN:
        return Meant.HELP
    if category.startswith(_LAW_CATEGORY) or (law is not None and is_refusal(reference)):
        return Meant.REFUSAL
    # A conversation that comes back to something harmless is answered again.
    return Meant.HELP if law is not None and reference else Meant.UNSAID


def _law(text: str) -> int | None:
    return int(text) if text.isdigit() and int(text) in LAWS else None


def _split(messages: Any) -> tuple[tuple[Turn, ...], str]:  # Any: parsed JSON
    turns = _turns(messages)
    if turns[-1]["role"] == "assistant":
        return turns[:-1], turns[-1]["content"]
    return turns, ""


def _turns(messages: Any) -> tuple[Turn, ...]:  # Any: parsed JSON
    return tuple({"role": str(turn["role"]), "content": str(turn["content"])} for turn in messages)


def _answer(value: Any) -> str:  # Any: parsed JSON
    return value if isinstance(value, str) else str(value[-1]["content"]) if value else ""


def _lines(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:  # Any: parsed JSON
    try:
        with path.open("rb") as file:
            for number, line in enumerate(iter(lambda: file.readline(MAX_LINE_BYTES + 1), b""), start=1):
                row = json.loads(line) if len(line) <= MAX_LINE_BYTES else None
                if not isinstance(row, dict):
                    raise DataLossError(f"{path.name} row {number}: is no row; build the dataset again")
                yield number, row
    except (OSError, ValueError) as error:
        raise DataLossError(f"{path.name}: cannot be read; build the dataset again") from error
