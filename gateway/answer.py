"""An answer between its backend and its reader: what is generated, what is checked, what has left.  Pure.

Everything a model produces is held until its check: text, reasoning, refusals, tool arguments, and also what is easily
forgotten: names of tools that the client did not declare, the ids of calls, and the tokens inside log probabilities.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from gateway.release import HoldBack, Piece, Track
from kala.errors import UnavailableError
from kala.ethics.v1 import ethics_pb2
from kala.inference.v1 import inference_pb2

TEXT: Final = Track(ethics_pb2.OUTPUT_CHANNEL_TEXT, 0)
REASONING: Final = Track(ethics_pb2.OUTPUT_CHANNEL_REASONING, 0)
REFUSAL: Final = Track(ethics_pb2.OUTPUT_CHANNEL_REFUSAL, 0)

NAMES: Final = Track(ethics_pb2.OUTPUT_CHANNEL_TEXT, 1)
"""Ids of calls, and names of tools that the request does not declare, are the backend's own words, so they are checked
as text."""

CHOSEN_TOKENS: Final = Track(ethics_pb2.OUTPUT_CHANNEL_TEXT, 2)
"""Tokens in log probabilities need not add up to the text, so they are checked on their own."""

FIRST_ALTERNATIVES: Final = 3
"""From this index on, one text track per rank: what the alternatives of that rank would have spelled."""

MAX_CALLS: Final = 128
"""The contract's limit for positions of one channel; OpenAI's clients know as many tools."""

MAX_ALTERNATIVES: Final = 20
"""OpenAI's limit for `top_logprobs`."""

TOO_MANY_CALLS: Final = "TOO_MANY_CALLS"

MAX_BEFORE_CHARS: Final = 512
"""Longer than the longest match of any rule; a test compares them."""

MAX_CHUNK_CHARS: Final = 256 * 1024
"""A piece of one check message: at most 1 MiB in UTF-8, the contract's limit."""

TEXT_FORM: Final = "text"
MESSAGE_FORM: Final = "message"


def tool_arguments(index: int) -> Track:
    """Give the track of one tool call's arguments."""
    return Track(ethics_pb2.OUTPUT_CHANNEL_TOOL_ARGUMENTS, index)


def _size_of(*words: str) -> int:
    return sum(len(word.encode()) for word in words)


@dataclass(slots=True)
class ToolCallText:
    """One tool call, as far as it is known."""

    id: str = ""
    name: str = ""
    arguments: str = ""


