"""Which words a text shows, and where the words are in letters that were run together. Pure.

The vocabulary is the tokenizer's: whole English words, the commonest first.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

# Shorter words come about by chance in any text that is read backwards or shifted.
MIN_WORD: Final = 4
# Letters run together are parted only in runs of this length; the longest common words are shorter.
MIN_RUN: Final = 12
# All runs of one view together: parting takes time for every letter and possible word.
MAX_PARTED_CHARS: Final = 16_384
MAX_WORD: Final = 18
# Letters that no word explains cost this much each: more than any word of the vocabulary costs.
UNKNOWN_COST: Final = 14.0
# The vocabulary's rarer words of three letters are names and abbreviations, which stand in any row of letters.
SHORT: Final = 3
MAX_SHORT_RANK: Final = 8_000
# Fewer letters than this that no word explains belong to a neighbour, if that is so rare a word: "g" and "lock".
MIN_STRANGE: Final = 4
RARE_COST: Final = 8.0
# A run whose letters are less than this in words is no run of words: an identifier, a name, another language.
MIN_EXPLAINED: Final = 0.65
_WORD: Final = re.compile("[a-z]+")
_RUN: Final = re.compile(f"[a-z]{{{MIN_RUN},}}")
# Words of one letter that English has.
_LETTERS: Final = frozenset({"a", "i"})
# Letters that are put between words instead of blanks come back as often as there are words, and hardly vary in length.
FILLING_LENGTHS: Final = (1, 2, 3, 4)
MIN_FILLINGS: Final = 4
TRIED_FILLINGS: Final = 4
# So much of what stands between them must be words then.
MIN_FILLED: Final = 0.7
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
            if len(word) > SHORT
            or (len(word) == SHORT and rank < MAX_SHORT_RANK)
            or word in _PAIRS | _LETTERS
        }

    def __contains__(self, word: str) -> bool:
        return word in self._words

    def words_of(self, text: str) -> frozenset[str]:
        """The different words of four letters and more in a lower-case text."""
        return self._words.intersection(_WORD.findall(text))

    def cost(self, word: str) -> float:
        """How rare a word is; infinite for what is none."""
        return self._costs.get(word, math.inf)

    def share(self, text: str) -> float:
        """Which share of a lower-case text's characters, blanks aside, stands in words of any length; 0 to 1."""
        visible = len("".join(text.split()))
        known = sum(len(word) for word in _WORD.findall(text) if word in self._costs)
        return known / visible if visible else 0.0

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
        filled = self._between_fillings(run)
        if filled:
            return filled
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
        return [cut for cut in _borders(run, reversed(spans), costs) if cut < len(run)]

    def _between_fillings(self, run: str) -> list[int]:
        """The cuts about letters that stand where blanks belong, as in "howxqdoxqi"; none where there are none."""
        for length in FILLING_LENGTHS:
            counts = Counter(run[at : at + length] for at in range(len(run) - length + 1))
            for filling, count in counts.most_common(TRIED_FILLINGS):
                pieces = run.split(filling)
                letters = sum(map(len, pieces))
                known = sum(len(piece) for piece in pieces if piece in self._costs)
                if count >= MIN_FILLINGS and known >= MIN_FILLED * letters > 0:
                    cuts = (at for match in re.finditer(filling, run) for at in match.span())
                    return sorted({cut for cut in cuts if 0 < cut < len(run)})
        return []


def _borders(run: str, spans: Iterable[tuple[int, int]], costs: Mapping[str, float]) -> Iterator[int]:
    """Where words end; letters that no word explains stay together, also with an "a" or "i" among them."""
    pieces: list[tuple[int, int, float]] = []
    for start, end in spans:
        cost = costs.get(run[start:end])
        was_strange = bool(pieces) and pieces[-1][2] == math.inf
        if was_strange and (cost is None or end - start == 1):
            pieces[-1] = (pieces[-1][0], end, math.inf)
        else:
            pieces.append((start, end, math.inf if cost is None else cost))
    borders = {start for start, _, _ in pieces}
    for index, (start, end, cost) in enumerate(pieces):
        if cost == math.inf and end - start < MIN_STRANGE:
            before = pieces[index - 1][2] if index else 0.0
            after = pieces[index + 1][2] if index + 1 < len(pieces) else 0.0
            if max(before, after) >= RARE_COST:
                borders.discard(end if after >= before else start)
    yield from sorted(borders - {0})
