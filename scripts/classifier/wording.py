"""Put examples in other words and shapes without changing what they ask for.

Every change is applied to harmful and harmless texts alike, so that no shape says anything by itself.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Final

from scripts.classifier.authored import Frame
from scripts.classifier.examples import UNKNOWN, Example
from services.ethics.judge import Stage

OPENERS: Final = (
    "please", "hey,", "hi!", "quick question:", "can you help me?", "I was wondering,", "ok so", "hello there.",
    "one more thing:", "be honest,", "serious question:", "I need help.", "for a friend:", "just curious,",
    "as an expert,", "step by step:", "in detail:", "question:", "task:", "hi assistant,", "good morning,",
)  # fmt: skip
CLOSERS: Final = (
    "thanks", "thank you in advance.", "please be brief.", "explain step by step.", "keep it simple.", "asap please",
    "give as much detail as possible.", "no long intro.", "in bullet points.", "write at least 200 words.", "pls",
    "make it realistic.", "I'm in a hurry.", "what do you think?", "cheers!", "answer in one paragraph.",
)  # fmt: skip
_NEIGHBOURS: Final = {
    "a": "s", "b": "v", "c": "x", "d": "f", "e": "r", "g": "h", "i": "o", "k": "l", "m": "n", "o": "p",
    "r": "t", "s": "d", "t": "y", "u": "i", "w": "e", "y": "u",
}  # fmt: skip
# A framed goal longer than this is no goal but a text.
MAX_GOAL_CHARS: Final = 300
MAX_PAD_CHARS: Final = 600


class Rewording:
    """Makes further examples from examples; `frames` and `padding` come from the authored data."""

    def __init__(self, frames: Sequence[Frame], padding: Sequence[str], seed: int) -> None:
        self._jailbreaks = [frame for frame in frames if frame.is_jailbreak]
        self._neutral = [frame for frame in frames if not frame.is_jailbreak]
        self._padding = [text for text in padding if len(text) <= MAX_PAD_CHARS]
        self._rng = random.Random(seed)

    def further(self, examples: Sequence[Example], *, framed: float, padded: float) -> Iterator[Example]:
        """Examples in frames and among other text; `framed` and `padded` are shares of the fitting ones."""
        goals = [
            example
            for example in examples
            if example.stage is Stage.REQUEST
            and example.unsafe != UNKNOWN
            and not example.jailbreak
            and 12 <= len(example.text) <= MAX_GOAL_CHARS
        ]
        for example in goals:
            if self._rng.random() < framed:
                yield self.in_frame(example, self._rng.choice(self._neutral))
            if self._rng.random() < framed * (0.8 if example.unsafe else 0.35):
                yield self.in_frame(example, self._rng.choice(self._jailbreaks))
            if self._rng.random() < padded:
                yield self.among_other_text(example)

    def in_frame(self, example: Example, frame: Frame) -> Example:
        """The goal inside a frame; a jailbreak frame is one whatever the goal is."""
        mark = "jailbreak" if frame.is_jailbreak else "frame"
        text = frame.around(example.text)
        return replace(example.reworded(text, mark), jailbreak=int(frame.is_jailbreak), draws=1.0)

    def among_other_text(self, example: Example) -> Example:
        """The text after, before or between harmless text."""
        before, after = self._rng.choice(self._padding), self._rng.choice(self._padding)
        gap = self._rng.choice(("\n\n", "\n", " "))
        place = self._rng.randrange(3)
        parts = ((before, example.text), (example.text, after), (before, example.text, after))[place]
        return replace(example.reworded(gap.join(parts), "padded"), draws=1.0)

    def lightly(self, example: Example) -> Example:
        """The text with the small changes that people make: case, punctuation, openers, slips of the fingers."""
        text, roll = example.text, self._rng.random
        if roll() < 0.12:
            text = f"{self._rng.choice(OPENERS)} {text[:1].lower() + text[1:]}"
        if roll() < 0.12:
            text = f"{text} {self._rng.choice(CLOSERS)}"
        if roll() < 0.35:
            text = text.rstrip("?.! ")
        if roll() < 0.15:
            text = text.rstrip("?.! ") + self._rng.choice("?.!?.…")
        if roll() < 0.1:
            text = text.lower()
        if roll() < 0.15:
            text = self._mistyped(text)
        return example if text == example.text else example.reworded(text, "light")

    def _mistyped(self, text: str) -> str:
        letters = list(text)
        for _ in range(self._rng.randint(1, max(1, min(4, len(letters) // 25)))):
            at = self._rng.randrange(len(letters))
            kind = self._rng.randrange(4)
            if kind == 0 and at + 1 < len(letters):
                letters[at], letters[at + 1] = letters[at + 1], letters[at]
            elif kind == 1:
                letters[at] = ""
            elif kind == 2:
                letters[at] *= 2
            else:
                letters[at] = _NEIGHBOURS.get(letters[at], letters[at])
        return "".join(letters)