@dataclass(slots=True)
class Answer:
    """The words of an answer."""

    text: str = ""
    reasoning: str = ""
    refusal: str = ""
    tool_calls: dict[int, ToolCallText] = field(default_factory=dict)
    text_form: str = TEXT_FORM
    """How the text is to be read, where it is all there is."""

    @property
    def size(self) -> int:
        """Count its words in bytes."""
        calls = [word for call in self.tool_calls.values() for word in (call.name, call.arguments)]
        return _size_of(self.text, self.reasoning, self.refusal, *calls)

    @property
    def form(self) -> str:
        """Say how `to_bytes` spells the answer: `text` (or as `text_form` says) when it is only text, else `message`."""
        return MESSAGE_FORM if self.reasoning or self.refusal or self.tool_calls else self.text_form

    def to_bytes(self) -> bytes:
        """Give the bytes that the log commits to: the text itself, or the message as JSON with sorted keys."""
        if self.form != MESSAGE_FORM:
            return self.text.encode()
        message = {
            "content": self.text,
            "reasoning": self.reasoning,
            "refusal": self.refusal,
            "tool_calls": [
                {"arguments": call.arguments, "id": call.id, "index": index, "name": call.name}
                for index, call in sorted(self.tool_calls.items())
            ],
        }
        return json.dumps(message, ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode()


@dataclass(frozen=True, slots=True)
class ToolPiece:
    """More of one tool call; id and name on its first piece only."""

    index: int
    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Release:
    """What may leave now."""

    text: str = ""
    reasoning: str = ""
    refusal: str = ""
    tool_calls: tuple[ToolPiece, ...] = ()
    logprobs: tuple[inference_pb2.TokenLogprob, ...] = ()
    step: Mapping[str, object] | None = None
    """A call of one of KALA's tools that ended: a message is over, and the next one begins."""

    @property
    def size(self) -> int:
        """Count its words in bytes."""
        calls = [word for piece in self.tool_calls for word in (piece.name, piece.arguments)]
        return _size_of(self.text, self.reasoning, self.refusal, *calls)

    def __bool__(self) -> bool:
        return bool(
            self.text or self.reasoning or self.refusal or self.tool_calls or self.logprobs or self.step
        )


@dataclass(slots=True)
class _Call:
    """A tool call on its way: what is checked waits for its name to be."""

    words: ToolCallText = field(default_factory=ToolCallText)
    names_end: int = 0  # in NAMES; 0 when the backend chose neither id nor name
    told: ToolCallText | None = None  # the id and name that have left; None before they have
    waiting: str = ""

    def is_due(self, names_checked: int, *, is_final: bool) -> bool:
        """Tell whether more of it may leave: with its name, or at the end, where it has none."""
        if names_checked < self.names_end:
            return False
        if self.told is not None:
            return bool(self.waiting)
        return is_final or bool(self.waiting and self.words.name)

    def left(self, held: HoldBack, index: int) -> ToolCallText:
        """Give what of this call has left: what is checked but for what still waits for the name."""
        told = self.told or ToolCallText()
        checked = held.released(tool_arguments(index))
        return ToolCallText(told.id, told.name, checked[: len(checked) - len(self.waiting)])

    def tell(self, index: int) -> ToolPiece:
        """Give what may leave now; id and name only once, so what a backend says of them later is not told."""
        head = ("", "") if self.told is not None else (self.words.id, self.words.name)
        if self.told is None:
            self.told = ToolCallText(*head)
        arguments, self.waiting = self.waiting, ""
        return ToolPiece(index, *head, arguments)


@dataclass(frozen=True, slots=True)
class _HeldLogprob:
    entry: inference_pb2.TokenLogprob
    needs: tuple[tuple[Track, int], ...]


class AnswerBuffer:
    """Takes a backend's deltas in, gives the check what it is to read, and lets out what is checked."""

    def __init__(self, declared_tools: Iterable[str] = (), *, before: str = "") -> None:
        """`before` is text that the same reader got just before: no word passes because two answers share it."""
        self._declared = frozenset(declared_tools)
        self._held = HoldBack()
        if before:
            self._held.precede(TEXT, before[-MAX_BEFORE_CHARS:])
        self._calls: dict[int, _Call] = {}
        self._logprobs: deque[_HeldLogprob] = deque()

    def take_in(self, delta: inference_pb2.ChatDelta) -> None:
        """Hold a delta's words; UnavailableError for more calls at once than can be checked."""
        for track, text in ((REASONING, delta.reasoning), (TEXT, delta.text), (REFUSAL, delta.refusal)):
            if text:
                self._held.push(track, text)
        for piece in delta.tool_calls:
            self._take_call(piece)
        for entry in delta.logprobs:
            self._take_logprob(entry)

    @property
    def unsent(self) -> int:
        """How many characters no check has yet."""
        return self._held.unsent

    def take_unsent(self) -> list[Piece]:
        """Give what must be sent to the check, in order, in pieces that one message may hold."""
        return [
            Piece(track, text[at : at + MAX_CHUNK_CHARS])
            for track, text in self._held.take_unsent()
            for at in range(0, len(text), MAX_CHUNK_CHARS)
        ]

    def check(self, track: Track, characters: int) -> None:
        """Note that a track is checked up to an offset in code points."""
        self._held.check(track, characters)

    def release(self, *, is_final: bool = False) -> Release:
        """Let out what is checked; `is_final` says that no more will come, so calls without arguments leave too."""
        words: dict[Track, str] = {}
        for piece in self._held.release():
            words[piece.track] = piece.text
            if piece.track.channel == ethics_pb2.OUTPUT_CHANNEL_TOOL_ARGUMENTS:
                self._calls[piece.track.position].waiting += piece.text
        return Release(
            text=words.get(TEXT, ""),
            reasoning=words.get(REASONING, ""),
            refusal=words.get(REFUSAL, ""),
            tool_calls=tuple(self._release_calls(is_final=is_final)) if self._calls else (),
            logprobs=tuple(self._release_logprobs()) if self._logprobs else (),
        )

    @property
    def held(self) -> int:
        """How many characters have not left, of those that are checked before they do."""
        return self._held.held

    @property
    def has_tool_calls(self) -> bool:
        """Tell whether the model called tools."""
        return bool(self._calls)

    @property
    def has_released_text(self) -> bool:
        """Tell whether any of the text has left."""
        return self._held.released_upto(TEXT) > 0

    def generated(self) -> Answer:
        """Give all words, released or not; for the record, never for the client."""
        calls = {
            index: ToolCallText(call.words.id, call.words.name, self._held.generated(tool_arguments(index)))
            for index, call in self._calls.items()
        }
        return Answer(
            self._held.generated(TEXT), self._held.generated(REASONING), self._held.generated(REFUSAL), calls
        )

    def released(self) -> Answer:
        """Give the words that have left through `release`."""
        calls = {
            index: call.left(self._held, index)
            for index, call in self._calls.items()
            if call.told is not None
        }
        return Answer(
            self._held.released(TEXT), self._held.released(REASONING), self._held.released(REFUSAL), calls
        )

    def _take_call(self, piece: inference_pb2.ToolCall) -> None:
        if piece.index >= MAX_CALLS:
            raise UnavailableError(
                f"the backend called more than {MAX_CALLS} tools at once", reason=TOO_MANY_CALLS
            )
        call = self._calls.setdefault(piece.index, _Call())
        if piece.id and not call.words.id:
            call.words.id = piece.id
            call.names_end = self._held.push(NAMES, piece.id + "\n")
        if piece.name and not call.words.name:
            call.words.name = piece.name
            if piece.name not in self._declared:
                call.names_end = self._held.push(NAMES, piece.name + "\n")
        if piece.arguments:
            self._held.push(tool_arguments(piece.index), piece.arguments)

    def _take_logprob(self, entry: inference_pb2.TokenLogprob) -> None:
        # Clients ask for so many at most; a backend that gives more gives what no track is for.
        del entry.top[MAX_ALTERNATIVES:]
        needs = [(CHOSEN_TOKENS, self._held.push(CHOSEN_TOKENS, entry.token))]
        for rank, alternative in enumerate(entry.top, start=FIRST_ALTERNATIVES):
            track = Track(ethics_pb2.OUTPUT_CHANNEL_TEXT, rank)
            needs.append((track, self._held.push(track, alternative.token)))
        for token in (entry, *entry.top):
            if token.token_bytes != token.token.encode():
                # Not what was checked: half a character, or anything at all.  Clients know tokens without bytes.
                token.ClearField("token_bytes")
        self._logprobs.append(_HeldLogprob(entry, tuple(needs)))

    def _release_calls(self, *, is_final: bool) -> Iterable[ToolPiece]:
        names_checked = self._held.released_upto(NAMES)
        for index, call in self._calls.items():
            if call.is_due(names_checked, is_final=is_final):
                yield call.tell(index)

    def _release_logprobs(self) -> Iterable[inference_pb2.TokenLogprob]:
        while self._logprobs:
            held = self._logprobs[0]
            if any(self._held.released_upto(track) < end for track, end in held.needs):
                return
            yield self._logprobs.popleft().entry
