"""Turn the evidence of all judges into one decision, in the constitution's order: Law 0 first, Law 4 last.

Pure but for awaiting the judges. Fails closed: when a judge raises, the decision is never ALLOW.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Final

from services.ethics.judge import Evidence, Judge, Material, Outcome, Stage
from services.ethics.laws import Constitution, DecisionOrder
from services.ethics.messages import UNREADABLE, message_for
from services.ethics.texts import DEFAULT_LANGUAGE

# The contract's limits on what a decision carries.
MAX_EVIDENCE: Final = 32
MAX_PATH_LINES: Final = 32
UNDECIDED: Final = "undecided"

OnFault = Callable[[str, Exception], None]


@dataclass(frozen=True, slots=True)
class Judgement:
    """A finished decision; `law` is None when no law decided, `category` and `message` are empty on ALLOW."""

    outcome: Outcome
    law: int | None
    category: str
    evidence: tuple[Evidence, ...]
    path: tuple[str, ...]
    message: str
    judges: tuple[str, ...]

    @property
    def allows(self) -> bool:
        """Whether the material may go on."""
        return self.outcome is Outcome.ALLOW


async def judge_material(
    material: Material,
    judges: Sequence[Judge],
    constitution: Constitution,
    on_fault: OnFault,
    *,
    evidence: Sequence[Evidence] = (),
    language: str = DEFAULT_LANGUAGE,
    is_strict: bool = False,
) -> Judgement:
    """Ask every judge in order and decide over all evidence, that given included; `on_fault` hears of failures."""
    found = list(evidence)
    failed: list[str] = []
    for judge in judges:
        try:
            found += await judge.judge(material, tuple(found))
        except Exception as error:  # noqa: BLE001 - whatever a judge raises, the answer must be "not allowed"
            on_fault(judge.name, error)
            failed.append(judge.name)
    return decide(
        found,
        constitution,
        judges=tuple(judge.name for judge in judges),
        failed=failed,
        parts=len(material.parts),
        language=language,
        documents={part.field for part in material.parts if part.stage is Stage.TOOL_RESULT},
        is_strict=is_strict,
    )


def decide(
    evidence: Sequence[Evidence],
    constitution: Constitution,
    *,
    judges: Sequence[str],
    failed: Sequence[str] = (),
    parts: int = 1,
    language: str = DEFAULT_LANGUAGE,
    documents: Collection[str] = (),
    is_strict: bool = False,
) -> Judgement:
    """The decision over this evidence; no judges at all, or one that failed, can never end in ALLOW.

    The message is in `language` where there are texts for it; `documents` are the fields that hold untrusted text.
    With `is_strict` nothing that was left open is allowed: it is asked about.
    """
    evidence, settled = settle(evidence)
    if is_strict:
        evidence = [_asked_about(item) for item in evidence]
    ordered = sorted(evidence, key=lambda item: _rank(item, constitution.order))
    path = [f"Read {parts} text{'s' if parts != 1 else ''} with {', '.join(judges) or 'no judge'}."]
    path += [failed_line(name) for name in failed]
    path += settled
    path += [_lawless_line(item) for item in ordered if item.law is None]
    deciding = _deciding(ordered)
    for law in constitution.order.laws:
        found = [item for item in ordered if item.law == law]
        path += _law_lines(constitution.laws[law].name, law, found)
        if deciding is not None and deciding.law == law:
            break
    if deciding is None and (failed or not judges):
        path.append("Decision: REFUSE, because the check could not be finished.")
        outcome, law_number, category = Outcome.REFUSE, None, UNDECIDED
        message = constitution.texts_in(language).undecided
    elif deciding is None:
        path.append("Decision: ALLOW, because no law speaks against it.")
        outcome, law_number, category, message = Outcome.ALLOW, None, "", ""
    else:
        path.append(f"Decision: {deciding.outcome.value} under {_law_name(deciding, constitution)}.")
        outcome, law_number, category = deciding.outcome, deciding.law, deciding.category
        is_document = deciding.field in documents
        message = message_for(deciding, constitution, language, is_document=is_document)
    if len(ordered) > MAX_EVIDENCE:
        path.insert(1, f"{len(ordered)} pieces of evidence, of which the first {MAX_EVIDENCE} are kept.")
    return Judgement(
        outcome,
        law_number,
        category,
        tuple(ordered[:MAX_EVIDENCE]),
        tuple(path) if len(path) <= MAX_PATH_LINES else (*path[: MAX_PATH_LINES - 1], path[-1]),
        message,
        tuple(judges),
    )


def failed_line(name: str) -> str:
    """What the path says of a judge that failed; a replay finds it there."""
    return f"The judge {name} failed, so nothing can be allowed."


def settle(evidence: Sequence[Evidence]) -> tuple[list[Evidence], list[str]]:
    """The evidence with every open question ALLOW that a later judge found harmless, and a line for each."""
    found: list[Evidence] = []
    lines: list[str] = []
    for place, item in enumerate(evidence):
        settler = _settler(item, evidence[place + 1 :]) if item.is_open else None
        if settler is None:
            found.append(item)
            continue
        found.append(replace(item, outcome=Outcome.ALLOW, is_open=False))
        lines.append(f"{item.judge} left {item.category} in {item.field} open; {settler} found it harmless.")
    return found, lines


def _asked_about(item: Evidence) -> Evidence:
    """An open question as one that is asked back; in which language a document is written stays no question."""
    is_allowed = item.is_open and item.outcome is Outcome.ALLOW and item.law is not None
    return replace(item, outcome=Outcome.ASK_CLARIFICATION) if is_allowed else item


def _settler(question: Evidence, later: Sequence[Evidence]) -> str | None:
    asked = (question.field, question.view, question.law, question.category)
    answers = (
        item.judge
        for item in later
        if item.outcome is Outcome.ALLOW
        and item.judge != question.judge
        and (item.field, item.view, item.law, item.category) == asked
    )
    return next(answers, None)


def _lawless_line(item: Evidence) -> str:
    if item.category == UNREADABLE:
        return f"{item.field} is {item.view}, which no judge here can read: {item.outcome.value}."
    return f"{item.rule} found {item.category} in {item.field}, and says {item.outcome.value}."


def _deciding(ordered: Sequence[Evidence]) -> Evidence | None:
    """The evidence that decides: the first that refuses or redirects; a question back only when none does."""
    verdicts = [item for item in ordered if item.outcome in {Outcome.REFUSE, Outcome.REDIRECT}]
    questions = [item for item in ordered if item.outcome is Outcome.ASK_CLARIFICATION]
    return next(iter([*verdicts, *questions]), None)


def _rank(item: Evidence, order: DecisionOrder) -> tuple[int, int, float, str, int]:
    law = -1 if item.law is None else order.laws.index(item.law)
    outcome = len(order.outcomes) if item.outcome is Outcome.ALLOW else order.outcomes.index(item.outcome)
    return law, outcome, -item.score, item.field, item.start


def _law_lines(name: str, law: int, found: Sequence[Evidence]) -> list[str]:
    if not found:
        return [f"Law {law} ({name}): nothing found."]
    return [
        f"Law {law} ({name}): {item.rule} found {item.category} in {item.field}[{item.start}:{item.end}],"
        f" read as {item.view}, and says {item.outcome.value}."
        for item in found[:3]
    ]


def _law_name(deciding: Evidence, constitution: Constitution) -> str:
    return (
        "no law" if deciding.law is None else f"Law {deciding.law} ({constitution.laws[deciding.law].name})"
    )
