"""Finds rows that share a long run of words, or a whole short text, with what models are evaluated on."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from services.trainer.datasets.rows import Row

DEFAULT_WORDS: Final = 13
MIN_WORDS: Final = 5
MAX_WORDS: Final = 50
# Texts of fewer words are everyone's ("yes", "thank you very much") and prove nothing.
_SHORTEST_WORDS: Final = 5
_WORD: Final = re.compile(r"\w+")
_DIGEST_BYTES: Final = 8


class Contamination:
    """Knows the evaluation texts as digests of their runs of `words` words; a shorter text counts only as a whole."""

    def __init__(self, words: int = DEFAULT_WORDS) -> None:
        self._words = words
        self._runs: set[bytes] = set()
        self._short: set[bytes] = set()

    def add(self, text: str) -> None:
        """Learns one evaluation text."""
        words = words_of(text)
        if len(words) >= self._words:
            self._runs.update(self._digests(words))
        elif len(words) >= _SHORTEST_WORDS:
            self._short.add(_digest(words))

    def finds(self, row: Row) -> bool:
        """Says whether any text of the row holds such a run, or is such a short text."""
        return any(self._finds_text(text) for text in row.texts())

    def _finds_text(self, text: str) -> bool:
        words = words_of(text)
        if len(words) < self._words:
            return bool(self._short) and len(words) >= _SHORTEST_WORDS and _digest(words) in self._short
        return bool(self._runs) and any(digest in self._runs for digest in self._digests(words))

    def _digests(self, words: Sequence[str]) -> Iterator[bytes]:
        for start in range(len(words) - self._words + 1):
            yield _digest(words[start : start + self._words])


def words_of(text: str) -> list[str]:
    """Returns the words in lower case, without punctuation: layout and case hide no copy."""
    return _WORD.findall(text.casefold())


def strings_in(value: object) -> Iterator[str]:
    """Yields every string in a value made of JSON, keys left out."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from strings_in(part)
    elif isinstance(value, list):
        for part in value:
            yield from strings_in(part)


def _digest(words: Iterable[str]) -> bytes:
    return hashlib.blake2b(
        " ".join(words).encode("utf-8", "surrogatepass"), digest_size=_DIGEST_BYTES
    ).digest()
