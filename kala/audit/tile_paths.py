"""Where a log's tiles lie below its address, as c2sp.org/tlog-tiles names them, and how a bundle of entries is spelled."""

from __future__ import annotations

from typing import Final

from kala.audit.report import TILE_WIDTH

CHECKPOINT_PATH: Final = "checkpoint"
# A number is written in groups of three digits, all but the last with an x before them.
_GROUP: Final = 1000
_LENGTH_BYTES: Final = 2


def tile_path(level: int, number: int, width: int = TILE_WIDTH) -> str:
    """The path of a tile of `width` hashes; a full one has no `.p/` at its end."""
    return f"tile/{level}/{_number(number)}{_partial(width)}"


def entries_path(number: int, width: int = TILE_WIDTH) -> str:
    """The path of the bundle with the entries below the level-0 tile of this number."""
    return f"tile/entries/{_number(number)}{_partial(width)}"


def _number(number: int) -> str:
    groups = [f"{number % _GROUP:03}"]
    while number := number // _GROUP:
        groups.append(f"x{number % _GROUP:03}")
    return "/".join(reversed(groups))


def _partial(width: int) -> str:
    return "" if width == TILE_WIDTH else f".p/{width}"


def split_bundle(bundle: bytes) -> list[bytes]:
    """The entries of a bundle: each has its length as a big-endian uint16 before it. A cut last one is left out."""
    entries: list[bytes] = []
    start, end = _LENGTH_BYTES, len(bundle)
    while start <= end:
        stop = start + (bundle[start - 2] << 8 | bundle[start - 1])
        if stop > end:
            break
        entries.append(bundle[start:stop])
        start = stop + _LENGTH_BYTES
    return entries


def join_bundle(entries: list[bytes]) -> bytes:
    """The bundle of these entries, each at most 65,535 bytes."""
    return b"".join(len(entry).to_bytes(_LENGTH_BYTES, "big") + entry for entry in entries)
