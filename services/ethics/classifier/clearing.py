"""Clear what a view leaves behind of a disguise, for a classifier that reads words: marks, digits, word order. Pure.

The hard blocks read the views as they are.
"""

from __future__ import annotations

import bisect
import itertools
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from string import ascii_lowercase
from typing import Final

from services.ethics.classifier.words import MAX_WORD, Vocabulary
from services.ethics.views import View

# So many letters of a word may be an i or an l; what has more is left as it is.
MAX_EITHER: Final = 6
# Misspelt words are mended from this length on, and at most so many of them in a view.
MIN_MISSPELT: Final = 4
MAX_MISSPELT: Final = 400
MENDED: Final = "mended"
PARTED: Final = "parted"
# Nearly any short run of letters is a letter away from a word: only what is English in good part is mended, and only
# when so much of it is words afterwards.
MIN_MENDABLE: Final = 0.3
MIN_MENDED: Final = 0.7
# One order of words is believed when it has this many times the other's pairs.
MIN_ORDER_RATIO: Final = 3
# Marks between words count as blanks where there are at least this many, and fewer blanks than marks.
MIN_MARKS: Final = 2
_BETWEEN: Final = re.compile(r"(?<=[a-z0-9])[_*|~=+/\\.,;:-](?=[a-z0-9])")
# Arrows, hearts, marks of other scripts and characters without a meaning: the categories of Unicode that are neither
# letter, number nor blank. A text in which they are as many as half its words wears them as a dress.
_SHAPES: Final = frozenset("SPC")
MIN_SHAPES_OF_WORDS: Final = 0.5
# What stands between two letters without a blank, and is no Latin letter, parts them as a mark does.
_STRANGE: Final = re.compile(r"(?<=[a-z0-9])[^\x00-\x7f\s]{1,2}(?=[a-z0-9])")
# Numbers that touch words. As many as half the words are a dress if nearly all is words without them.
_RUN: Final = re.compile(r"\S+")
_TOUCHING: Final = re.compile(r"[0-9]+(?=[a-z])|(?<=[a-z])[0-9]+")
# Letters that are no word and come back between words that were run together.
MAX_FILLING: Final = 4
MIN_FILLINGS: Final = 3
# Marks that stood between letters and are left alone when the letters are joined: "how. .do. .i".
_STRAY: Final = re.compile(
    r"(?<![^\s])[^\sa-z0-9]+(?=[a-z0-9])|(?<=[a-z0-9])[^\sa-z0-9]+(?![^\s])|(?<![^\s])[^\sa-z0-9](?![^\s])"
)
_LAST_MARK: Final = re.compile(r"([.?!])\W*$")
_ENDS: Final = (".", "?", "!")
_WORD: Final = re.compile("[a-z]+")
# What stands before a noun, and what stands before that.
_ARTICLES: Final = frozenset({"the", "a", "an", "my", "your", "his", "her", "their", "our", "this"})
_PREPOSITIONS: Final = frozenset(
    {"of", "in", "to", "on", "for", "with", "from", "at", "by", "about", "into", "is", "are", "and", "as"}
)
_PAIRS: Final = frozenset(
    {
        ("how", "do"), ("how", "to"), ("how", "can"), ("what", "is"), ("what", "are"), ("do", "i"), ("can", "i"),
        ("can", "you"), ("going", "to"), ("want", "to"), ("need", "to"), ("have", "to"), ("tell", "me"), ("give", "me"),
        ("help", "me"), ("show", "me"), ("you", "are"), ("there", "is"), ("to", "be"), ("such", "as"), ("i", "want"),
        ("i", "am"), ("i", "have"), ("it", "is"), ("should", "be"), ("would", "be"), ("does", "the"), ("that", "the"),
        ("guide", "me"), ("to", "make"), ("to", "get"), ("to", "create"), ("i", "make"), ("i", "get"), ("ways", "to"),
        ("way", "to"), ("i", "can"), ("should", "i"), ("like", "a"), ("write", "a"), ("create", "a"), ("make", "a"),
    }
)  # fmt: skip


