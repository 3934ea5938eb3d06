"""The resources of a tiled log: which tiles a tree of some size has, and how their paths are spelled (c2sp.org/tlog-tiles)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from kala.audit.report import TILE_LEVELS, TILE_WIDTH
from kala.errors import VerificationError

CHECKPOINT_PATH: Final = "checkpoint"
# How the path of an entry bundle names its level.
ENTRIES: Final = "entries"
MAX_LEVEL: Final = 63
# Each entry of a bundle follows its length in two bytes, big-endian.
LENGTH_BYTES: Final = 2
MAX_ENTRY_BYTES: Final = (1 << 16) - 1

_PATH: Final = re.compile(
    r"tile/(?P<level>entries|0|[1-9][0-9]?)/(?P<number>(?:x[0-9]{3}/){0,6}[0-9]{3})(?:\.p/(?P<width>[1-9][0-9]{0,2}))?"
)


@dataclass(frozen=True, slots=True)
class TilePath:
    """One tile of hashes, or with `level` None one bundle of entries; `width` is 256 for a full one."""

    level: int | None
    number: int
    width: int = TILE_WIDTH

    @property
    def first(self) -> int:
        """The first hash of its level, or entry, that it holds."""
        return self.number * TILE_WIDTH

    @property
    def last(self) -> int:
        """The end, exclusive, of what it holds."""
        return self.first + self.width

    def is_in(self, size: int) -> bool:
        """Whether a tree of this size has all that it holds."""
        return self.last <= size >> TILE_LEVELS * (self.level or 0)

    def __str__(self) -> str:
        digits = str(self.number)
        digits = digits.zfill(-(-len(digits) // 3) * 3)
        groups = [digits[i : i + 3] for i in range(0, len(digits), 3)]
        place = "/".join([*(f"x{group}" for group in groups[:-1]), groups[-1]])
        part = "" if self.width == TILE_WIDTH else f".p/{self.width}"
        return f"tile/{ENTRIES if self.level is None else self.level}/{place}{part}"

    @classmethod
    def parse(cls, path: str) -> TilePath:
        """Reads `tile/<L>/<N>[.p/<W>]`, each in its one spelling; raises `VerificationError` for anything else."""
        found = _PATH.fullmatch(path)
        if found is not None:
            level = None if found["level"] == ENTRIES else int(found["level"])
            width = TILE_WIDTH if found["width"] is None else int(found["width"])
            tile = cls(level, int(re.sub("[x/]", "", found["number"])), width)
            if (level or 0) <= MAX_LEVEL and str(tile) == path:
                return tile
        raise VerificationError(f"{path[:128]!r} is not the path of a tile")


def tiles_of(size: int, *, since: int = 0) -> Iterator[TilePath]:
    """Every tile that a tree of this size has, bottom level first; with `since` only those that one of that size lacks."""
    level = 0
    while size >> TILE_LEVELS * level:
        yield from _row(level, size >> TILE_LEVELS * level, since >> TILE_LEVELS * level)
        level += 1


def bundles_of(size: int, *, since: int = 0) -> Iterator[TilePath]:
    """Every bundle of entries of a log of this size; with `since` only those that one of that size lacks."""
    return _row(None, size, since)


def _row(level: int | None, count: int, since: int) -> Iterator[TilePath]:
    if count == since:
        return
    for number in range(since // TILE_WIDTH, count // TILE_WIDTH):
        yield TilePath(level, number)
    if count % TILE_WIDTH:
        yield TilePath(level, count // TILE_WIDTH, count % TILE_WIDTH)


def bundle(entries: Iterable[bytes]) -> bytes:
    """The entries as one bundle; each must be at most 65,535 bytes long."""
    return b"".join(len(entry).to_bytes(LENGTH_BYTES, "big") + entry for entry in entries)


def unbundle(data: bytes) -> Sequence[bytes]:
    """The entries of a bundle; raises `VerificationError` when it ends within one."""
    entries: list[bytes] = []
    place, end = 0, len(data)
    while place < end:
        start = place + LENGTH_BYTES
        place = start + int.from_bytes(data[place:start], "big")
        if start > end or place > end:
            raise VerificationError("a bundle of entries ends within an entry")
        entries.append(data[start:place])
    return entries
