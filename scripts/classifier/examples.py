"""What the classifier learns from: one example, and the labels it may carry."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field, replace
from typing import Final

from services.ethics.judge import Stage

# Counted nowhere in a loss: this label says nothing about the example.
UNKNOWN: Final = -1


class Intent(enum.IntEnum):
    """What the writer is after."""

    BENIGN = 0
    HARMFUL = 1
    AMBIGUOUS = 2


@dataclass(frozen=True, slots=True)
class Example:
    """One text with its labels; 1 yes, 0 no, UNKNOWN where nobody said.

    `unsafe` is about the content that is asked for or given; `jailbreak` about a frame that tries to switch rules
    off, whatever is asked within it; `injection` about instructions to the assistant in text it should only read. `draws` is how often it is
    expected in one epoch.
    """

    text: str
    unsafe: int
    source: str
    group: str
    stage: Stage = Stage.REQUEST
    context: str = ""
    law: int = UNKNOWN
    category: str = ""
    intent: int = UNKNOWN
    jailbreak: int = 0
    injection: int = 0
    draws: float = 1.0
    marks: frozenset[str] = field(default_factory=frozenset)

    def reworded(self, text: str, mark: str) -> Example:
        """The same example in other words; `mark` says how they came about."""
        return replace(self, text=text, marks=self.marks | {mark})
