"""The questions of the provider benchmark: fixed, harmless, of three lengths, and none of them personal."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Prompt:
    """One question and the longest answer to it, in tokens."""

    name: str
    text: str
    max_tokens: int


_REPORT: Final = (
    "The town library moved its catalogue to a new computer in March. For two days nobody could borrow a book, because "
    "the old bar codes were not read. The librarian printed a list by hand, and volunteers compared it with the shelves. "
    "On the third day the reader was adjusted, and all but forty books were found where they belonged. "
)

PROMPTS: Final = (
    Prompt("greeting", "Say hello in one short sentence.", 32),
    Prompt("fact", "What is the capital of France?", 32),
    Prompt("explain", "Explain in three sentences what a checksum is.", 128),
    Prompt("list", "List five things to check before a bicycle tour.", 128),
    Prompt("code", "Write a Python function that returns the larger of two numbers.", 128),
    Prompt("summary", f"Summarise this report in two sentences: {_REPORT * 4}", 128),
)

QUICK: Final = ("greeting", "explain")
"""Enough to see that every provider answers, and roughly how fast."""


def prompts(*, quick: bool) -> tuple[Prompt, ...]:
    """Give the questions of a run."""
    return tuple(prompt for prompt in PROMPTS if not quick or prompt.name in QUICK)
