"""The surface of a message: openings, politeness, letter case, punctuation and typing errors."""

from __future__ import annotations

import string
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from random import Random

    from scripts.embedded.intent import Example

_OPENINGS: Final = (
    "hey, ", "hi, ", "hello, ", "please ", "please, ", "so, ", "so ", "ok, ", "ok ", "well, ", "um, ", "hmm, ",
    "kala, ", "hello! ", "hi! ", "quick question: ", "question: ", "i was wondering, ", "just curious, ",
    "excuse me, ", "sorry, ", "and ", "now ", "then ", "hey kala, ", "dear kala, ", "oh, ", "also, ", "next: ",
)  # fmt: skip
_CLOSINGS: Final = (
    " please", ", please", " thanks", ", thanks", ", thank you", " now", ", kala", " kala", " ok", " again",
    " quickly", " in short", ", can you", ", you know", " today", " for me",
)  # fmt: skip
_QUESTION_WORDS: Final = frozenset(
    [
        "what",
        "what's",
        "whats",
        "who",
        "who's",
        "whose",
        "which",
        "where",
        "when",
        "why",
        "how",
        "how's",
        "is",
        "are",
        "am",
        "do",
        "does",
        "did",
        "can",
        "could",
        "would",
        "will",
        "should",
        "may",
        "have",
        "has",
        "any",
        "anything",
        "if",
        "was",
        "were",
        "parlez-vous",
        "sprechen",
        "habla",
    ]
)
# Intents whose prompts are whole phrases of talk: an opening before them would sound wrong.
_BARE_PREFIXES: Final = (
    "greeting",
    "farewell",
    "thanks",
    "okay",
    "echo",
    "name.",
    "praise",
    "how_are_you",
    "test",
)
_NUMERIC: Final = frozenset(string.digits)


def dress(example: Example, rng: Random) -> str:
    """Returns the prompt as one of many people would type it; verbatim prompts keep their letters."""
    text = example.prompt
    if not example.intent.startswith(_BARE_PREFIXES):
        text = _frame(text, rng)
    if "'" in text and rng.random() < 0.3:
        text = text.replace("'", "")
    text = _letter_case(text, example, rng)
    if not example.verbatim and rng.random() < 0.03:
        text = _mistype(text, rng)
    return text if example.intent.startswith("echo") else _punctuate(text, rng)


def _frame(text: str, rng: Random) -> str:
    if rng.random() < 0.18:
        text = rng.choice(_OPENINGS) + text
    if rng.random() < 0.12:
        text += rng.choice(_CLOSINGS)
    return text


def _letter_case(text: str, example: Example, rng: Random) -> str:
    style = rng.random()
    if style < 0.5:
        return text[:1].upper() + text[1:].replace(" i ", " I ").replace(" i'", " I'")
    if example.verbatim or style < 0.85:
        return text
    return text.lower() if style < 0.995 else text.upper()


def _mistype(text: str, rng: Random) -> str:
    places = [i for i in range(1, len(text) - 1) if text[i - 1 : i + 2].isalpha()]
    if not places or not _NUMERIC.isdisjoint(text):
        return text
    i = rng.choice(places)
    wrong = rng.choice((text[i + 1] + text[i], text[i] * 2 + text[i + 1], text[i + 1]))
    return text[:i] + wrong + text[i + 2 :]


def _punctuate(text: str, rng: Random) -> str:
    if text[-1:] in "?.!=:":
        return text
    words = text.lower().replace(",", " ").replace(":", " ").split()
    is_question = any(word in _QUESTION_WORDS for word in words[:3])
    if is_question:
        return text + ("?" if rng.random() < 0.7 else "")
    chance = rng.random()
    return text + ("." if chance < 0.25 else "!" if chance < 0.3 else "?" if chance < 0.38 else "")