def tidied(view: View, ends_with: str, vocabulary: Vocabulary) -> str:
    """The text of a view for the classifier: marks that only parted letters or words are gone or blanks.

    `ends_with` is the mark at the end of the plain text, which tells a question from a statement.
    """
    kind = view.name.rpartition("/")[2]
    text = view.text
    if kind == PARTED:
        text = _without_filling(text, vocabulary)
    if kind in {"spelled", "spelled_words", "unmarked"} or view.name.endswith("squeezed/parted"):
        return _STRAY.sub("", text).rstrip(" .?!") + ends_with
    text = _without_numbers(_without_shapes(text), vocabulary)
    if _part_words(_BETWEEN, text):
        text = _BETWEEN.sub(" ", text)
    if _part_words(_STRANGE, text):
        text = _if_words(_STRANGE.sub(_blank_unless_latin, text), text, vocabulary)
    return text


def _part_words(marks: re.Pattern[str], text: str) -> bool:
    """Whether there are more of these marks than blanks."""
    count = len(marks.findall(text))
    return count >= MIN_MARKS and count > text.strip().count(" ")


def _if_words(changed: str, text: str, vocabulary: Vocabulary) -> str:
    """The changed text where nearly all of it is words; else the text as it is, which is perhaps another language."""
    return changed if vocabulary.share(changed) >= MIN_MENDED else text


def _without_shapes(text: str) -> str:
    """A text that wears shapes as a dress with blanks in their places; any other as it is."""
    if text.isascii():
        return text
    counts = Counter(char for char in text if not char.isascii() and unicodedata.category(char)[0] in _SHAPES)
    shapes, words = counts.total(), len(_WORD.findall(text))
    if not words or shapes < MIN_MARKS or shapes < MIN_SHAPES_OF_WORDS * words:
        return text
    return text.translate(dict.fromkeys(map(ord, counts), " "))


def _without_numbers(text: str, vocabulary: Vocabulary) -> str:
    """Words that numbers part, as in "how2do2i", without the numbers; any other text as it is."""

    def parted(match: re.Match[str]) -> str:
        return _parted_by_numbers(match.group(), vocabulary)

    return _RUN.sub(parted, _parted_by_numbers(text, vocabulary))


def _parted_by_numbers(text: str, vocabulary: Vocabulary) -> str:
    numbers = len(_TOUCHING.findall(text))
    if numbers < MIN_FILLINGS or numbers < MIN_SHAPES_OF_WORDS * len(_WORD.findall(text)):
        return text
    return _if_words(_TOUCHING.sub(" ", text), text, vocabulary)


def _blank_unless_latin(match: re.Match[str]) -> str:
    is_latin = any("LATIN" in unicodedata.name(char, "") for char in match.group())
    return match.group() if is_latin else " "


def _without_filling(text: str, vocabulary: Vocabulary) -> str:
    """Words that were run together, without the letters that only stood between them: "how xq do xq i"."""
    pieces = text.split(" ")
    counts = Counter(
        piece for piece in pieces if len(piece) <= MAX_FILLING and math.isinf(vocabulary.cost(piece))
    )
    filling = {piece for piece, count in counts.items() if piece.isalpha() and count >= MIN_FILLINGS}
    return " ".join(piece for piece in pieces if piece not in filling) if filling else text


def last_mark(text: str) -> str:
    """The mark that ends a text, or nothing."""
    found = _LAST_MARK.search(text)
    return found.group(1) if found else ""


def with_either(views: Sequence[View], vocabulary: Vocabulary) -> list[View]:
    """The views with each pair of leetspeak views as one: every 1 is the i or the l that makes a word."""
    by_name = {view.name: view for view in views}
    kept: list[View] = []
    for view in views:
        prefix, slash, kind = view.name.rpartition("/")
        other = by_name.get(f"{prefix}{slash}leet_l")
        if kind == "leet_l" and f"{prefix}{slash}leet" in by_name:
            continue
        if kind == "leet" and other is not None and len(other.text) == len(view.text):
            kept.append(View(view.name, _either(view.text, other.text, vocabulary), view.locate))
        else:
            kept.append(view)
    return kept


def _either(text: str, other: str, vocabulary: Vocabulary) -> str:
    def likeliest(match: re.Match[str]) -> str:
        word, twin = match.group(), other[match.start() : match.end()]
        places = [
            index for index, (char, another) in enumerate(zip(word, twin, strict=True)) if another != char
        ]
        if not places or len(places) > MAX_EITHER:
            return word
        spellings = (_spelled(word, twin, chosen) for chosen in _choices(places))
        return min(spellings, key=vocabulary.cost)

    return _WORD.sub(likeliest, text)


