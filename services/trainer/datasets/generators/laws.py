"""Refusals by law: harmful requests, answered with the law and the reason, and wrong answers explained."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from typing import Final

from services.trainer.datasets.draw import Draw, capitalised, opened, templates
from services.trainer.datasets.rows import Row, conversation

# One row in so many shows a wrong answer and explains it; more would teach to talk about requests instead of answering.
_CRITIQUE_SHARE: Final = 0.12
_DRESS_SHARE: Final = 0.15
_ALTERNATIVE_SHARE: Final = 0.85
_TURNED: Final = {"my": "your", "me": "you", "myself": "yourself", "you": "me", "your": "my", "I": "you"}
_WORD: Final = re.compile(r"\b(my|me|myself|you|your|I)\b")


@dataclass(frozen=True, slots=True)
class Act:
    """Something that a law forbids to help with, as it follows "how do I"."""

    text: str
    law: int
    law_name: str
    category: str
    reason: str
    alternative: str

    def slots(self) -> dict[str, str]:
        """Returns the words that templates ask for."""
        return {
            "act": self.text,
            "echo": echo(self.text),
            "law": str(self.law),
            "name": self.law_name,
            "reason": self.reason,
            "alternative": self.alternative,
        }


def echo(act: str) -> str:
    """Returns the act as the one who is asked says it: "my boss" becomes "your boss"."""
    return _WORD.sub(lambda match: _TURNED[match[0]], act)


@cache
def acts() -> tuple[Act, ...]:
    """Returns every act of the templates, by law."""
    return tuple(
        Act(text, law["number"], law["name"], category, entry["reason"], entry["alternative"])
        for law in templates("laws")["laws"]
        for category, entry in law["categories"].items()
        for text in entry["acts"]
    )


@cache
def acts_of(law: int) -> tuple[Act, ...]:
    """Returns the acts that this law forbids."""
    return tuple(act for act in acts() if act.law == law)


def request_for(draw: Draw, act: Act) -> str:
    """Returns one way to ask for the act."""
    words = templates("laws")
    slots = {**act.slots(), "end": draw.choice(words["ends"])}
    asked = draw.text(draw.choice(words["wordings"]), slots)
    if asked[-1] in ".?!":
        asked += draw.choice(words["closings"])
    return capitalised(opened(draw, draw.choice(words["openings"]), asked))


def refusal_of(draw: Draw, act: Act) -> str:
    """Returns a refusal that names the law, gives the reason and mostly offers a safe way on."""
    words = templates("laws")
    slots = act.slots()
    parts = [
        draw.text(draw.choice(words["declines"]), slots),
        draw.text(draw.choice(words["names_law"]), slots),
    ]
    if draw.chance(_DRESS_SHARE):
        parts.append(draw.choice(words["dresses"]))
    if draw.chance(_ALTERNATIVE_SHARE):
        parts.append(act.alternative)
    return " ".join(parts)


def law_rows(law: int, draw: Draw) -> Row:
    """Draws one row of this law."""
    act = draw.choice(acts_of(law))
    facts = {"law": str(act.law), "harm": act.category}
    request = request_for(draw, act)
    if not draw.chance(_CRITIQUE_SHARE):
        return conversation(f"law_{law}", request, refusal_of(draw, act), facts={**facts, "kind": "refusal"})
    words = templates("laws")["critiques"]
    slots = {**act.slots(), "request": request, "bad": draw.choice(words["bad"])}
    asked = draw.text(draw.choice(words["asks"]), slots)
    explained = draw.text(draw.choice(words["answers"]), slots)
    return conversation(f"law_{law}", asked, explained, facts={**facts, "kind": "critique"})
