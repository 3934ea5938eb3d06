"""How long a match of a pattern can be, read off its RE2 source. Pure.

The hold-back of outputs rests on this number, so it is computed and never taken on trust: what this module does not
know is refused, and a class, an escape or a dot is one character.
"""

from __future__ import annotations

import re
from typing import Final

from kala.errors import ConstitutionError

_GROUP: Final = re.compile(r"\((?:\?(?:[a-zA-Z-]*:|P?<[A-Za-z_]\w*>))?")
_CLASS: Final = re.compile(r"\[\^?\]?(?:\\.|\[:\^?[a-z]+:\]|[^\]\\])*\]")
_NOTHING: Final = re.compile(r"\\[bBAz]|[\^$]")
_ONE: Final = re.compile(
    r"\\x[0-9A-Fa-f]{2}|\\x\{[0-9A-Fa-f]+\}|\\[pP](?:\{\^?\w+\}|\w)|\\[^pPQExC0-9]|[^\\()|*+?{}\[\]^$]"
)
_REPEAT: Final = re.compile(r"(?:\{(?P<least>[0-9]+)(?P<range>,(?P<most>[0-9]*))?\}|(?P<mark>[*+?]))\??")


def longest_match(source: str) -> int | None:
    """The most characters that a match can have; None without limit. ConstitutionError for what is not understood."""
    width, end = _alternatives(source, 0)
    if end != len(source):
        raise ConstitutionError(f"a pattern has a bracket too many at character {end}: {source[:64]!r}")
    return width


def _alternatives(source: str, at: int) -> tuple[int | None, int]:
    """The widest of the alternatives from here to the end of their group, and where that is."""
    widths: list[int | None] = []
    while True:
        width, at = _sequence(source, at)
        widths.append(width)
        if not source.startswith("|", at):
            break
        at += 1
    bounded = [width for width in widths if width is not None]
    return (max(bounded) if len(bounded) == len(widths) else None), at


def _sequence(source: str, at: int) -> tuple[int | None, int]:
    total: int | None = 0
    while at < len(source) and source[at] not in "|)":
        width, at = _atom(source, at)
        width, at = _repeated(source, at, width)
        total = None if total is None or width is None else total + width
    return total, at


def _atom(source: str, at: int) -> tuple[int | None, int]:
    if nothing := _NOTHING.match(source, at):
        return 0, nothing.end()
    if one := _CLASS.match(source, at) or _ONE.match(source, at):
        return 1, one.end()
    if group := _GROUP.match(source, at):
        width, end = _alternatives(source, group.end())
        if source.startswith(")", end):
            return width, end + 1
    raise ConstitutionError(f"a pattern's length cannot be told at character {at}: {source[at : at + 64]!r}")


def _repeated(source: str, at: int, width: int | None) -> tuple[int | None, int]:
    repeat = _REPEAT.match(source, at)
    if repeat is None:
        return width, at
    if repeat["mark"] == "?":
        return width, repeat.end()
    most = repeat["most"] if repeat["range"] else repeat["least"]
    if repeat["mark"] or not most:
        return (0 if width == 0 else None), repeat.end()
    return (None if width is None else width * int(most)), repeat.end()
