"""Entries on their way into the log: what a producer said, and the leaf that the log makes of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from typing import Any, Final

import orjson

from kala.audit.columns import derived
from kala.audit.leaf import MAX_LEAF_BYTES, MAX_SKEW, SCHEMA
from kala.audit.merkle import leaf_hash
from kala.audit.times import format_time
from kala.errors import InvalidArgumentError
from services.audit.payloads import PayloadSealer, SealedPayload
from services.audit.store import EntryRow

_MAX_SKEW_US: Final = MAX_SKEW.total_seconds() * 1_000_000
# Subjects of one tenant without a subject of their own share a data key under this name, which no HMAC can be.
_COMMON_SUBJECT: Final = "tenant:"


@dataclass(frozen=True, slots=True)
class PlainPayload:
    """Content as its producer sent it."""

    kind: str
    data: bytes
    store: bool


@dataclass(frozen=True, slots=True)
class NewEntry:
    """A validated record: the leaf's fields that its producer decides, and the content that belongs to it.

    `record_digest` covers everything but the content's bytes: two records with the same key and digest are one.
    """

    key: bytes
    # `Any`: values of canonical JSON; `kala.audit.leaf.FIELDS` says which.
    fields: Mapping[str, Any]
    occurred_at: int
    record_digest: bytes
    payloads: Sequence[PlainPayload]

    @property
    def subject(self) -> str:
        """Whose data key seals the payloads."""
        subject: str = self.fields["subject_key_id"] or _COMMON_SUBJECT + self.fields["tenant"]
        return subject


@dataclass(frozen=True, slots=True)
class BuiltEntry:
    """An entry with its place: the row to store and its sealed payloads."""

    row: EntryRow
    sealed: Sequence[SealedPayload]


def build(entry: NewEntry, index: int, recorded_at: int, sealer: PayloadSealer) -> BuiltEntry:
    """Makes the leaf: stamps time, seals and commits to payloads, and spells it canonically.

    `recorded_at` is in microseconds since 1970. Raises `InvalidArgumentError` when the leaf would be too long.
    """
    subject = entry.subject if entry.payloads else ""
    sealed = [sealer.seal(subject, entry.key, p.kind, p.data, store=p.store) for p in entry.payloads]
    value = {
        **entry.fields,
        "schema": SCHEMA,
        "occurred_at": time_text(entry.occurred_at),
        "recorded_at": time_text(recorded_at),
        "skew_flag": abs(recorded_at - entry.occurred_at) > _MAX_SKEW_US,
        "commitments": [payload.leaf_value() for payload in sealed],
        "record_digest": entry.record_digest.hex(),
    }
    # Equal to kala.audit.canonical for every value a record can hold (a property test says so), and 8 times as fast.
    leaf = orjson.dumps(value, option=orjson.OPT_SORT_KEYS)
    if len(leaf) > MAX_LEAF_BYTES:
        raise InvalidArgumentError(
            "record", f"makes a leaf of {len(leaf)} bytes; at most {MAX_LEAF_BYTES} fit"
        )
    return BuiltEntry(
        EntryRow(index, leaf, leaf_hash(leaf), derived(value, (entry.occurred_at, recorded_at))), sealed
    )


def time_text(microseconds: int) -> str:
    """A time as the leaf spells it; the second is formatted once."""
    second, fraction = divmod(microseconds, 1_000_000)
    return f"{_second_text(second)}{fraction:06d}Z"


@lru_cache(maxsize=64)
def _second_text(second: int) -> str:
    return format_time(second * 1_000_000)[:-7]


def digest_of_record(record: bytes, payloads: Sequence[PlainPayload]) -> bytes:
    """The digest of a producer's record: its bytes without the content, then each payload's kind, length and fate."""
    shapes = b"".join(
        b"%c%c%s%s" % (p.store, len(p.kind), p.kind.encode(), len(p.data).to_bytes(8, "big"))
        for p in payloads
    )
    return sha256(len(record).to_bytes(8, "big") + record + shapes).digest()
