"""The check of one output by all judges: rules at every chunk, judges that read at every window, one decision.

A character may be released once the rules have passed it (`output_check.py`) and the window that holds it has been read
(`output_windows.py`). One window after the other is asked about while the stream waits, so nothing runs on when it is
cancelled, and what waits is held back by the transport. Words that are split over several channels are joined at the
finish, before the last of any channel is released.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice, starmap
from typing import Final

from services.ethics.action_text import values_said
from services.ethics.conversation import RULE_END_CHARS, Joined, Track, Turn, joined
from services.ethics.judge import Evidence, Extent, Judge, Material, Outcome, Part, Stage
from services.ethics.judgement import OnFault, settle
from services.ethics.output_check import MAX_PIECE_CHARS, Channel, OutputCheck, Progress, unescape
from services.ethics.output_windows import Window, WindowCutter
from services.ethics.texts import DEFAULT_LANGUAGE
from services.ethics.views import Reader

# Windows that are asked about together; a long chunk brings many.
MAX_BATCH: Final = 16
# The end of the request is context for every window; the classifier reads its last 64 tokens.
CONTEXT_CHARS: Final = 400
# Joins of channels that judges read at the finish; rules read all of them.
MAX_JOINED_WINDOWS: Final = 8
# Both ends of a channel stay at hand for that, whole up to twice this length.
KEPT_CHARS: Final = 2 * RULE_END_CHARS
JOINED_FIELD: Final = "output"
# In this order the channels reach a reader, and in this order they are joined.
_ORDER: Final = (Channel.REASONING, Channel.TEXT, Channel.REFUSAL, Channel.TOOL_ARGUMENTS)


@dataclass(frozen=True, slots=True)
class Stretch:
    """One window to be read; `begin` is where it stands in its field."""

    field: str
    stage: Stage
    text: str
    begin: int


@dataclass(frozen=True, slots=True)
class Found:
    """What judges saw in windows, and which of them failed."""

    evidence: tuple[Evidence, ...] = ()
    failed: tuple[str, ...] = ()


ReadStretches = Callable[[Sequence[Stretch]], Awaitable[Found]]
ReadJoins = Callable[[Sequence[Joined]], Sequence[Evidence]]


@dataclass(slots=True)
class _Track:
    """One channel: where its windows are cut, how far they are read, and its two ends."""

    name: str
    channel: Channel
    cutter: WindowCutter = field(default_factory=WindowCutter)
    read_until: int = 0
    allowed_until: int = 0
    head: str = ""
    tail: str = ""

    def keep(self, text: str) -> None:
        """Keep the ends for the join at the finish."""
        room = KEPT_CHARS - len(self.head)
        self.head += text[:room]
        self.tail = (self.tail + text[max(room, 0) :])[-KEPT_CHARS:]

    def said(self) -> str:
        """What is left of the channel's words; the values of arguments without their JSON."""
        text = self.head + self.tail
        return (values_said(text) or unescape(text)) if self.channel is Channel.TOOL_ARGUMENTS else text

    def stretch(self, window: Window) -> Stretch:
        """The window as it is read: escapes in arguments read, every character in its place."""
        text = unescape(window.text) if self.channel is Channel.TOOL_ARGUMENTS else window.text
        return Stretch(self.name, self.channel.stage, text, window.start)


