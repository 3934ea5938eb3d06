"""An intent: what a user may want, in many wordings, with one right answer per case."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from scripts.embedded.wording import Split, digest_number, expand, split_families

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from random import Random

# One case in this many is never trained on, for intents that can be computed.
HELD_OUT_CASES: Final = 20
# One (wording, case) pair in this many is never trained on, for intents that can only be remembered.
HELD_OUT_PAIRS: Final = 40


@dataclass(frozen=True, slots=True)
class Case:
    """One set of slot values, the answer that is trained and others that are also right."""

    slots: Mapping[str, str]
    answer: str
    accepted: tuple[str, ...] = ()
    # What later turns may refer to: a topic's name, or the mark of a capital question.
    subject: str = ""
    # What makes the case one and the same in other writings, as `1 + 2 = 3.` does for "one plus two".
    identity: str = ""

    @property
    def key(self) -> str:
        """The identity of the case for the splits."""
        return self.identity or "|".join(f"{name}={value}" for name, value in sorted(self.slots.items()))


@dataclass(frozen=True, slots=True)
class Example:
    """One user message with the answers that count as right."""

    intent: str
    prompt: str
    answer: str
    accepted: tuple[str, ...]
    subject: str
    verbatim: bool


@dataclass(frozen=True, slots=True)
class Intent:
    """Wordings times cases, with a sampling weight; `computed` intents hold whole cases out."""

    name: str
    families: tuple[str, ...]
    cases: Sequence[Case]
    weight: float
    computed: bool = False
    # Prompts whose letters the answer copies: their case and punctuation must stay as they are.
    verbatim: bool = False
    by_split: dict[Split, tuple[str, ...]] = field(init=False)

    def __post_init__(self) -> None:
        splits = split_families(self.families)
        splits[Split.COMBINATION] = splits[Split.TRAIN]
        object.__setattr__(self, "by_split", splits)

    def draw(self, split: Split, rng: Random) -> Example | None:
        """Returns a random example of the split, or None when the intent has none there."""
        families = self.by_split[split]
        if not families:
            return None
        for _ in range(400):
            family, case = rng.choice(families), rng.choice(self.cases)
            if self._belongs(family, case, split):
                return self._example(family, case, rng)
        return None

    def _belongs(self, family: str, case: Case, split: Split) -> bool:
        if split in {Split.DEV, Split.TEST}:
            return True
        if len(self.cases) == 1:
            return split is Split.TRAIN
        if self.computed:
            held = digest_number("case", self.name, case.key) % HELD_OUT_CASES == 0
        else:
            held = digest_number("pair", self.name, family, case.key) % HELD_OUT_PAIRS == 0
        return held is (split is Split.COMBINATION)

    def _example(self, family: str, case: Case, rng: Random) -> Example:
        prompt = expand(family, rng)
        for name, value in case.slots.items():
            prompt = prompt.replace("{" + name + "}", value)
        return Example(self.name, prompt, case.answer, case.accepted, case.subject, self.verbatim)
