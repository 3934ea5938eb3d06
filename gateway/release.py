"""The hold-back: nothing leaves before the check that covers it (released ⊆ checked).  Pure.

Every field of an answer is a track of its own with its own offsets, in Unicode code points, as the contract of
`CheckOutput` counts them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple


class Track(NamedTuple):
    """One checked field: the number of its `OutputChannel`, and its position among several of the kind."""

    channel: int
    position: int


class Piece(NamedTuple):
    """Text of one track that may leave now."""

    track: Track
    text: str


@dataclass(slots=True)
class _Held:
    """What one track generated, and how far it may and did leave."""

    parts: list[str] = field(default_factory=list)
    waiting: str = ""
    generated: int = 0
    checked: int = 0
    released: int = 0

    def take(self) -> str:
        """Give what is checked and has not left yet."""
        count = min(self.checked, self.generated) - self.released
        if count <= 0:
            return ""
        text, self.waiting = self.waiting[:count], self.waiting[count:]
        self.released += count
        return text


class HoldBack:
    """Holds an answer's text until it is checked; text leaves only through `release`."""

    def __init__(self) -> None:
        self._tracks: dict[Track, _Held] = {}

    def push(self, track: Track, text: str) -> None:
        """Take generated text in."""
        held = self._tracks.setdefault(track, _Held())
        held.parts.append(text)
        held.waiting += text
        held.generated += len(text)

    def check(self, track: Track, characters: int) -> None:
        """Note that a track is checked up to an offset.

        An offset beyond what was generated covers only what was generated: text that comes later is not checked by it.
        An offset below an earlier one withdraws what has not left yet.
        """
        held = self._tracks.get(track)
        if held is not None:
            held.checked = min(characters, held.generated)

    def release(self) -> list[Piece]:
        """Let out everything that is checked, each character once, in the order of the tracks' first text."""
        return [Piece(track, text) for track, held in self._tracks.items() if (text := held.take())]

    @property
    def is_empty(self) -> bool:
        """Tell whether everything generated has left."""
        return all(held.released == held.generated for held in self._tracks.values())

    def released_upto(self, track: Track) -> int:
        """Give how many characters of a track have left."""
        held = self._tracks.get(track)
        return 0 if held is None else held.released

    def generated(self, track: Track) -> str:
        """Give all text of a track, released or not; for the record, never for the client."""
        held = self._tracks.get(track)
        return "" if held is None else "".join(held.parts)

    def released(self, track: Track) -> str:
        """Give the text of a track that has left."""
        held = self._tracks.get(track)
        return "" if held is None else "".join(held.parts)[: held.released]