class OutputStream:
    """Takes an output as it comes; nothing is released once `is_over`.

    `read` asks the judges that read, and is None where there are none; `read_joins` asks the rules about joined ends;
    `language` is the request's, for the words of a refusal.
    """

    def __init__(
        self,
        rules: OutputCheck,
        read: ReadStretches | None,
        read_joins: ReadJoins,
        language: str = DEFAULT_LANGUAGE,
    ) -> None:
        self._rules = rules
        self._read = read
        self._read_joins = read_joins
        self._tracks: dict[tuple[Channel, int], _Track] = {}
        self._refused: tuple[Evidence, ...] = ()
        self._strongest: Evidence | None = None
        self.failed: tuple[str, ...] = ()
        self.language = language

    @property
    def is_over(self) -> bool:
        """Whether something was refused or a judge failed; nothing more of any channel may be released then."""
        return bool(self._refused or self.failed)

    @property
    def evidence(self) -> tuple[Evidence, ...]:
        """What speaks against the output, or else the strongest of what judges found harmless."""
        return self._refused or (() if self._strongest is None else (self._strongest,))

    @property
    def channels(self) -> int:
        """How many channels there are."""
        return len(self._tracks)

    async def feed(self, channel: Channel, index: int, text: str) -> Progress:
        """Take more text of a channel; the progress says how far that channel may be released."""
        track = self._track(channel, index)
        if not text and not self.is_over:
            self._rules.feed(channel, index, text)
        for start in range(0, len(text), MAX_PIECE_CHARS):
            if self.is_over:
                break
            await self._take(track, index, text[start : start + MAX_PIECE_CHARS])
            # The rules read a long chunk for seconds: others go on in between.
            await asyncio.sleep(0)
        return self._progress(track)

    async def flush(self) -> list[tuple[Channel, int, Progress]]:
        """Read at once what only waits for its window to be complete; no window where the rules hold it back anyway."""
        waiting = {
            key: window
            for key, track in self._tracks.items()
            if track.allowed_until > track.read_until and (window := track.cutter.pending()) is not None
        }
        stretches = [(self._tracks[key], window) for key, window in waiting.items()]
        await self._read_windows(stretches)
        return [] if self.is_over else [(*key, self._progress(self._tracks[key])) for key in waiting]

    async def finish(
        self, last: Iterable[tuple[Channel, int, str]] = ()
    ) -> list[tuple[Channel, int, Progress]]:
        """Take the `last` texts, check the ends of all channels, and what they say together; empty where anything is refused.

        The windows of those texts are read together with the ends: on several cores they take as long as the longest.
        """
        windows: list[tuple[_Track, Window]] = []
        for channel, index, text in last:
            windows += await self._cut(channel, index, text)
        if self.is_over:
            return []
        for channel, index, progress in self._rules.finish():
            self._tracks[channel, index].allowed_until = progress.released_chars
        self._note_rules()
        windows += [(track, window) for track in self._tracks.values() for window in track.cutter.finish()]
        await self._read_windows(windows)
        await self._read_across()
        return self._ends()

    async def _cut(self, channel: Channel, index: int, text: str) -> list[tuple[_Track, Window]]:
        """Have the rules read more text of a channel, and give its windows, which nobody has read yet."""
        track = self._track(channel, index)
        windows: list[tuple[_Track, Window]] = []
        for start in range(0, len(text) or 1, MAX_PIECE_CHARS):
            if self.is_over:
                break
            piece = text[start : start + MAX_PIECE_CHARS]
            self._rules.feed(channel, index, piece)
            windows += [(track, window) for window in track.cutter.feed(piece)]
            track.keep(piece)
            self._note_rules()
            # As in `feed`.
            await asyncio.sleep(0)
        return windows

    def _ends(self) -> list[tuple[Channel, int, Progress]]:
        return [] if self.is_over else [(*key, self._progress(track)) for key, track in self._tracks.items()]

    def _track(self, channel: Channel, index: int) -> _Track:
        return self._tracks.setdefault((channel, index), _Track(f"{channel.value}[{index}]", channel))

    def _progress(self, track: _Track) -> Progress:
        released = track.allowed_until if self._read is None else min(track.allowed_until, track.read_until)
        return Progress(released, self._refused)

    async def _take(self, track: _Track, index: int, piece: str) -> None:
        progress = self._rules.feed(track.channel, index, piece)
        windows = track.cutter.feed(piece)
        track.keep(piece)
        if progress.is_refused:
            self._note_rules()
            return
        await self._read_windows([(track, window) for window in windows])
        track.allowed_until = progress.released_chars

    async def _read_windows(self, windows: Sequence[tuple[_Track, Window]]) -> None:
        """Have windows read, a bounded number at a time; each that passes moves its channel on."""
        for first in range(0, len(windows), MAX_BATCH):
            batch = windows[first : first + MAX_BATCH]
            await self._judge([track.stretch(window) for track, window in batch])
            if self.is_over:
                # Also where it was over before: nothing was asked then.
                return
            for track, window in batch:
                track.read_until = max(track.read_until, window.end)

    async def _judge(self, stretches: Sequence[Stretch]) -> None:
        if self._read is None or not stretches or self.is_over:
            return
        found = await self._read(stretches)
        self.failed = found.failed
        self._refuse(item for item in found.evidence if item.outcome is not Outcome.ALLOW)
        passed = [item for item in found.evidence if item.outcome is Outcome.ALLOW]
        if self._strongest is not None:
            passed.append(self._strongest)
        self._strongest = max(passed, key=lambda item: item.score, default=None)

    async def _read_across(self) -> None:
        """Judge what the channels say together, for words may be split between them; nothing once it is over."""
        joins = list(joined(list(self._joined_tracks())))
        in_full = [join for join in joins if join.extent is Extent.JOIN]
        if not self.is_over:
            self._refuse(item for item in self._read_joins(in_full) if item.outcome is not Outcome.ALLOW)
        windows = islice((join for join in joins if join.extent is Extent.WINDOW), MAX_JOINED_WINDOWS)
        await self._judge([Stretch(join.field, join.stage, join.text, 0) for join in windows])

    def _joined_tracks(self) -> Iterable[Track]:
        said = [track for channel in _ORDER for track in self._in_order(channel)]
        yield Track(JOINED_FIELD, Stage.OUTPUT, tuple(Turn(n, track.said()) for n, track in enumerate(said)))
        results = self._in_order(Channel.TOOL_RESULT)
        yield Track(
            Channel.TOOL_RESULT.value,
            Stage.TOOL_RESULT,
            tuple(Turn(n, track.said()) for n, track in enumerate(results)),
        )

    def _in_order(self, channel: Channel) -> list[_Track]:
        return [
            self._tracks[key] for key in sorted(self._tracks, key=lambda key: key[1]) if key[0] is channel
        ]

    def _note_rules(self) -> None:
        if self._rules.refused is not None:
            self._refuse(self._rules.refused.evidence)

    def _refuse(self, evidence: Iterable[Evidence]) -> None:
        self._refused = self._refused or tuple(evidence)


