"""Takes personal data out of content before it is kept; the log still commits to what was really said.

Where a finder finds something in a payload that is to be kept, the payload itself is only committed to, and a copy with
`#` in the place of every found byte is kept under its kind and `.redacted`. The copy has the same length and, where the
content is a protobuf message, the same structure, so that whoever may read the one can read the other.
What cannot be looked through, because it is too long or the finder fails, is committed to and not kept; nor is a copy whose
kind would be too long to be asked for. No producer sends a kind that ends so.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, Protocol

import structlog

from services.audit.entries import NewEntry, PlainPayload
from services.audit.wire_structure import structure_of

SUFFIX: Final = ".redacted"
# As records.py and the contract bound a kind.
MAX_KIND_CHARS: Final = 64
MASK: Final = ord("#")
# Patterns look through this in about a second; longer content is not kept.
MAX_SEARCHED_BYTES: Final = 1024 * 1024
_SEPARATOR: Final = ord("\n")

log = structlog.get_logger()

Span = tuple[int, int]
"""First and last character of a find, the last one excluded."""


class PersonalDataFinder(Protocol):
    """Says where personal data stands in a text. Blocks; may be called from several threads."""

    def find(self, text: str) -> Iterable[Span]:
        """The places in `text`, in any order; they may overlap."""
        ...


def redact(entry: NewEntry, finder: PersonalDataFinder) -> NewEntry:
    """The entry with every payload that is kept looked through; its record digest stays the producer's."""
    if not any(payload.store for payload in entry.payloads):
        return entry
    payloads: list[PlainPayload] = []
    for payload in entry.payloads:
        payloads += _redacted(payload, finder) if payload.store else [payload]
    return entry._replace(payloads=payloads)


def is_redacted(kind: str) -> bool:
    """Whether a payload is a copy that `redact` made."""
    return kind.endswith(SUFFIX)


def masked(data: bytes, finder: PersonalDataFinder) -> bytes:
    """`data` with `#` in the place of what the finder finds; the same bytes when that is nothing."""
    structure = structure_of(data)
    readable = bytearray(data)
    for place in structure:
        # No word reaches over a field's border, and a length is not a letter.
        readable[place] = _SEPARATOR
    text = readable.decode("utf-8", "surrogateescape")
    result = bytearray(data)
    for first, last in _byte_spans(text, _merged(finder.find(text))):
        for place in range(first, last):
            if place not in structure:
                result[place] = MASK
    return bytes(result)


def _redacted(payload: PlainPayload, finder: PersonalDataFinder) -> list[PlainPayload]:
    committed = payload._replace(store=False)
    if len(payload.data) > MAX_SEARCHED_BYTES:
        return [committed]
    try:
        copy = masked(payload.data, finder)
    except Exception:  # whatever fails in a library of patterns: nothing unsearched is kept
        log.exception("content was not looked through, and is not kept", kind=payload.kind)
        return [committed]
    if copy == payload.data:
        return [payload]
    if len(payload.kind + SUFFIX) > MAX_KIND_CHARS:
        return [committed]  # nobody could ask for the copy by its name
    return [committed, PlainPayload(payload.kind + SUFFIX, copy, store=True)]


def _merged(spans: Iterable[Span]) -> list[Span]:
    merged: list[Span] = []
    for first, last in sorted(spans):
        if merged and first <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(last, merged[-1][1]))
        else:
            merged.append((first, last))
    return merged


def _byte_spans(text: str, spans: Sequence[Span]) -> list[Span]:
    """The spans in bytes of the text's UTF-8."""
    if text.isascii():
        return list(spans)
    found: list[Span] = []
    characters = offset = 0
    for first, last in spans:
        start = offset + _bytes_of(text[characters:first])
        offset = start + _bytes_of(text[first:last])
        characters = last
        found.append((start, offset))
    return found


def _bytes_of(text: str) -> int:
    return len(text.encode("utf-8", "surrogateescape"))
