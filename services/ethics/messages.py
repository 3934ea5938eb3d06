"""What the user is told about a decision, in their language where the constitution has texts for it. Pure."""

from __future__ import annotations

from typing import Final

from services.ethics.judge import Evidence, Outcome
from services.ethics.laws import Constitution
from services.ethics.texts import DEFAULT_QUESTION, LANGUAGE_CATEGORY

# Categories of evidence that speaks to no law.
UNREADABLE: Final = "unreadable_part"
TOO_LONG: Final = "too_long"
LANGUAGE: Final = LANGUAGE_CATEGORY
INJECTION: Final = "integrity.prompt_injection"


def message_for(
    deciding: Evidence, constitution: Constitution, language: str, *, is_document: bool = False
) -> str:
    """The law, the reason in words, and a safe way on; for a document also where it speaks out of turn."""
    texts = constitution.texts_in(language)
    if deciding.law is None and deciding.category != LANGUAGE:
        return {UNREADABLE: texts.unreadable, TOO_LONG: texts.too_long}.get(
            deciding.category, texts.undecided
        )
    if is_document and deciding.category == INJECTION and deciding.outcome is not Outcome.ALLOW:
        template = texts.injection
    else:
        template = {
            Outcome.REFUSE: texts.refuse,
            Outcome.REDIRECT: texts.redirect,
            Outcome.ASK_CLARIFICATION: texts.clarify,
        }.get(deciding.outcome, texts.undecided)
    return template.format(
        law=deciding.law,
        name="" if deciding.law is None else texts.laws[deciding.law],
        reason=texts.reasons.get(deciding.category, ""),
        question=texts.questions.get(deciding.category, texts.questions[DEFAULT_QUESTION]),
        alternative=texts.alternatives[deciding.category],
        resources=texts.resources,
        field=deciding.field,
        start=deciding.start,
        end=deciding.end,
    )
