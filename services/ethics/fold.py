"""Fold a text to the plain letters a reader sees, and find the way back to the original characters.

Folding is per character and therefore linear and free of context: NFKD (UAX #15), combining marks and
invisible characters dropped, look-alikes mapped to ASCII (UTS #39 data from the constitution), controls removed.
Whole-string NFKC would reorder combining marks in quadratic time; per character it cannot.
"""

from __future__ import annotations

import re
import unicodedata
from array import array
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

# A single character may decompose to 18 others (U+FDFA); none that spells Latin letters needs more than these.
MAX_FOLD_CHARS: Final = 4
# The per-character cache is bounded, so that a text with every Unicode character costs no lasting memory.
MAX_CACHED_CHARS: Final = 65_536
REPLACEMENT: Final = "\N{REPLACEMENT CHARACTER}"
# What surrogates and private and unassigned characters come to: a mark that parts words like any other.
MEANINGLESS: Final = "\N{DOUBLE VERTICAL LINE}"
# Fillers that render as nothing although Unicode does not class them as format characters.
BLANKS: Final = frozenset("\u115f\u1160\u3164\uffa0\u2800\u034f\u180e")
SPACES: Final = frozenset("\t\n\r")
_CONTROL: Final = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")


@dataclass(frozen=True, slots=True)
class Folded:
    """A folded text; `starts[i]` is the original character that gave character i, or None when they coincide."""

    text: str
    starts: array[int] | None

    def locate(self, start: int, end: int) -> tuple[int, int]:
        """The original span that gave the folded span [start, end)."""
        if self.starts is None or start >= end:
            return start, end
        return self.starts[start], self.starts[end - 1] + 1


class Folder:
    """Folds texts; letter case is kept (base64 needs it), except for look-alikes, which come out in lower case."""

    def __init__(self, look_alikes: Mapping[str, str]) -> None:
        self._look_alikes = dict(look_alikes)
        self._cache: dict[str, str] = {}

    def fold(self, text: str) -> Folded:
        """The folded text; plain ASCII comes back as it is."""
        if text.isascii() and not _CONTROL.search(text):
            return Folded(text, None)
        pieces = [self._fold_char(char) for char in text]
        starts = array("I")
        for index, piece in enumerate(pieces):
            if len(piece) == 1:
                starts.append(index)
            elif piece:
                starts.extend([index] * len(piece))
        return Folded("".join(pieces), starts)

    def _fold_char(self, char: str) -> str:
        folded = self._cache.get(char)
        if folded is None:
            folded = self._compute(char)
            if len(self._cache) < MAX_CACHED_CHARS:
                self._cache[char] = folded
        return folded

    def _compute(self, char: str) -> str:
        if char in SPACES or " " <= char <= "~":
            return char
        if char in self._look_alikes:
            return self._look_alikes[char]
        kept = [self._visible(part) for part in unicodedata.normalize("NFKD", char)]
        folded = "".join(kept)
        return folded if len(folded) <= MAX_FOLD_CHARS else char

    def _visible(self, char: str) -> str:
        """What is left of one decomposed character: nothing, a space, an ASCII letter, or its casefold."""
        if char.isascii() and char.isprintable():
            return char
        if char in self._look_alikes:
            return self._look_alikes[char]
        category = unicodedata.category(char)
        if char in BLANKS or category in {"Mn", "Me", "Cf", "Cc"}:
            return ""
        if category in {"Zs", "Zl", "Zp"}:
            return " "
        if category == "Pd":
            return "-"
        # Tokenizers leave out what has no meaning, which would run the words on both sides of it together.
        is_meaningless = char == REPLACEMENT or category in {"Cn", "Co", "Cs"}
        return MEANINGLESS if is_meaningless else _PUNCTUATION.get(char, char.casefold())


_PUNCTUATION: Final = dict(
    zip("\u2018\u2019\u201b\u02bc\u201c\u201d\u2044\u2215\u2022\u00b7", "''''\"\"//..", strict=True)
)
