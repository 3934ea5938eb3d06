"""Join the turns of a conversation, so that a request spread over several of them is judged as one.

Every text is judged by itself too (`action_text.py`), so a join serves only what no text says alone. Rules read all
turns joined and count what crosses a border between two; judges that read get windows of a few turns, of which all but
the latest are the same at the next turn and need no second reading. A long turn counts with its two ends, since what
lies between them cannot touch its neighbours. Pure.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

from services.ethics.judge import Extent, Stage

# Between two turns; the rules' patterns take it for a gap between words.
SEPARATOR: Final = "\n"
# How much of each end of a turn is joined. For rules: the longest phrase with its frame, and encoded text of the same
# meaning. For judges that read: two turns together stay within one pass.
RULE_END_CHARS: Final = 4_096
WINDOW_END_CHARS: Final = 200
# One turn alone was judged already.
MIN_TURNS: Final = 2
# Some 200 tokens; the classifier reads 256 in one pass.
WINDOW_CHARS: Final = 800
# The latest windows of all tracks together are read: some third of a second of one core, and most of it only once.
MAX_WINDOWS: Final = 32
# What a tool says in fewer characters is no document, but a phrase that may complete a request.
MAX_PHRASE_CHARS: Final = 120
_SPACE: Final = re.compile(r"\s")


@dataclass(frozen=True, slots=True)
class Turn:
    """One text of a turn; `number` is the turn's place among its kind. Documents complete no request for a reader."""

    number: int
    text: str
    is_document: bool = False


@dataclass(frozen=True, slots=True)
class Track:
    """Texts that are read one after the other, e.g. all that users said; `name` begins the field of every join."""

    name: str
    stage: Stage
    turns: tuple[Turn, ...]


@dataclass(frozen=True, slots=True)
class Joined:
    """Several turns as one text; `borders` are the places in it where one of them ends."""

    field: str
    stage: Stage
    text: str
    extent: Extent
    borders: tuple[int, ...]


def joined(tracks: Sequence[Track]) -> Iterator[Joined]:
    """Every track in full for rules, then the latest windows of all tracks for judges that read."""
    tracks = list(_distinct(tracks))
    for track in tracks:
        for run in _runs(track.turns, RULE_END_CHARS):
            yield _join(track, run, Extent.JOIN)
    newest = itertools.zip_longest(*(reversed(_windows(track)) for track in tracks))
    windows = (window for row in newest for window in row if window is not None)
    yield from _named_apart(itertools.islice(windows, MAX_WINDOWS))


def _named_apart(windows: Iterable[Joined]) -> Iterator[Joined]:
    """Several windows may lie within the same turns; what a judge says of one must not count for another."""
    times: Counter[str] = Counter()
    for window in windows:
        times[window.field] += 1
        count = times[window.field]
        yield window if count == 1 else replace(window, field=f"{window.field}#{count}")


def _distinct(tracks: Sequence[Track]) -> Iterator[Track]:
    """Tracks of at least two texts; one that repeats an earlier one is left out."""
    seen: set[tuple[Stage, tuple[str, ...]]] = set()
    for track in tracks:
        turns = tuple(turn for turn in track.turns if turn.text.strip())
        key = track.stage, tuple(turn.text for turn in turns)
        if len(turns) >= MIN_TURNS and key not in seen:
            seen.add(key)
            yield Track(track.name, track.stage, turns)


def _runs(turns: Sequence[Turn], end_chars: int) -> Iterator[list[Turn]]:
    """Stretches of turns that touch one another; the middle of a long turn lies between two of them."""
    run: list[Turn] = []
    for turn in turns:
        if len(turn.text) <= 2 * end_chars:
            run.append(turn)
            continue
        if run:
            yield [*run, Turn(turn.number, _head(turn.text, end_chars))]
        run = [Turn(turn.number, _tail(turn.text, end_chars))]
    if len(run) >= MIN_TURNS:
        yield run


def _windows(track: Track) -> list[Joined]:
    """Overlapping windows over each run, from its beginning, so that a longer conversation repeats the earlier ones."""
    return [
        _join(track, run[first:last], Extent.WINDOW)
        for run in _runs([turn for turn in track.turns if not turn.is_document], WINDOW_END_CHARS)
        for first, last in _spans([len(turn.text) + len(SEPARATOR) for turn in run])
    ]


def _spans(sizes: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Spans of at least two turns and about WINDOW_CHARS; each begins within the latter half of the one before."""
    first, last, size = 0, 0, 0
    while last < len(sizes):
        while last < len(sizes) and (size + sizes[last] <= WINDOW_CHARS or last - first < MIN_TURNS):
            size += sizes[last]
            last += 1
        yield first, last
        while (
            first < last - 1
            and last < len(sizes)
            and (size > WINDOW_CHARS // 2 or size + sizes[last] > WINDOW_CHARS)
        ):
            size -= sizes[first]
            first += 1


def _join(track: Track, turns: Sequence[Turn], extent: Extent) -> Joined:
    ends = itertools.accumulate(len(turn.text) + len(SEPARATOR) for turn in turns[:-1])
    return Joined(
        field=f"{track.name}[{turns[0].number}:{turns[-1].number + 1}]",
        stage=track.stage,
        text=SEPARATOR.join(turn.text for turn in turns),
        extent=extent,
        borders=tuple(end - len(SEPARATOR) for end in ends),
    )


def _head(text: str, chars: int) -> str:
    """About this much of the beginning, to the end of a word: half a word of encoded text could not be decoded."""
    space = _SPACE.search(text, chars, 2 * chars)
    return text[: space.start() if space else chars]


def _tail(text: str, chars: int) -> str:
    """About this much of the end, from the beginning of a word."""
    begin = len(text) - chars
    spaces = [space.end() for space in _SPACE.finditer(text, begin - chars, begin)]
    return text[spaces[-1] if spaces else begin :]
