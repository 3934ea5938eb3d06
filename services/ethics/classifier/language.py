"""Find text that is not English, the language that the classifier was trained on.

A text is taken apart into stretches: lines, sentences, quotations. A stretch is foreign when it has enough words, they
are not English, and its script or a recogniser of 140 languages says so. Code, formulas, addresses, names, numbers and
emoji are no language; a disguise that another view lifts is judged by that view.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Final

from py3langid.langid import MODEL_FILE, LanguageIdentifier

from services.ethics.carriers import PAYLOADS
from services.ethics.classifier.words import Vocabulary
from services.ethics.fold import Folder
from services.ethics.views import Reading, View

# A name or a quoted word is no text in that language; a sentence is.
MIN_WORDS: Final = 4
# So many words must not be capitalised; where fewer are, so many words without a comma are no name.
MIN_UNCAPITALISED: Final = 3
MIN_CAPITALISED: Final = 5
# A comma for every few words makes a list.
LIST_COMMAS: Final = 3
# Scripts without blanks between words: so many characters say what four words say.
MIN_UNSPACED: Final = 7
# This share of English among a stretch's words settles it before the recogniser is asked.
SURELY_ENGLISH: Final = 0.75
# Among words of a text in another language are some that English has too ("a", "hotel", "problem", "die").
HARDLY_ENGLISH: Final = 0.45
# How sure the recogniser must be of a language: where the words look English, and where they do not.
SURE: Final = 0.80
RATHER_SURE: Final = 0.30
# What stands in code, in a list or in pieces of a few words is rather no text at all; so many words of it are one.
MIN_PIECED_WORDS: Final = 6
# Only this much of a stretch is shown to the recogniser: it is sure long before.
MAX_SHOWN_CHARS: Final = 400
# Vietnamese has an accent on every third letter; text with more is English behind look-alikes.
MAX_ACCENTED: Final = 0.4
# English as its users write it, and what is no language ("zxx").
_ENGLISH: Final = frozenset({"en", "pcm", "zxx"})
_STRETCH: Final = re.compile(r"[^\n.!?。！？؟।…:;\"“”„«»()\[\]]+")
_CODE: Final = re.compile(
    r"```.*?```|`[^`\n]*`|https?://\S+|www\.\S+|(?<!\S)[^\s@]{1,128}@[^\s@]{1,256}|\$[^$\n]{1,200}\$|\\[a-zA-Z]+|<[^<>\n]{1,200}>",
    re.DOTALL,
)
_ADDRESS: Final = re.compile(r"https?://\S+|www\.\S+|(?<!\S)[^\s@]++@[^\s.]++\.\S+")
# Marks that glue words together or set each of them apart.
_GLUE: Final = re.compile(r"[_/\\|,`$<>*~+={}#&]+")
_TOKEN: Final = re.compile(r"\S+")
_INNER: Final = re.compile("['’-]")
_EDGES: Final = "'’`*_~^,،、-–—/|+=<>%#&$@¿¡·•"
_UNSPACED: Final = ("CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN", "HANGUL")
_FUNCTION_WORDS: Final = frozenset(
    re.findall(
        r"\w+",
        """a about after all also am an and any are as at be because been before being but by can could did do does doing
    don done down each even every few first for from get give go good had has have having he her here him his how i if
    im in into is it its just know let like ll make many may me might more most much must my never new no not now of
    off ok on once one only or other our out over own per please put re really s said same say see she should show so
    some still such sure t take tell than thank thanks that the their them then there these they thing think this
    those to too try two u under until up upon us use used using ve very want was way we well were what when where
    whether which while who whom whose why will with within without won would write yes yet you your yours""",
    )
)


class Languages:
    """Finds foreign stretches; holds the recogniser (some 75 MB). Safe from several threads."""

    def __init__(self, vocabulary: Vocabulary, folder: Folder) -> None:
        self._vocabulary = vocabulary
        self._folder = folder
        self._identifier = _identifier()

    def foreign(self, reading: Reading, views: Sequence[View]) -> tuple[tuple[int, int], ...]:
        """Spans of the original text that are in another language; `views` are those that are read of it."""
        found = tuple(self._stretches(reading.text))
        lifted = [view for view in views[1:] if not _is_payload(view)]
        if found and any(not any(self._stretches(view.text)) for view in lifted):
            found = ()
        payloads = [view for view in views[1:] if _is_payload(view) and any(self._stretches(view.text))]
        return (*found, *(view.locate(0, len(view.text)) for view in payloads))

    def _stretches(self, text: str) -> Iterator[tuple[int, int]]:
        prose = _CODE.sub(_blanks, text)
        pieces: list[tuple[int, int]] = []
        for match in _STRETCH.finditer(prose):
            if self._is_foreign(match.group()):
                yield match.span()
            else:
                pieces.append(match.span())
        yield from self._in_pieces(prose, pieces)
        # Code is no language, but sentences can be written where code stands.
        for match in _CODE.finditer(text):
            code = _ADDRESS.sub(_blanks, match.group())
            begin = match.start()
            spans = ((begin + line.start(), begin + line.end()) for line in _STRETCH.finditer(code))
            yield from self._in_pieces(text, spans)

    def _in_pieces(self, text: str, spans: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
        """Of spans that are no sentences, those that are one without its marks, and those that are one together."""
        short: list[tuple[int, int, str]] = []
        for start, end in spans:
            loose = _GLUE.sub(" ", text[start:end])
            if self._is_surely_foreign(loose):
                yield start, end
            elif len(loose.split()) < MIN_WORDS and self._english_share(_plain_words(loose.lower())) < 1.0:
                short.append((start, end, loose))
        if len(short) > 1 and self._is_surely_foreign(" ".join(loose for _, _, loose in short)):
            yield short[0][0], short[-1][1]

    def _is_surely_foreign(self, stretch: str) -> bool:
        """As `_is_foreign`, of what is rather no sentence: more words, hardly any of them English, and surely so."""
        folded = stretch.lower() if stretch.isascii() else self._folder.fold(stretch).text.lower()
        if self._english_share(_plain_words(folded)) >= HARDLY_ENGLISH:
            return False
        if not stretch.isascii():
            other = [word for word in _words(stretch) if not _is_latin(word)]
            if _unspaced_letters(stretch) >= MIN_UNSPACED or len(other) >= MIN_WORDS:
                return True
        words = _plain_words(_uncapitalised(stretch, folded))
        if len(words) < MIN_PIECED_WORDS or self._english_share(words) >= HARDLY_ENGLISH:
            return False
        language, certainty = self._identifier.classify(" ".join(words)[:MAX_SHOWN_CHARS])
        return language not in _ENGLISH and float(certainty) >= SURE

    def _is_foreign(self, stretch: str) -> bool:
        if stretch.isascii():
            return self._is_foreign_latin(stretch, stretch.lower())
        folded = self._folder.fold(stretch).text.lower()
        words = list(_words(stretch))
        other = [] if folded.isascii() else [word for word in words if not _is_latin(word)]
        if not other:
            return self._is_foreign_latin(folded if _is_disguised(stretch) else stretch, folded)
        if self._english_share(_plain_words(folded)) >= SURELY_ENGLISH:
            # Look-alike letters of another script, or a foreign word in an English sentence.
            return _unspaced_letters(stretch) >= MIN_UNSPACED
        if _unspaced_letters(stretch) >= MIN_UNSPACED:
            return True
        return len(other) >= MIN_WORDS or (len(words) >= MIN_WORDS and 2 * len(other) >= len(words))

    def _is_foreign_latin(self, stretch: str, folded: str) -> bool:
        everything = _plain_words(folded)
        if len(everything) < MIN_WORDS:
            return False
        words = _plain_words(_uncapitalised(stretch, folded))
        if len(words) < MIN_UNCAPITALISED or LIST_COMMAS * stretch.count(",") >= len(everything):
            # Names, a list, or a text in which every word begins with a capital: the longest part without a comma.
            longest = max(folded.split(","), key=lambda piece: len(piece.split()))
            words = _plain_words(longest)
            if len(words) < MIN_CAPITALISED:
                return False
        share = self._english_share(words)
        if share >= SURELY_ENGLISH:
            return False
        language, certainty = self._identifier.classify(stretch.strip()[:MAX_SHOWN_CHARS].lower())
        if language in _ENGLISH:
            return False
        return float(certainty) >= (RATHER_SURE if share < HARDLY_ENGLISH else SURE)

    def _english_share(self, words: Sequence[str]) -> float:
        """Which share of these words, in lower case, is English; short ones only count as function words."""
        english = sum(word in _FUNCTION_WORDS or word in self._vocabulary for word in words)
        return english / len(words) if words else 0.0


@lru_cache(maxsize=1)
def _identifier() -> LanguageIdentifier:
    """The recogniser; it knows nothing of any constitution, so all of them share it."""
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def _is_disguised(stretch: str) -> bool:
    """Whether letters that fold to ASCII come from another script, or more of them are accented than in any language."""
    other = [char for char in stretch if not char.isascii() and not char.isspace()]
    if any(char.isalpha() and _script(char) != "LATIN" for char in other):
        return True
    return MAX_ACCENTED * sum(char.isalpha() for char in stretch) < len(other)


def _is_payload(view: View) -> bool:
    return view.name.partition("/")[0] in PAYLOADS | {"escapes"}


def _blanks(match: re.Match[str]) -> str:
    """As many blanks, so that places stay; a line's end stays one."""
    return re.sub(r"[^\n]", " ", match.group())


