"""Which words a text shows, and where the words are in letters that were run together. Pure.

The vocabulary is the tokenizer's: whole English words, the commonest first.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Final

# Shorter words come about by chance in any text that is read backwards or shifted.
MIN_WORD: Final = 4
# Letters run together are parted only in runs of this length; the longest common words are shorter.
MIN_RUN: Final = 14
# All runs of one view together: parting takes time for every letter and possible word.
MAX_PARTED_CHARS: Final = 16_384
MAX_WORD: Final = 18
# Letters that no word explains cost this much each: more than any word of the vocabulary costs.
UNKNOWN_COST: Final = 14.0
# A run whose letters are less than this in words is no run of words: an identifier, a name, another language.
MIN_EXPLAINED: Final = 0.85
_WORD: Final = re.compile("[a-z]+")
_RUN: Final = re.compile(f"[a-z]{{{MIN_RUN},}}")
# Words of one letter that English has.
_LETTERS: Final = frozenset({"a", "i"})
# Two-letter words that can stand in a request; the vocabulary holds every abbreviation beside them.
_PAIRS: Final = frozenset(
    [
        "am",
        "an",
        "as",
        "at",
        "be",
        "by",
        "do",
        "go",
        "he",
        "hi",
        "if",
        "in",
        "is",
        "it",
        "me",
        "my",
        "no",
        "of",
        "oh",
        "ok",
        "on",
        "or",
        "so",
        "to",
        "up",
        "us",
        "we",
    ]
)


class Vocabulary:
    """The whole words of a tokenizer's vocabulary."""

    def __init__(self, vocabulary: Mapping[str, int]) -> None:
        words = [word for word in vocabulary if _WORD.fullmatch(word)]
        self._words = frozenset(word for word in words if len(word) >= MIN_WORD)
        ranked = sorted(words, key=vocabulary.__getitem__)
        self._costs = {
            word: math.log(rank + 10)
            for rank, word in enumerate(ranked)
            if len(word) > 2 or word in _PAIRS or word in _LETTERS  # noqa: PLR2004 - see _PAIRS
        }

    def __contains__(self, word: str) -> bool:
        return word in self._words

    def words_of(self, text: str) -> frozenset[str]:
        """The different words of four letters and more in a lower-case text."""
        return self._words.intersection(_WORD.findall(text))

    def cuts(self, text: str) -> tuple[list[int], bool]:
        """Where blanks belong in a lower-case text, in order, and whether all of it was looked at.

        There are none where a run of letters is no run of words.
        """
        found: list[int] = []
        left = MAX_PARTED_CHARS
        for match in _RUN.finditer(text):
            run = match.group()
            if run in self._costs:
                continue
            left -= len(run)
            if left < 0:
                return found, False
            found += (match.start() + cut for cut in self._parted(run))
        return found, True

    def _parted(self, run: str) -> list[int]:
        """The cuts of the likeliest way to read a run as words."""
        best = [0.0] + [math.inf] * len(run)
        came = [0] * (len(run) + 1)
        costs = self._costs
        for end in range(1, len(run) + 1):
            best[end], came[end] = best[end - 1] + UNKNOWN_COST, end - 1
            for start in range(max(0, end - MAX_WORD), end):
                cost = costs.get(run[start:end])
                if cost is not None and best[start] + cost < best[end]:
                    best[end], came[end] = best[start] + cost, start
        spans = []
        end = len(run)
        while end:
            spans.append((came[end], end))
            end = came[end]
        explained = sum(end - start for start, end in spans if run[start:end] in costs)
        if explained < MIN_EXPLAINED * len(run):
            return []
        return [start for start, _ in reversed(spans) if start]
