"""Choose what the classifier reads of a text: which views, and which windows of them. Pure but for the tokenizer.

The plain view is read, and of the others those that show words which no view before them shows: a disguise hides
words, and the view that lifts it brings them back. Where it is much plainer than the plain view, it is read in its
place: letters that make no words look like an attack, whatever they hide. What cannot be read within the bounds is
said so.
"""

from __future__ import annotations

import bisect
import codecs
import re
from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from tokenizers import Tokenizer

from services.ethics.carriers import PAYLOADS
from services.ethics.classifier.clearing import (
    MENDED,
    PARTED,
    last_mark,
    mended,
    order_of,
    tidied,
    with_either,
)
from services.ethics.classifier.encoding import room_for_text
from services.ethics.classifier.words import Vocabulary
from services.ethics.judge import Extent, Part
from services.ethics.views import View, without

# Beside the plain view. With the two halves of a longer text there are at most MAX_PASSES for a text of one window.
MAX_FURTHER_VIEWS: Final = 3
MAX_PASSES: Final = 4
_HALVES: Final = 2
# Letters in new words that a view must show: one short word where the view cannot come about by chance, and several
# where ordinary text has words too when it is read backwards or shifted ("time", "emit").
MIN_GAIN: Final = 4
MIN_GAIN_BY_CHANCE: Final = 10
# More than this in views that are not read any more is said to be unread.
MIN_UNREAD_GAIN: Final = 16
# Long texts are taken apart into tokens piece by piece: the tokenizer's own record of a token is large.
PIECE_CHARS: Final = 8_192
_BY_CHANCE: Final = frozenset({"reversed", "reversed_words", "rot13", PARTED, MENDED})
# Where so much of a text that was spelled out is words, the gaps between them were kept.
MIN_BORDERED: Final = 0.6
# A view that has this much more of its characters in words is what the text says, and the plain view its disguise.
MIN_PLAINER: Final = 0.15
_TWINS: Final = {"reversed": "reversed_words", "reversed_words": "reversed"}
_WORD: Final = re.compile("[a-z]+")
_BLOB: Final = re.compile(r"\S{16,}")
MIN_WORDS_BESIDE: Final = 4
# Characters around a new word that are read with it; the fewer the more there are of them.
MARGINS: Final = (48, 16, 0)
_MAY_RUN_TOGETHER: Final = frozenset({"plain", "leet", "leet_l", "squeezed"})
# Windows of a longer text overlap by a quarter, so that what is cut by one border is whole in the next window.
STRIDE_SHARE: Final = 0.75
# Texts of this many tokens are also read in windows of half their length, which harmless padding cannot outweigh:
# on the padded development texts that found 43 % of the harmful ones at 3 % false positives, the whole alone 26 %.
MIN_HALVED_TOKENS: Final = 64
# Up to this length a text of several windows is read in whole and half windows, beyond it in half windows only.
MAX_TWICE_READ_TOKENS: Final = 1024
# All passes of one judgement together, in tokens: 512 full windows, some eight seconds of one core. A text of more
# tokens is not read to its end, since it is not read at all.
MAX_TOKENS: Final = 131_072


@dataclass(frozen=True, slots=True)
class Pass:
    """One thing to ask: a span of a view; `start` and `end` count characters of the original text."""

    text: str
    view: str
    start: int
    end: int
    tokens: int
    is_window: bool


@dataclass(frozen=True, slots=True)
class Plan:
    """The passes of one part; `views` are the views that are read, `unread` those with words that no pass shows.

    `is_cut` says that there was more run together than can be parted.
    """

    passes: tuple[Pass, ...]
    views: tuple[View, ...]
    unread: tuple[View, ...]
    is_cut: bool

    @property
    def tokens(self) -> int:
        """What reading it costs."""
        return sum(item.tokens for item in self.passes)


