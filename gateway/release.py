"""The hold-back: nothing leaves before the check that covers it (released ⊆ checked).  Pure.

Every field of an answer is a track of its own with its own offsets, in Unicode code points, as the contract of
`CheckOutput` counts them. Each character is taken in, sent to the check and let out once: the work is linear in the text.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple


class Track(NamedTuple):
    """One checked field: the number of its `OutputChannel`, and its position among several of the kind."""

    channel: int
    position: int


class Piece(NamedTuple):
    """Text of one track that may leave, or that is to be checked."""

    track: Track
    text: str


@dataclass(slots=True)
class _Cursor:
    """How far a reader of a growing list of parts has come: into which part, how deep, and how far in all."""

    part: int = 0
    inside: int = 0
    taken: int = 0

    def take(self, parts: list[str], upto: int) -> str:
        """Give what follows up to an offset from the start; nothing where that has been taken."""
        wanted = upto - self.taken
        found: list[str] = []
        while wanted > 0:
            text = parts[self.part][self.inside : self.inside + wanted]
            found.append(text)
            wanted -= len(text)
            self.inside += len(text)
            if self.inside == len(parts[self.part]):
                self.part, self.inside = self.part + 1, 0
        self.taken = max(self.taken, upto)
        return "".join(found)


@dataclass(slots=True)
class _Held:
    """What one track generated, how far the check has it, and how far it may and did leave."""

    parts: list[str] = field(default_factory=list)
    before: int = 0  # characters at the beginning that left earlier, in another answer
    generated: int = 0
    checked: int = 0
    sent: _Cursor = field(default_factory=_Cursor)
    released: _Cursor = field(default_factory=_Cursor)


class HoldBack:
    """Holds an answer's text until it is checked; text leaves only through `release`."""

    def __init__(self) -> None:
        self._tracks: dict[Track, _Held] = {}
        self._unsent = 0
        self._held = 0

    def precede(self, track: Track, text: str) -> None:
        """Say what left just before a track begins: the check reads it too, and it does not leave again."""
        held = self._tracks[track] = _Held([text] if text else [], before=len(text), generated=len(text))
        held.released.take(held.parts, len(text))
        self._unsent += len(text)

    def push(self, track: Track, text: str) -> int:
        """Take generated text in; gives how much of the track there is now."""
        held = self._tracks.setdefault(track, _Held())
        if text:
            held.parts.append(text)
            held.generated += len(text)
            self._unsent += len(text)
            self._held += len(text)
        return held.generated

    @property
    def unsent(self) -> int:
        """How many characters no check has yet."""
        return self._unsent

    def take_unsent(self) -> list[Piece]:
        """Give what the check is to have next, each character once, in the order of the tracks' first text."""
        if not self._unsent:
            return []
        self._unsent = 0
        return [
            Piece(track, text)
            for track, held in self._tracks.items()
            if (text := held.sent.take(held.parts, held.generated))
        ]

    def check(self, track: Track, characters: int) -> None:
        """Note that a track is checked up to an offset.

        An offset beyond what the check was given covers only that: text that it gets later is not checked by it.
        An offset below an earlier one withdraws what has not left yet.
        """
        held = self._tracks.get(track)
        if held is not None:
            held.checked = min(characters, held.sent.taken)

    def release(self) -> list[Piece]:
        """Let out everything that is checked, each character once, in the order of the tracks' first text."""
        leaving = [
            Piece(track, text)
            for track, held in self._tracks.items()
            if (text := held.released.take(held.parts, held.checked))
        ]
        self._held -= sum(len(piece.text) for piece in leaving)
        return leaving

    @property
    def held(self) -> int:
        """How many characters have not left."""
        return self._held

    def released_upto(self, track: Track) -> int:
        """Give how many characters of a track have left; not those that left before it."""
        held = self._tracks.get(track)
        return 0 if held is None else held.released.taken - held.before

    def generated(self, track: Track) -> str:
        """Give all text of a track, released or not; for the record, never for the client."""
        held = self._tracks.get(track)
        return "" if held is None else "".join(held.parts)[held.before :]

    def released(self, track: Track) -> str:
        """Give the text of a track that has left."""
        held = self._tracks.get(track)
        return "" if held is None else "".join(held.parts)[held.before : held.released.taken]
