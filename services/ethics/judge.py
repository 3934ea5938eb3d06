"""What every judge shares: the material it reads, the evidence it gives, and the protocol it keeps.

The order of judges is the order in which they are asked; the decision is made over all their evidence in
`judgement.py`. Later judges (a classifier, a guard model) need nothing but this module.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from services.ethics.views import Reading


class Outcome(enum.Enum):
    """What a judgement, or one judge alone, comes to."""

    ALLOW = "ALLOW"
    ASK_CLARIFICATION = "ASK_CLARIFICATION"
    REDIRECT = "REDIRECT"
    REFUSE = "REFUSE"


class Stage(enum.Enum):
    """Whose words a text holds: what is asked, what a model answers, what a tool or document says."""

    REQUEST = "request"
    OUTPUT = "output"
    TOOL_RESULT = "tool_result"


class Extent(enum.Enum):
    """How much of what was said a text holds, and so who reads it.

    WHOLE is a text as it stands, for every judge. JOIN is turns joined in full, for rules: they find the exact place,
    and count only what crosses a border. WINDOW is a stretch of joined turns or of an output, short enough to be read
    at once: for judges that read, in one pass, and not for rules. NAME is what chooses who answers, and reaches no
    model: for rules, since one word out of a sentence means nothing to who reads sentences.
    """

    WHOLE = "whole"
    JOIN = "join"
    WINDOW = "window"
    NAME = "name"

    @property
    def is_for_readers(self) -> bool:
        """Whether judges that read are asked about such a text, and not rules alone."""
        return self in {Extent.WHOLE, Extent.WINDOW}


@dataclass(frozen=True, slots=True)
class Part:
    """One text of the material; `field` is its path in the action, e.g. `messages[2].content[0].text`.

    `borders` are the places in a join where one turn ends and the next begins; `context` is the end of the request
    that an output answers.
    """

    field: str
    stage: Stage
    reading: Reading
    extent: Extent = Extent.WHOLE
    borders: tuple[int, ...] = ()
    context: str = ""


@dataclass(frozen=True, slots=True)
class Material:
    """Everything that is judged together."""

    parts: tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class Evidence:
    """One thing a judge saw; `start` and `end` count characters of the original text of `field`.

    `law` is None when the evidence is a fault of the judge or of the material and speaks to no law.
    `score` is the judge's confidence, 0 to 1; deterministic rules say 1.
    `is_open` leaves the question to a later judge: it is settled as harmless by a later ALLOW of another judge for the
    same field, view, law and category; until then its outcome counts like any other.
    """

    judge: str
    law: int | None
    category: str
    outcome: Outcome
    rule: str
    field: str
    start: int
    end: int
    view: str
    score: float = 1.0
    is_open: bool = False


@dataclass(frozen=True, slots=True)
class Ratings:
    """How strongly each law, 0 to 4, and each category speaks against some material; 0 to 1, whatever the thresholds."""

    laws: tuple[float, ...]
    categories: Mapping[str, float]


class Rater(Protocol):
    """Rates material by every law, also where it has nothing to object to."""

    async def rate(self, material: Material) -> Ratings:
        """The ratings; it may raise anything."""
        ...


class Judge(Protocol):
    """Reads material and says what it saw; no evidence means nothing to object to.

    A judge may raise anything: the decision then is never ALLOW.
    """

    @property
    def name(self) -> str:
        """Stable lower_case name; it goes into every decision."""
        ...

    async def judge(self, material: Material, so_far: Sequence[Evidence]) -> Sequence[Evidence]:
        """All evidence in this material; `so_far` is what earlier judges saw in it."""
        ...