class StretchReader:
    """Asks judges about windows of an output; what they leave open and nobody settles is harmless enough to release."""

    def __init__(self, judges: Sequence[Judge], reader: Reader, request_text: str, on_fault: OnFault) -> None:
        self._judges = judges
        self._reader = reader
        self._context = request_text[-CONTEXT_CHARS:]
        self._on_fault = on_fault

    async def __call__(self, stretches: Sequence[Stretch]) -> Found:
        """What every judge saw, in the channels' own places; a judge that raises is named."""
        # Windows of one channel overlap, so each is asked about under a name of its own.
        named = {f"{stretch.field}@{number}": stretch for number, stretch in enumerate(stretches)}
        material = Material(tuple(starmap(self._part, named.items())))
        found: list[Evidence] = []
        failed: list[str] = []
        for judge in self._judges:
            try:
                found += await judge.judge(material, tuple(found))
            except Exception as error:  # noqa: BLE001 - whatever a judge raises, nothing more may be released
                self._on_fault(judge.name, error)
                failed.append(judge.name)
        settled = [item for item in settle(found)[0] if not item.is_open]
        return Found(tuple(_in_place(item, named[item.field]) for item in settled), tuple(failed))

    def _part(self, name: str, stretch: Stretch) -> Part:
        reading = self._reader.read(stretch.text)
        return Part(name, stretch.stage, reading, Extent.WINDOW, context=self._context)


def _in_place(item: Evidence, stretch: Stretch) -> Evidence:
    start, end = stretch.begin + item.start, stretch.begin + item.end
    return replace(item, field=stretch.field, start=start, end=end)