def _choices(places: Sequence[int]) -> list[tuple[int, ...]]:
    return [chosen for size in range(len(places) + 1) for chosen in itertools.combinations(places, size)]


def _spelled(word: str, other: str, places: Sequence[int]) -> str:
    return "".join(other[index] if index in places else char for index, char in enumerate(word))


def mended(view: View, vocabulary: Vocabulary) -> Iterator[View]:
    """The view with misspelt words as they should be: letters doubled, swapped, left out or put in; none without such."""
    if not MIN_MENDABLE <= vocabulary.share(view.text) < 1:
        return
    edits: list[tuple[int, int, str]] = []
    unknown = (m for m in _WORD.finditer(view.text) if m.end() - m.start() >= MIN_MISSPELT)
    unknown = (m for m in unknown if vocabulary.cost(m.group()) == math.inf)
    for match in itertools.islice(unknown, MAX_MISSPELT):
        word = match.group()
        found = _respelled(word, vocabulary) if len(word) <= MAX_WORD + MAX_EITHER else ""
        if found:
            edits.append((*match.span(), found))
    view = _edited(f"{view.name}/{MENDED}", view, edits) if edits else view
    if edits and vocabulary.share(view.text) >= MIN_MENDED:
        yield view


def _respelled(word: str, vocabulary: Vocabulary) -> str:
    """The commonest word that this may be, or nothing."""
    for spellings in (_undoubled(word), _swapped(word), _shorter(word), _longer(word)):
        best = min(spellings, key=vocabulary.cost, default="")
        if best and vocabulary.cost(best) < math.inf:
            return best
    return ""


def _undoubled(word: str) -> Iterator[str]:
    doubled = [index for index, (char, after) in enumerate(itertools.pairwise(word)) if char == after]
    if len(doubled) <= MAX_EITHER:
        for chosen in _choices(doubled)[1:]:
            yield "".join(char for index, char in enumerate(word) if index not in chosen)


def _swapped(word: str) -> Iterator[str]:
    return (word[:i] + word[i + 1] + word[i] + word[i + 2 :] for i in range(len(word) - 1))


def _shorter(word: str) -> Iterator[str]:
    return (word[:i] + word[i + 1 :] for i in range(len(word)))


def _longer(word: str) -> Iterator[str]:
    return (word[:i] + letter + word[i:] for i in range(1, len(word)) for letter in ascii_lowercase)


def _edited(name: str, view: View, edits: Sequence[tuple[int, int, str]]) -> View:
    pieces: list[str] = []
    # Where each piece begins in the new text, and the span of the old one that it stands for.
    begins: list[int] = []
    spans: list[tuple[int, int]] = []
    position = length = 0

    def add(piece: str, start: int, end: int) -> None:
        nonlocal length
        pieces.append(piece)
        begins.append(length)
        spans.append((start, end))
        length += len(piece)

    for start, end, word in edits:
        add(view.text[position:start], position, start)
        add(word, start, end)
        position = end
    add(view.text[position:], position, len(view.text))

    def locate(start: int, end: int) -> tuple[int, int]:
        first = bisect.bisect_right(begins, start) - 1
        last = bisect.bisect_left(begins, end, first + 1) - 1
        # Edited pieces are the odd ones: they count as a whole.
        begin = spans[first][0] + (0 if first % 2 else start - begins[first])
        stop = spans[last][1] if last % 2 else spans[last][0] + end - begins[last]
        return view.locate(begin, max(begin, stop))

    return View(name, "".join(pieces), locate)


def order_of(text: str) -> int:
    """1 where the words of a text stand as people say them, -1 where they stand backwards, 0 where that is not clear."""
    first, _, _ = text.strip().partition(" ")
    forwards, backwards = int(bool(last_mark(text))), int(first.endswith(_ENDS))
    for pair in itertools.pairwise(_WORD.findall(text)):
        forwards += _follows(*pair)
        backwards += _follows(pair[1], pair[0])
    if forwards > MIN_ORDER_RATIO * backwards:
        return 1
    return -1 if backwards > MIN_ORDER_RATIO * forwards else 0


def _follows(first: str, second: str) -> bool:
    return (first in _PREPOSITIONS and second in _ARTICLES) or (first, second) in _PAIRS
