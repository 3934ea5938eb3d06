"""Critiques and revisions: what is wrong with a draft by the law that it breaks, and what would have been right."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final, Protocol

from services.trainer.training.constitutional.prompts import Prompt, Turn
from services.trainer.training.constitutional.verdicts import Law


class Fault(Enum):
    """What can be wrong with a draft."""

    VIOLATION = "violation"
    """Ethics does not allow the draft."""
    UNHEEDED = "unheeded"
    """The request breaks a law and the draft does not decline: harmless by luck or by ignorance only."""
    OVER_REFUSAL = "over_refusal"
    """The request is harmless and the draft declines."""
    UNDECIDED = "undecided"
    """Two laws disagree and the draft does not say which comes first."""
    EMPTY = "empty"
    """The draft says nothing."""


@dataclass(frozen=True, slots=True)
class Faulty:
    """A draft that must be revised."""

    prompt: Prompt
    draft: str
    fault: Fault
    law: int | None
    """The law it breaks or leaves out; None for a refusal that was not called for."""
    category: str

    @property
    def must_decline(self) -> bool:
        """Whether only a refusal is right."""
        return self.fault is not Fault.UNDECIDED and self.law is not None

    @property
    def decision(self) -> str:
        """For a conflict, how it is decided, in one sentence."""
        against = (
            f" comes before Law {self.prompt.against}" if self.prompt.against is not None else " decides"
        )
        return f"Law {self.law}{against}."


@dataclass(frozen=True, slots=True)
class Revision:
    """A critique and the answer that came of it; an empty answer says that none was found."""

    critique: str
    answer: str


class Reviser(Protocol):
    """Revises drafts, in order."""

    def revise(self, faulty: Sequence[Faulty], seed: int) -> list[Revision]: ...


Write = Callable[[Sequence[Sequence[Turn]], int], list[str]]
"""Lets the model answer conversations with a seed."""

Fits = Callable[[str], bool]
"""Tells whether an answer is short enough to take a draft's place."""

# Alike but for the law's number, so that a small model can learn it beside what it says already; the smallest ones, whose
# drafts are short, have no room for the number.
_REFUSAL: Final = "I will not help with that, because it could hurt someone."
_LAW: Final = " That breaks Law {law}."
_DECIDE_TURN: Final = "Now write the answer again: say that the law with the lower number decides, name both laws, and say what follows."
_LAW_NAMED: Final = re.compile(r"\blaw\s+([0-4])\b", re.IGNORECASE)
_CRITIQUE_TURN: Final = (
    "Look at your last answer again. Law {law} ({name}) says: {text} "
    "Say in one or two sentences how the answer breaks that law or does not heed it."
)
_REVISE_TURN: Final = (
    "Now write the answer again so that it keeps Law {law}: do not help with what would do harm, say which law stands "
    "against it and why, and offer help that is safe. Write the new answer only."
)
_HELP_TURN: Final = "Your last answer declines, but nothing in the question breaks a law. Answer the question itself. Write the answer only."


def criticise(faulty: Faulty, laws: Mapping[int, Law]) -> str:
    """Returns in one sentence what is wrong, by the law in force."""
    if faulty.law is None:
        return "The answer declines a request that breaks no law; people must get help with what is harmless."
    law = laws[faulty.law]
    if faulty.fault is Fault.UNDECIDED:
        return f"The answer does not say which law comes first. {faulty.decision} The law says: {law.text}"
    if faulty.fault is Fault.VIOLATION:
        return f"The answer breaks Law {law.number} ({law.name}): {law.text}"
    return f"The request breaks Law {law.number} ({law.name}), and the answer does not decline it. The law says: {law.text}"


class TemplateReviser:
    """Takes the dataset's own answer where it has one that names the law, and this module's sentence for the law elsewhere."""

    def __init__(self, laws: Mapping[int, Law], fits: Fits = bool) -> None:
        self._laws = laws
        self._fits = fits

    def revise(self, faulty: Sequence[Faulty], seed: int) -> list[Revision]:  # noqa: ARG002 - templates draw nothing
        """Returns a revision for each."""
        return [Revision(criticise(each, self._laws), self._answer(each)) for each in faulty]

    def _answer(self, faulty: Faulty) -> str:
        reference = faulty.prompt.reference
        if faulty.law is None:
            return reference
        if faulty.fault is Fault.UNDECIDED:
            return reference or faulty.decision
        # A refusal that names no law teaches nothing about it.
        named = {int(number) for number in _LAW_NAMED.findall(reference)}
        return reference if named == {faulty.law} else refusal_by(faulty.law, self._fits)


class ModelReviser:
    """Lets the model that is trained criticise its own draft and write it again."""

    def __init__(self, laws: Mapping[int, Law], write: Write) -> None:
        self._laws = laws
        self._write = write

    def revise(self, faulty: Sequence[Faulty], seed: int) -> list[Revision]:
        """Returns a revision for each; what the model wrote, good or not: ethics judges it again."""
        first = [
            [*each.prompt.turns, _said(each.draft), _asked(self._critique_turn(each))] for each in faulty
        ]
        critiques = self._write(first, seed)
        second = [
            [*turns, _said(critique), _asked(self._revise_turn(each))]
            for turns, critique, each in zip(first, critiques, faulty, strict=True)
        ]
        answers = self._write(second, seed + 1)
        return [
            Revision(critique.strip() or criticise(each, self._laws), answer.strip())
            for critique, answer, each in zip(critiques, answers, faulty, strict=True)
        ]

    def _critique_turn(self, faulty: Faulty) -> str:
        if faulty.law is None or faulty.fault is Fault.UNDECIDED:
            return criticise(faulty, self._laws)
        law = self._laws[faulty.law]
        return _CRITIQUE_TURN.format(law=law.number, name=law.name, text=law.text)

    @staticmethod
    def _revise_turn(faulty: Faulty) -> str:
        if faulty.fault is Fault.UNDECIDED:
            return _DECIDE_TURN
        return _HELP_TURN if faulty.law is None else _REVISE_TURN.format(law=faulty.law)


def refusal_by(law: int, fits: Fits = bool) -> str:
    """Returns this product's own refusal, with the law where that is not too long."""
    named = _REFUSAL + _LAW.format(law=law)
    return named if fits(named) else _REFUSAL


def explanation(faulty: Faulty, revision: Revision) -> list[Turn]:
    """Returns a conversation that shows a wrong answer and says what is wrong with it."""
    asked = (
        f"Somebody asked: {_short(faulty.prompt.request)}\nAn assistant answered: {_short(faulty.draft)}\n"
        "Is that answer right?"
    )
    return [_asked(asked), _said(f"No. {revision.critique} A right answer is: {revision.answer}")]


def _short(text: str) -> str:
    limit = 400
    plain = " ".join(text.split())
    return plain if len(plain) <= limit else plain[: limit - 3] + "..."


def _asked(text: str) -> Turn:
    return {"role": "user", "content": text}


def _said(text: str) -> Turn:
    return {"role": "assistant", "content": text}
