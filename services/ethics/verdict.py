"""A judgement as one line of JSON, for the command line and the evaluation. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from services.ethics.hard_blocks import NAME as HARD_BLOCKS
from services.ethics.judge import Evidence, Outcome
from services.ethics.judgement import Judgement
from services.ethics.views import View

# A view that decodes a long text is as long as the text; people need to see what it says, not all of it.
MAX_VIEW_CHARS: Final = 2_000
LAWS: Final = range(5)

# `Any`: what JSON can hold.
Fields = dict[str, Any]


def verdict_of(line_id: str | int, judgement: Judgement, elapsed_nanos: int) -> Fields:
    """The verdict without its reasons."""
    return {
        "id": line_id,
        "outcome": judgement.outcome.value,
        "law": judgement.law,
        "category": judgement.category,
        "score": round(score_of(judgement), 6),
        "elapsed_ms": round(elapsed_nanos / 1e6, 3),
        "laws": [_law(judgement.evidence, law) for law in LAWS],
        "judges": list(judgement.judges),
    }


def reasons_of(judgement: Judgement, views: Sequence[View]) -> Fields:
    """Why: what was read, what was seen in it, how that was decided, and what a user is told."""
    return {
        "views": [{"name": view.name, "text": view.text[:MAX_VIEW_CHARS]} for view in views],
        "evidence": [_evidence(item) for item in judgement.evidence],
        "path": list(judgement.path),
        "message": judgement.message,
    }


def score_of(judgement: Judgement) -> float:
    """How surely the text is to be refused, 0 to 1: the strongest evidence that speaks of a law; 1 for a hard block.

    A refusal without such evidence is a fault or something unreadable, and says 1. What a rule asks back about says
    nothing of how harmful the text is.
    """
    spoken = [
        item.score for item in judgement.evidence if item.law is not None and not _is_rules_question(item)
    ]
    if not spoken:
        return 1.0 if judgement.outcome is Outcome.REFUSE else 0.0
    return max(spoken)


def _is_rules_question(item: Evidence) -> bool:
    return item.outcome is Outcome.ASK_CLARIFICATION and item.score == 1.0


def _law(evidence: Sequence[Evidence], law: int) -> Fields:
    found = [item for item in evidence if item.law == law]
    strongest = max(found, key=_strength, default=None)
    return {
        "law": law,
        "score": 0.0 if strongest is None else round(strongest.score, 6),
        "category": "" if strongest is None else strongest.category,
    }


def _strength(item: Evidence) -> tuple[float, bool]:
    return item.score, item.judge == HARD_BLOCKS


def _evidence(item: Evidence) -> Fields:
    return {
        "judge": item.judge,
        "law": item.law,
        "category": item.category,
        "outcome": item.outcome.value,
        "field": item.field,
        "start": item.start,
        "end": item.end,
        "view": item.view,
        "rule": item.rule,
        "score": round(item.score, 6),
    }
