"""Check an output while it is generated: nothing is released before the check that covers it.

A character may be released once no forbidden span that holds it can still be completed by text to come. In every
view a span is at most as long as the rules' largest `max_chars`, so what stands further than that (and a margin)
from a view's end is safe; characters that fold to nothing follow the next one that does not. Each chunk is judged
together with what is still held, so the total cost is linear in the output's length and the number of chunks.

Encoded output (base64, hexadecimal) is not decoded here; requests that ask for it are judged as requests.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from services.ethics.fold import Folder
from services.ethics.hard_blocks import (
    NAME,
    UNLESS_AHEAD_BYTES,
    UNLESS_REACH_BYTES,
    HardBlocks,
    evidence_of,
)
from services.ethics.judge import Evidence, Outcome, Stage
from services.ethics.laws import HardBlock
from services.ethics.views import View, streamed_views

# Released text that stays at hand, so that exceptions before a match and word boundaries are judged rightly.
CONTEXT_CHARS: Final = UNLESS_REACH_BYTES
# A match waits this long for an exception after it ("… a bomb" + " shelter"), so chunk borders change no decision.
AHEAD_CHARS: Final = UNLESS_AHEAD_BYTES
# A word being spelled out is joined only at its third letter: up to three gaps of three marks may still vanish.
UNSETTLED_CHARS: Final = 12
# More unreleased text than this can only come from floods of invisible characters, which no honest output has.
MAX_HELD_CHARS: Final = 16_384
# Long chunks are cut, so that the work on one piece stays small against the hold-back's own limit.
MAX_PIECE_CHARS: Final = 4_096
# Folds to nothing.
PADDING: Final = "\u200b"
FLOOD_RULE: Final = "output.invisible_flood"
FLOOD_CATEGORY: Final = "integrity.jailbreak"
FLOOD_LAW: Final = 3
_JSON_ESCAPE: Final = re.compile(r'\\(?:u[0-9A-Fa-f]{4}|["\\/bfnrt])')


class Channel(enum.Enum):
    """A field of the output; tool results are untrusted and judged by the rules for them."""

    TEXT = "text"
    REASONING = "reasoning"
    TOOL_ARGUMENTS = "tool_arguments"
    REFUSAL = "refusal"
    TOOL_RESULT = "tool_result"

    @property
    def stage(self) -> Stage:
        """Which rules apply."""
        return Stage.TOOL_RESULT if self is Channel.TOOL_RESULT else Stage.OUTPUT


@dataclass(frozen=True, slots=True)
class Progress:
    """How far one channel may be released, in characters from its start, and what was found instead."""

    released_chars: int
    evidence: tuple[Evidence, ...] = ()

    @property
    def is_refused(self) -> bool:
        """Whether something forbidden was found; nothing more of any channel may be released then."""
        return any(item.outcome is not Outcome.ALLOW for item in self.evidence)


def hold_back_chars(blocks: Sequence[HardBlock], stage: Stage) -> int:
    """How much of an output of this stage is held back, in folded characters.

    It is the longest match of any rule that applies, and what must follow it before the match is certain.
    """
    longest = max((block.max_chars or 0 for block in blocks if stage in block.stages), default=0)
    return longest + AHEAD_CHARS + UNSETTLED_CHARS


class ChannelChecker:
    """The check of one channel; feed it text in order, then finish it."""

    def __init__(
        self, channel: Channel, index: int, rules: HardBlocks, folder: Folder, *, hold_back: int
    ) -> None:
        self._field = f"{channel.value}[{index}]"
        self._stage = channel.stage
        self._is_json = channel is Channel.TOOL_ARGUMENTS
        self._rules = rules
        self._folder = folder
        self._hold_back = hold_back
        # Text from `_begin` on is still at hand: a little released context, then what is held.
        self._text = ""
        self._begin = 0
        self._released = 0
        self._refused: Progress | None = None

    def feed(self, text: str) -> Progress:
        """Take more text; the progress says how far the channel may be released now."""
        progress = Progress(self._released)
        for start in range(0, len(text), MAX_PIECE_CHARS):
            self._text += text[start : start + MAX_PIECE_CHARS]
            progress = self._check(is_last=False)
        return progress if self._refused is None else self._refused

    def finish(self) -> Progress:
        """Check what is still held as the end of the output."""
        return self._check(is_last=True)

    def _check(self, *, is_last: bool) -> Progress:
        if self._refused is not None:
            return self._refused
        folded = self._folder.fold(unescape(self._text) if self._is_json else self._text)
        views = tuple(streamed_views("", folded.text, folded.locate))
        visible = folded.locate(0, len(folded.text))[1]
        settled = len(self._text) if is_last else visible - AHEAD_CHARS
        # What began before the released end was judged, with all that follows it, before that was released.
        found = self._rules.find(views, self._stage, within=(self._released - self._begin, settled))
        if found:
            evidence = (evidence_of(finding, self._field, begin=self._begin) for finding in found)
            return self._refuse(tuple(evidence))
        keep_from = len(self._text) if is_last else min(self._safe_end(view) for view in views)
        self._released = max(self._released, self._begin + keep_from)
        if self._begin + len(self._text) - self._released > MAX_HELD_CHARS:
            return self._refuse((self._flood(),))
        self._forget()
        return Progress(self._released)

    def _safe_end(self, view: View) -> int:
        """How far the text at hand may be released as far as this view goes."""
        if view.name == "reversed":
            return len(self._text)
        safe = len(view.text) - self._hold_back
        # Invisible characters after the last safe one stay with the held ones.
        return 0 if safe <= 0 else view.locate(safe - 1, safe)[1]

    def _forget(self) -> None:
        surplus = self._released - CONTEXT_CHARS - self._begin
        if surplus > 0:
            self._text = self._text[surplus:]
            self._begin += surplus

    def _refuse(self, evidence: tuple[Evidence, ...]) -> Progress:
        self._refused = Progress(self._released, evidence)
        self._text = ""
        return self._refused

    def _flood(self) -> Evidence:
        start, end = self._released, self._begin + len(self._text)
        rule = FLOOD_RULE
        return Evidence(
            NAME, FLOOD_LAW, FLOOD_CATEGORY, Outcome.REFUSE, rule, self._field, start, end, "plain"
        )


class OutputCheck:
    """The check of one whole output: many channels, one decision. The first refusal ends all of them."""

    def __init__(self, rules: HardBlocks, folder: Folder, hold_back: Mapping[Stage, int]) -> None:
        self._rules = rules
        self._folder = folder
        self._hold_back = hold_back
        self._channels: dict[tuple[Channel, int], ChannelChecker] = {}
        self._refused: Progress | None = None

    def feed(self, channel: Channel, index: int, text: str) -> Progress:
        """Take more text of a channel; after a refusal nothing is checked or released any more."""
        if self._refused is not None:
            return self._refused
        return self._note(self._checker(channel, index).feed(text))

    def finish(self) -> list[tuple[Channel, int, Progress]]:
        """Check the ends of all channels; empty when any of them is refused, for then none may be released."""
        if self._refused is not None:
            return []
        ends = [(*key, self._note(checker.finish())) for key, checker in self._channels.items()]
        return [] if any(progress.is_refused for _, _, progress in ends) else ends

    @property
    def refused(self) -> Progress | None:
        """The refusal, once there is one."""
        return self._refused

    def _checker(self, channel: Channel, index: int) -> ChannelChecker:
        key = (channel, index)
        if key not in self._channels:
            hold_back = self._hold_back[channel.stage]
            self._channels[key] = ChannelChecker(
                channel, index, self._rules, self._folder, hold_back=hold_back
            )
        return self._channels[key]

    def _note(self, progress: Progress) -> Progress:
        if progress.is_refused and self._refused is None:
            self._refused = progress
        return progress


def unescape(text: str) -> str:
    """JSON text with its escapes read, each padded with invisible characters so that all positions stay."""
    return _JSON_ESCAPE.sub(_plain_escape, text)


def _plain_escape(match: re.Match[str]) -> str:
    escape = match.group()
    if escape[1] == "u":
        return chr(int(escape[-4:], 16)).ljust(len(escape), PADDING)
    return (escape[1] if escape[1] in '"\\/' else " ").ljust(len(escape), PADDING)
