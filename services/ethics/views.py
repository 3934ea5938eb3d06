"""Read a text in every way a reader or a model could: its views, each with the way back to the original characters.

A view is judged exactly like the text itself. Every view is at most a small multiple of the text, nesting is
bounded, and the work is linear in the text's length. What could not be read within the bounds is said so.
"""

from __future__ import annotations

import bisect
import codecs
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from services.ethics.carriers import Carrier, find_encoded, find_escapes, find_hidden
from services.ethics.fold import Folder

# base64 inside base64 inside hex is still read; deeper nesting has no honest use and is reported as opaque.
MAX_DEPTH: Final = 3
# Text between escapes, which stands for itself.
PLAIN: Final = "text"
# Three levels that each shrink the text to three quarters stay below this; it only stops unforeseen growth.
MAX_DECODED_FACTOR: Final = 4
MIN_DECODED_BUDGET: Final = 4096

Locate = Callable[[int, int], tuple[int, int]]

_LEET: Final = re.compile(r"[a-z][0-9@$!|+]|[0-9@$!|+][a-z]")
_LEET_TABLE: Final = str.maketrans("0134567892@$", "oieasgtbgzas")
_LEET_L_TABLE: Final = str.maketrans("0134567892@$", "oleasgtbgzas")
_LEET_I: Final = re.compile(r"(?<=[a-z0-9@$])[!|](?=[a-z0-9@$])")
_LEET_T: Final = re.compile(r"(?<=[a-z0-9@$])\+(?=[a-z0-9@$])")
# A capital I inside a word is read as an l.
_CAPITAL_I: Final = re.compile(r"(?<=[a-z])I+")
# A word spelled out: single letters with one to three other characters between them.
SPELLED: Final = re.compile(r"(?<![a-z0-9])[a-z0-9](?:[^a-z0-9]{1,3}[a-z0-9](?![a-z0-9])){2,}")
# The same with exactly one mark between letters, so that wider gaps still part words ("m a k e  a  b o m b").
_SPELLED_TIGHT: Final = re.compile(r"(?<![a-z0-9])[a-z0-9](?:[^a-z0-9][a-z0-9](?![a-z0-9]))+")
_SPELLED_GAP: Final = re.compile(r"[^a-z0-9]+")
# Apostrophes stay: "can't" is a word.
_INNER_MARK: Final = re.compile(r"(?<=[a-z0-9])[^\sa-z0-9']{1,2}(?=[a-z0-9])")


@dataclass(frozen=True, slots=True)
class View:
    """One reading of a text in lower case; `locate` maps a span of it to the span of the original text."""

    name: str
    text: str
    locate: Locate


@dataclass(frozen=True, slots=True)
class Reading:
    """All views of one text, the plain one first; `opaque` are spans that look encoded but were not readable."""

    text: str
    views: tuple[View, ...]
    opaque: tuple[tuple[int, int], ...]


class Reader:
    """Makes readings; holds the constitution's table of look-alike characters."""

    def __init__(self, folder: Folder) -> None:
        self._folder = folder

    def read(self, text: str) -> Reading:
        """Every view of the text, decoded content included, within the bounds of this module."""
        views: list[View] = []
        opaque: list[tuple[int, int]] = []
        budget = max(MIN_DECODED_BUDGET, MAX_DECODED_FACTOR * len(text))
        pending: list[tuple[str, str, Locate, int]] = [("", text, _identity, 0)]
        while pending:
            prefix, source, locate, depth = pending.pop(0)
            folded = self._folder.fold(source)
            to_source = _chain(folded.locate, locate)
            views.extend(plain_views(prefix, folded.text, to_source))
            for name, payload, inner, unread in _hidden_texts(source, folded.text):
                outer = locate if name in _HIDDEN_IN_SOURCE else to_source
                budget -= len(payload)
                if payload and depth < MAX_DEPTH and budget >= 0:
                    pending.append((f"{prefix}{name}/", payload, _chain(inner, outer), depth + 1))
                elif payload:
                    opaque.append(outer(*inner(0, len(payload))))
                opaque.extend(outer(*span) for span in unread)
        return Reading(text, tuple(views), tuple(opaque))


def plain_views(prefix: str, cased: str, locate: Locate) -> Iterator[View]:
    """The views that keep the text's characters: those of `streamed_views`, and two that need the whole text.

    These have every word reversed in its place and, where words are spelled out, all words run together.
    """
    views = list(streamed_views(prefix, cased, locate))
    yield from views
    base = views[1] if len(views) > 1 and views[1].name == f"{prefix}leet" else views[0]
    yield View(f"{prefix}reversed_words", _reverse_words(base.text), _chain(_whole_words(base.text), locate))
    if SPELLED.search(base.text):
        yield from without(
            f"{prefix}squeezed", base.text, locate, (gap.span() for gap in _SPELLED_GAP.finditer(base.text))
        )


