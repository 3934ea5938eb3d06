"""A judgement as one line of JSON, for the command line and the evaluation. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from services.ethics.judge import Evidence, Outcome, Ratings
from services.ethics.judgement import Judgement
from services.ethics.laws import Law
from services.ethics.views import View
from services.ethics.wire import law_scores

# A view that decodes a long text is as long as the text; people need to see what it says, not all of it.
MAX_VIEW_CHARS: Final = 2_000

# `Any`: what JSON can hold.
Fields = dict[str, Any]


def verdict_of(
    line_id: str | int, judgement: Judgement, ratings: Ratings | None, elapsed_nanos: int
) -> Fields:
    """The verdict without its reasons; `ratings` help out where no evidence speaks of a law."""
    return {
        "id": line_id,
        "outcome": judgement.outcome.value,
        "law": judgement.law,
        "category": judgement.category,
        "score": round(score_of(judgement, ratings), 6),
        "elapsed_ms": round(elapsed_nanos / 1e6, 3),
        "judges": list(judgement.judges),
    }


def laws_of(judgement: Judgement, ratings: Ratings | None, laws: Sequence[Law]) -> list[Fields]:
    """How strongly every law speaks against the text, as the service scores it."""
    return [
        {"law": found.law, "score": round(found.score, 6), "category": found.category}
        for found in law_scores(judgement, ratings, laws)
    ]


def is_silent(judgement: Judgement) -> bool:
    """Whether no evidence says how harmful the text is, so that only ratings can."""
    return judgement.outcome is not Outcome.REFUSE and not _spoken(judgement)


def reasons_of(judgement: Judgement, views: Sequence[View]) -> Fields:
    """Why: what was read, what was seen in it, how that was decided, and what a user is told."""
    return {
        "views": [{"name": view.name, "text": view.text[:MAX_VIEW_CHARS]} for view in views],
        "evidence": [_evidence(item) for item in judgement.evidence],
        "path": list(judgement.path),
        "message": judgement.message,
    }


def score_of(judgement: Judgement, ratings: Ratings | None) -> float:
    """How surely the text is to be refused, 0 to 1: the strongest evidence that speaks of a law; 1 for a hard block.

    A refusal without such evidence is a fault or something unreadable, and says 1. What a rule asks back about says
    nothing of how harmful the text is, nor does a language; there the ratings speak.
    """
    spoken = _spoken(judgement)
    if spoken:
        return max(spoken)
    if judgement.outcome is Outcome.REFUSE:
        return 1.0
    return 0.0 if ratings is None else min(sum(ratings.laws), 1.0)


def _spoken(judgement: Judgement) -> list[float]:
    return [
        item.score for item in judgement.evidence if item.law is not None and not _is_rules_question(item)
    ]


def _is_rules_question(item: Evidence) -> bool:
    return item.outcome is Outcome.ASK_CLARIFICATION and item.score == 1.0


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