def _words(stretch: str) -> Iterator[str]:
    for token in _TOKEN.findall(stretch):
        word = token.strip(_EDGES)
        if any(char.isalpha() for char in word):
            yield word


def _uncapitalised(stretch: str, folded: str) -> str:
    """The folded stretch without capitalised words after the first, which are names more often than not."""
    raw, plain = _TOKEN.findall(stretch), _TOKEN.findall(folded)
    if len(raw) != len(plain):
        return folded
    kept = (
        word
        for number, (seen, word) in enumerate(zip(raw, plain, strict=True))
        if not number or _is_low(seen)
    )
    return " ".join(kept)


def _is_low(token: str) -> bool:
    return next((char.islower() for char in token if char.isalpha()), True)


def _plain_words(folded: str) -> list[str]:
    """Tokens that are words: letters only, with an apostrophe or hyphen within; not code, numbers or formulas."""
    found: list[str] = []
    for token in folded.split():
        word = token.strip(_EDGES)
        # Most tokens are one word; taking the others apart costs more than all the rest.
        parts = (word,) if word.isalpha() else _INNER.split(word)
        found += [part for part in parts if len(part) > 1 and part.isalpha()]
    return found


def _is_latin(word: str) -> bool:
    """Whether every letter is a Latin one; single Greek letters and symbols stand in formulas."""
    letters = [char for char in word if char.isalpha()]
    return len(letters) < 2 or all(char.isascii() or _script(char) == "LATIN" for char in letters)  # noqa: PLR2004


def _unspaced_letters(stretch: str) -> int:
    return sum(not char.isascii() and char.isalpha() and _script(char) in _UNSPACED for char in stretch)


@lru_cache(maxsize=4096)
def _script(char: str) -> str:
    """The first word of the character's Unicode name, which for letters is the script."""
    return unicodedata.name(char, "").partition(" ")[0].partition("-")[0]
