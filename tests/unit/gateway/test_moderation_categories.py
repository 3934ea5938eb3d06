"""A verdict by the laws becomes OpenAI's result: every category said, nothing flagged that was allowed."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from openai.types import Moderation

from gateway.moderation_categories import NEVER_JUDGED, OPENAI_CATEGORIES, OPENAI_OF, is_whole, result_of
from kala.common.v1 import decision_pb2
from kala.ethics.v1 import ethics_pb2

ROOT = Path(__file__).resolve().parents[3]
DOCUMENT = ROOT / "docs" / "ethics" / "moderation.md"
REFUSE = decision_pb2.OUTCOME_REFUSE


def laws(**scores: float) -> list[ethics_pb2.LawScore]:
    return [ethics_pb2.LawScore(law=law, score=scores.get(f"law_{law}", 0.0)) for law in range(5)]


def evidence(
    law: int | None, category: str, score: float = 1.0, outcome: int = REFUSE
) -> decision_pb2.Evidence:
    return decision_pb2.Evidence(judge="j", law=law, category=category, score=score, outcome=outcome)  # type: ignore[arg-type]


def verdict(
    outcome: int = REFUSE,
    law: int | None = None,
    category: str = "",
    *found: decision_pb2.Evidence,
    **more: Any,
) -> ethics_pb2.ScoreResponse:
    decision = decision_pb2.Decision(
        id="0" * 32,
        outcome=outcome,
        law=law,
        category=category,
        evidence=found,  # type: ignore[arg-type]
    )
    return ethics_pb2.ScoreResponse(decision=decision, **({"laws": laws()} | more))


def true_of(result: dict[str, Any]) -> set[str]:
    return {name for name, is_true in result["categories"].items() if is_true}


def test_the_table_names_the_constitutions_categories_in_the_order_of_the_laws() -> None:
    document = yaml.safe_load((ROOT / "constitution" / "laws.yaml").read_text(encoding="utf-8"))
    assert list(OPENAI_OF) == [category for law in document["laws"] for category in law["categories"]]


def test_every_category_of_openai_is_mapped_or_said_to_be_never_judged() -> None:
    mapped = {name for names in OPENAI_OF.values() for name in names}
    assert mapped | NEVER_JUDGED == set(OPENAI_CATEGORIES)
    assert not mapped & NEVER_JUDGED


def test_the_document_shows_the_table_as_it_is() -> None:
    rows = [
        [cell.strip(" `") for cell in line.strip("|").split("|")]
        for line in DOCUMENT.read_text(encoding="utf-8").splitlines()
        if line.startswith("| `")
    ]
    shown = {category: names.replace("`", "") for category, names in rows}
    assert {name: shown.get(name) for name in OPENAI_OF} == {
        name: ", ".join(names) or "none" for name, names in OPENAI_OF.items()
    }


def test_openais_type_reads_a_result_with_the_additions_beside_its_own() -> None:
    found = evidence(1, "violence.killing", 0.75)
    made = result_of(verdict(REFUSE, 1, "violence.killing", found, laws=laws(law_1=0.75)), stage="request")
    parsed = Moderation.model_validate(made, strict=True)
    assert parsed.flagged
    assert parsed.categories.violence
    assert parsed.categories.illicit_violent
    assert not parsed.categories.hate
    assert parsed.category_scores.violence == 0.75
    assert parsed.category_applied_input_types.violence_graphic == []
    assert parsed.categories.model_extra is not None
    assert parsed.categories.model_extra["law_1"] is True
    assert parsed.categories.model_extra["kala/violence.killing"] is True
    assert (
        set(made["categories"]) == set(made["category_scores"]) == set(made["category_applied_input_types"])
    )


def test_what_is_allowed_has_scores_and_no_true_category() -> None:
    scores = [ethics_pb2.CategoryScore(category="cyber.malware", score=0.4)]
    made = result_of(
        verdict(decision_pb2.OUTCOME_ALLOW, laws=laws(law_2=0.4), categories=scores), stage="request"
    )
    assert not made["flagged"]
    assert true_of(made) == set()
    assert made["category_scores"]["illicit"] == made["category_scores"]["kala/cyber.malware"] == 0.4


def test_an_openai_category_has_the_strongest_score_of_its_own() -> None:
    scores = [
        ethics_pb2.CategoryScore(category="dignity.hate", score=0.2),
        ethics_pb2.CategoryScore(category="dignity.extremism", score=0.6),
    ]
    made = result_of(verdict(decision_pb2.OUTCOME_ALLOW, categories=scores), stage="request")
    assert made["category_scores"]["hate"] == 0.6


def test_every_law_that_speaks_against_a_text_is_true_not_only_the_first() -> None:
    both = (evidence(1, "self_harm", 0.9, decision_pb2.OUTCOME_REDIRECT), evidence(3, "integrity.jailbreak"))
    made = result_of(verdict(decision_pb2.OUTCOME_REDIRECT, 1, "self_harm", *both), stage="request")
    assert true_of(made) == {"self-harm", "law_1", "law_3", "kala/self_harm", "kala/integrity.jailbreak"}


def test_evidence_that_was_settled_as_harmless_flags_nothing() -> None:
    settled = evidence(2, "crime.theft", 0.5, decision_pb2.OUTCOME_ALLOW)
    made = result_of(verdict(REFUSE, 1, "violence.killing", settled), stage="request")
    assert "law_2" not in true_of(made)


@pytest.mark.parametrize("category", ["undecided", "language", "made.later"])
def test_a_category_outside_the_table_is_said_under_its_own_name(category: str) -> None:
    made = result_of(verdict(decision_pb2.OUTCOME_ASK_CLARIFICATION, None, category), stage="request")
    assert true_of(made) == {f"kala/{category}"}
    assert made["category_scores"][f"kala/{category}"] == 1.0


@pytest.mark.parametrize(
    "broken",
    [
        verdict(decision_pb2.OUTCOME_UNSPECIFIED),
        verdict(laws=laws()[:4]),
        verdict(laws=laws(law_2=math.nan)),
        verdict(laws=laws(law_2=1.5)),
        verdict(categories=[ethics_pb2.CategoryScore(category="x", score=-1.0)]),
        verdict(REFUSE, 1, "self_harm", evidence(1, "self_harm", math.inf)),
    ],
    ids=["no outcome", "a law missing", "not a number", "above one", "below zero", "infinite"],
)
def test_a_verdict_that_says_nothing_is_not_whole(broken: ethics_pb2.ScoreResponse) -> None:
    assert not is_whole(broken)
    assert is_whole(verdict())
