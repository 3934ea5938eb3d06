"""Which bytes of a protobuf message are structure (tags, lengths, numbers) and which are text, without its contract.

A guess, and only where it is safe to guess: what does not parse whole as a message is text. Pure.
"""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from typing import Final

_VARINT: Final = 0
_FIXED64: Final = 1
_LENGTH: Final = 2
_FIXED32: Final = 5
_WIDTHS: Final = {_FIXED64: 8, _FIXED32: 4}
MAX_FIELD: Final = (1 << 29) - 1
MAX_VARINT_BYTES: Final = 10
MAX_DEPTH: Final = 32
_TEXT_CONTROLS: Final = frozenset(b"\t\n\r")
_FIRST_PRINTABLE: Final = 0x20


class _NotAMessageError(ValueError):
    """The bytes do not parse as a message."""


def structure_of(data: bytes) -> AbstractSet[int]:
    """The places of `data` that hold a message's structure; empty when it is text."""
    places: set[int] = set()
    _walk(data, 0, len(data), places, MAX_DEPTH)
    return places


def _walk(data: bytes, start: int, end: int, places: set[int], depth: int) -> None:
    """Adds the structure of data[start:end], if that is a message."""
    if start == end or not depth:
        return
    try:
        fields, found = _fields(data, start, end)
    except _NotAMessageError:
        return
    texts = [(first, last) for first, last, kind in fields if kind == _LENGTH]
    # English can parse as tags and numbers by chance; a message of nothing but lengths that all fit cannot.
    looks_like_text = not any(
        byte < _FIRST_PRINTABLE and byte not in _TEXT_CONTROLS for byte in data[start:end]
    )
    if looks_like_text and len(texts) < len(fields):
        return
    places.update(found)
    for first, last in texts:
        _walk(data, first, last, places, depth - 1)


def _fields(data: bytes, start: int, end: int) -> tuple[list[tuple[int, int, int]], list[int]]:
    """The fields' contents with their wire types, and the places of structure; raises `_NotAMessageError`."""
    fields: list[tuple[int, int, int]] = []
    places: list[int] = []
    place = start
    while place < end:
        tag, content = _varint(data, place, end)
        field, kind = tag >> 3, tag & 7
        if not 1 <= field <= MAX_FIELD:
            raise _NotAMessageError
        if kind == _VARINT:
            _, last = _varint(data, content, end)
        elif kind == _LENGTH:
            length, content = _varint(data, content, end)
            last = content + length
        elif kind in _WIDTHS:
            last = content + _WIDTHS[kind]
        else:
            raise _NotAMessageError
        if last > end:
            raise _NotAMessageError
        places.extend(range(place, content if kind == _LENGTH else last))
        fields.append((content, last, kind))
        place = last
    return fields, places


def _varint(data: bytes, place: int, end: int) -> tuple[int, int]:
    """A number and the place behind it."""
    value = 0
    for count in range(MAX_VARINT_BYTES):
        if place + count >= end:
            raise _NotAMessageError
        byte = data[place + count]
        value |= (byte & 0x7F) << 7 * count
        if byte < 0x80:  # noqa: PLR2004 - the continuation bit
            return value, place + count + 1
    raise _NotAMessageError