def streamed_views(prefix: str, cased: str, locate: Locate) -> Iterator[View]:
    """The views that a piece of a text shows as the whole text would: plain, leetspeak, spelled out, reversed, rot13.

    The plain view comes first, the leetspeak view, if there is one, second.
    """
    plain = cased.lower()
    yield View(f"{prefix}plain", plain, locate)
    base = plain
    if _LEET.search(plain):
        marked = _LEET_T.sub("t", _LEET_I.sub("i", plain))
        base = marked.translate(_LEET_TABLE)
        yield View(f"{prefix}leet", base, locate)
        if "1" in plain or "|" in plain:
            yield View(f"{prefix}leet_l", _LEET_I.sub("l", plain).translate(_LEET_L_TABLE), locate)
    if _CAPITAL_I.search(cased):
        yield View(f"{prefix}capital_i", _CAPITAL_I.sub(_as_l, cased).lower(), locate)
    if SPELLED.search(base):
        yield from without(f"{prefix}spelled", base, locate, _gaps(SPELLED, base))
        yield from without(f"{prefix}spelled_words", base, locate, _gaps(_SPELLED_TIGHT, base))
    yield from without(f"{prefix}unmarked", base, locate, (m.span() for m in _INNER_MARK.finditer(base)))
    yield View(f"{prefix}reversed", base[::-1], _chain(_mirror(len(base)), locate))
    yield View(f"{prefix}rot13", codecs.encode(plain, "rot13"), locate)


def without(name: str, text: str, locate: Locate, spans: Iterable[tuple[int, int]]) -> Iterator[View]:
    """The view of a text without the given spans (in order, apart); none when there are no spans."""
    pieces: list[str] = []
    # kept[i] is where piece i begins in the view, origin[i] where it began in the text.
    kept, origin, position, length = [0], [0], 0, 0
    for start, end in spans:
        pieces.append(text[position:start])
        length += start - position
        kept.append(length)
        origin.append(end)
        position = end
    if not pieces:
        return
    pieces.append(text[position:])

    def inner(start: int, end: int) -> tuple[int, int]:
        return _shift(start, kept, origin), _shift(max(start, end - 1), kept, origin) + (end > start)

    yield View(name, "".join(pieces), _chain(inner, locate))


def _gaps(spelled: re.Pattern[str], text: str) -> Iterator[tuple[int, int]]:
    for run in spelled.finditer(text):
        for gap in _SPELLED_GAP.finditer(text, run.start(), run.end()):
            yield gap.span()


def _hidden_texts(source: str, cased: str) -> Iterator[tuple[str, str, Locate, list[tuple[int, int]]]]:
    """Per kind of carrier: its name, all its payloads as one text, the way back, and the unreadable spans."""
    by_kind: dict[str, list[Carrier]] = {}
    for carrier in (*find_hidden(source), *find_encoded(cased)):
        by_kind.setdefault(carrier.kind, []).append(carrier)
    for kind, carriers in by_kind.items():
        readable = [carrier for carrier in carriers if carrier.payload is not None]
        payload, locate = _join(readable, "\n")
        yield kind, payload, locate, [(c.start, c.end) for c in carriers if c.payload is None]
    escapes = list(find_escapes(cased))
    if escapes:
        payload, locate = _join(list(_with_surroundings(cased, escapes)), "")
        yield "escapes", payload, locate, []


def _with_surroundings(text: str, escapes: list[Carrier]) -> Iterator[Carrier]:
    position = 0
    for escape in escapes:
        if escape.start > position:
            yield Carrier(PLAIN, position, escape.start, text[position : escape.start])
        yield escape
        position = escape.end
    if position < len(text):
        yield Carrier(PLAIN, position, len(text), text[position:])


def _join(carriers: list[Carrier], separator: str) -> tuple[str, Locate]:
    offsets, position = [], 0
    for carrier in carriers:
        offsets.append(position)
        position += len(carrier.payload or "") + len(separator)

    def locate(start: int, end: int) -> tuple[int, int]:
        first = max(0, bisect.bisect_right(offsets, start) - 1)
        last = max(0, bisect.bisect_right(offsets, max(start, end - 1)) - 1)
        begin, stop = carriers[first].start, carriers[last].end
        if carriers[first].kind == PLAIN:
            begin += start - offsets[first]
        if carriers[last].kind == PLAIN:
            stop = carriers[last].start + end - offsets[last]
        return begin, stop

    return separator.join(carrier.payload or "" for carrier in carriers), locate


def _as_l(capitals: re.Match[str]) -> str:
    return "l" * len(capitals.group())


def _reverse_words(text: str) -> str:
    return " ".join(word[::-1] for word in text.split(" "))


def _whole_words(text: str) -> Locate:
    def locate(start: int, end: int) -> tuple[int, int]:
        stop = text.find(" ", max(start, end - 1))
        return text.rfind(" ", 0, start) + 1, len(text) if stop < 0 else stop

    return locate


def _mirror(length: int) -> Locate:
    return lambda start, end: (length - end, length - start)


def _chain(inner: Locate, outer: Locate) -> Locate:
    return lambda start, end: outer(*inner(start, end))


def _identity(start: int, end: int) -> tuple[int, int]:
    return start, end


def _shift(index: int, kept: list[int], origin: list[int]) -> int:
    piece = bisect.bisect_right(kept, index) - 1
    return origin[piece] + index - kept[piece]


# These carriers are found in the source before folding, because folding removes them.
_HIDDEN_IN_SOURCE: Final = frozenset({"tags", "selectors"})