class Planner:
    """Makes plans with one tokenizer; safe from several threads."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.vocabulary = Vocabulary(tokenizer.get_vocab())

    def plan(self, part: Part) -> Plan:
        """What is to be read of this part."""
        plain = part.reading.views[0]
        others = with_either(part.reading.views[1:], self.vocabulary)
        parted, is_cut = self._parted([plain, *others])
        views, unread = self._choose(plain, [*others, *parted, *mended(plain, self.vocabulary)])
        ends_with = last_mark(plain.text)
        context = (
            len(self._tokenizer.encode(part.context, add_special_tokens=False).ids) if part.context else 0
        )
        room = room_for_text(context, part.stage)
        # A window of turns or of an output was cut to be read at once.
        spare = MAX_PASSES - len(views) if part.extent is Extent.WHOLE else 0
        main = self._lifted(views)
        rest = [clear for view in views if view is not main for clear in self._cleared(view, main, views)]
        # What passes there are to spare go to the view that says most.
        fullest = max((main, *rest), key=lambda view: sum(map(len, self.vocabulary.words_of(view.text))))
        passes = self._read(main, room, spare if main is fullest else 0, None, ends_with)
        # A further view of a text of one window gets one pass: where it is longer, for what it shows that is new.
        is_short = not any(item.is_window for item in passes[:1])
        covered = self.vocabulary.words_of(main.text)
        for view in rest:
            shown = self._gained(view, covered) if is_short else None
            passes += self._read(view, room, spare if view is fullest else 0, shown, ends_with)
        # A text without a single token says nothing.
        return Plan(tuple(item for item in passes if item.tokens), views, unread, is_cut)

    def _choose(self, plain: View, others: Sequence[View]) -> tuple[tuple[View, ...], tuple[View, ...]]:
        """The views to read, the plain one first, and those with words that are left unread."""
        covered = set(self.vocabulary.words_of(plain.text))
        shown = sum(map(len, covered))
        words = {view: self._gained(view, covered) for view in others}
        chosen, left = [plain], []
        while words:
            # What a view chosen meanwhile explains is no gain any more.
            gains = {
                view: _worth(view) + _letters(_unexplained(view, found - covered, covered))
                for view, found in words.items()
            }
            view, gain = max(gains.items(), key=lambda pair: pair[1])
            if gain < _min_gain(view, shown):
                # It gains most, but others may need less.
                del words[view]
            elif len(chosen) <= MAX_FURTHER_VIEWS:
                found = words.pop(view)
                chosen.append(view)
                covered |= found
                twin = _twin(view, [other for other in words if words[other] >= found])
                if twin is not None and len(chosen) <= MAX_FURTHER_VIEWS:
                    chosen.append(twin)
                    covered |= words.pop(twin)
            else:
                if gain >= MIN_UNREAD_GAIN or _worth(view):
                    left.append(view)
                covered |= words.pop(view)
        return tuple(chosen), tuple(left)

    def _has_borders(self, squeezed: View, views: Sequence[View]) -> bool:
        """Whether words that are spelled out are words already in a view that kept the gaps between them."""
        prefix, slash, kind = squeezed.name.rpartition("/")
        kept = {f"{prefix}{slash}spelled_words", f"{prefix}{slash}unmarked"}
        return kind == "squeezed" and any(
            view.name in kept and self.vocabulary.share(view.text) >= MIN_BORDERED for view in views
        )

    def _lifted(self, views: Sequence[View]) -> View:
        """The view that says what the text says: the plain one unless another is much plainer."""
        speaks = _says_something(views[0])
        whole = [view for view in views if not (speaks and _is_embedded(view.name))]
        plainest = max(whole, key=lambda view: (round(self.vocabulary.share(view.text), 2), _order(view)))
        needed = self.vocabulary.share(views[0].text) + MIN_PLAINER
        return plainest if self.vocabulary.share(plainest.text) >= needed else views[0]

    def _cleared(self, view: View, main: View, views: Sequence[View]) -> Iterator[View]:
        """What is to be read of a further view: of a disguise that another lifts only the words that stand there openly.

        Of a text backwards and one with each word backwards only the one in the order of speech.
        """
        prefix, slash, kind = view.name.rpartition("/")
        if kind == "plain" and self._is_lifted(view, f"{prefix}{slash}", main, views):
            words = set(self.vocabulary.words_of(view.text))
            for other in views:
                if other is not view:
                    covered = self.vocabulary.words_of(other.text)
                    words = {
                        word
                        for word in words - covered
                        if word[::-1] not in covered and _shifted(word) not in covered
                    }
            if words:
                # With what stands about them: what they mean hangs on words that no list has.
                yield _narrowed(view, words, MARGINS[0])
        elif kind not in _TWINS or order_of(view.text) >= 0 or _twin(view, views) is None:
            yield view

    def _is_lifted(self, view: View, prefix: str, main: View, views: Sequence[View]) -> bool:
        needed = self.vocabulary.share(view.text) + MIN_PLAINER
        speaks = _says_something(view)
        return any(
            other.name.startswith(prefix) and self.vocabulary.share(other.text) >= needed
            for other in (main, *views)
            if other is not view and not (speaks and _is_embedded(other.name.removeprefix(prefix)))
        )

    def _gained(self, view: View, covered: AbstractSet[str]) -> AbstractSet[str]:
        """The view's words that these words cannot explain: "emit" is no find where the text says "time"."""
        return _unexplained(view, self.vocabulary.words_of(view.text) - covered, covered)

    def _parted(self, views: Sequence[View]) -> tuple[list[View], bool]:
        """Views in which letters that were run together are words again, and whether there was too much of it."""
        found: list[View] = []
        is_cut = False
        for view in views:
            if view.name.rpartition("/")[2] in _MAY_RUN_TOGETHER:
                if self._has_borders(view, views):
                    continue
                cuts, is_whole = self.vocabulary.cuts(view.text)
                found += _with_blanks(view, cuts)
                is_cut |= not is_whole
        return found, is_cut

    def _read(
        self, view: View, room: int, spare: int, shown: AbstractSet[str] | None, ends_with: str
    ) -> list[Pass]:
        """The view as one pass with what half windows may be spared, or as overlapping windows.

        Of a longer view only what is about the words `shown` is read, where they are given and that fits.
        """
        offsets = self._offsets(view.text)
        count = len(offsets)
        if count > room and shown is not None:
            for margin in MARGINS:
                narrow = _narrowed(view, shown, margin)
                left = len(self._offsets(narrow.text))
                if left <= room:
                    place = _span(narrow, 0, len(narrow.text))
                    return [Pass(narrow.text, view.name, *place, left, is_window=True)]
        if count > room:
            sizes = [room, room // 2] if count <= MAX_TWICE_READ_TOKENS else [room // 2]
            return [
                window
                for size in sizes
                for window in _windows(view, offsets, size, max(1, int(size * STRIDE_SHARE)))
            ]
        whole = Pass(
            tidied(view, ends_with, self.vocabulary),
            view.name,
            *_span(view, 0, len(view.text)),
            count,
            is_window=False,
        )
        if count < MIN_HALVED_TOKENS or spare < _HALVES:
            return [whole]
        half = count - count // 2
        # Two halves, and with a pass to spare the middle too.
        step = half - half // 2 if spare > _HALVES else half
        return [whole, *_windows(view, offsets, half, step)]

    def _offsets(self, text: str) -> list[tuple[int, int]]:
        """Where each token of a text begins and ends."""
        found: list[tuple[int, int]] = []
        for place, piece in _pieces(text):
            offsets = self._tokenizer.encode(piece, add_special_tokens=False).offsets
            found += offsets if not place else ((place + start, place + end) for start, end in offsets)
            if len(found) > MAX_TOKENS:
                break
        return found


def _pieces(text: str) -> Iterator[tuple[int, str]]:
    """The text in pieces that end with a blank where there is one, each with its place."""
    start = 0
    while start < len(text):
        end = min(start + PIECE_CHARS, len(text))
        if end < len(text):
            end = max(text.rfind(" ", start, end), text.rfind("\n", start, end), start) + 1
            end = end if end > start + 1 else min(start + PIECE_CHARS, len(text))
        yield start, text[start:end]
        start = end


def _narrowed(view: View, words: AbstractSet[str], margin: int) -> View:
    """The view without what is further than `margin` characters, and then a blank, from any of these words."""
    text = view.text
    gaps: list[tuple[int, int]] = []
    position = 0
    for match in _WORD.finditer(text):
        if match.group() not in words:
            continue
        start = text.rfind(" ", 0, max(0, match.start() - margin)) + 1
        if start > position:
            gaps.append((position, start))
        end = text.find(" ", match.end() + margin) + 1
        position = max(position, end or len(text))
    if position < len(text):
        gaps.append((position, len(text)))
    return next(without(view.name, text, view.locate, gaps), view)


def _unexplained(view: View, words: AbstractSet[str], covered: AbstractSet[str]) -> AbstractSet[str]:
    """Those words of a view read backwards or shifted that are not other words backwards or shifted."""
    kind = view.name.rpartition("/")[2]
    if kind in {"reversed", "reversed_words"}:
        return {word for word in words if word[::-1] not in covered}
    if kind == "rot13":
        return {word for word in words if _shifted(word) not in covered}
    return words


def _order(view: View) -> int:
    return order_of(view.text) if view.name.rpartition("/")[2] in _TWINS else 0


def _shifted(word: str) -> str:
    return codecs.encode(word, "rot13")


def _letters(words: AbstractSet[str]) -> int:
    return sum(map(len, words))


def _says_something(view: View) -> bool:
    """Whether there are words beside what is encoded in a text: what was decoded never stands in for them."""
    return len(_WORD.findall(_BLOB.sub(" ", view.text))) >= MIN_WORDS_BESIDE


def _is_embedded(name: str) -> bool:
    """Whether it decodes a piece of a text, beside which the rest says something of its own."""
    return name.partition("/")[0] in PAYLOADS


def _twin(view: View, others: Sequence[View]) -> View | None:
    """For a text backwards the one with each word backwards, and the reverse: words alone do not tell which it is."""
    prefix, _, kind = view.name.rpartition("/")
    wanted = _TWINS.get(kind)
    names = (f"{prefix}/{wanted}", wanted) if prefix else (wanted,)
    return next((other for other in others if wanted is not None and other.name in names), None)


def _worth(view: View) -> int:
    """What was decoded is read whatever its words are: nobody encodes a text in order to say nothing."""
    prefix, _, kind = view.name.rpartition("/")
    return MIN_GAIN if prefix and kind == "plain" and any(map(str.isalpha, view.text)) else 0


def _min_gain(view: View, shown: int) -> int:
    """How many letters in new words make a view worth reading, where the plain one has so many in words of its own."""
    if view.name.rpartition("/")[2] not in _BY_CHANCE:
        return MIN_GAIN
    # Of a text that says hardly anything as it stands, a single word is a find.
    return max(MIN_GAIN, min(MIN_GAIN_BY_CHANCE, shown + 1))


def _windows(view: View, offsets: Sequence[tuple[int, int]], size: int, step: int) -> Iterator[Pass]:
    """Windows of so many tokens, each a step after the one before; the last ends with the text."""
    count = len(offsets)
    for first in range(0, max(1, count - size + step), step):
        last = min(first + size, count)
        begin, stop = offsets[first][0], offsets[last - 1][1]
        yield Pass(view.text[begin:stop], view.name, *_span(view, begin, stop), last - first, is_window=True)


def _span(view: View, start: int, end: int) -> tuple[int, int]:
    """The span of the original text, also of a view without any characters."""
    return view.locate(start, end) if start < end else (0, 0)


def _with_blanks(view: View, cuts: Sequence[int]) -> Iterator[View]:
    """The view with a blank at each cut; none when there are no cuts."""
    if not cuts:
        return
    pieces = [view.text[start:end] for start, end in pairwise((0, *cuts, len(view.text)))]
    # A position behind the n-th blank stood n characters earlier.
    blanks = [cut + number for number, cut in enumerate(cuts)]

    def locate(start: int, end: int) -> tuple[int, int]:
        first = start - bisect.bisect_left(blanks, start)
        last = end - bisect.bisect_left(blanks, end)
        return view.locate(min(first, last), max(first, last))

    yield View(f"{view.name}/{PARTED}", " ".join(pieces), locate)
