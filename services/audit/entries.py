"""Entries on their way into the log: what a producer said, and the leaf that the log makes of it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from hashlib import sha256
from typing import Any, Final, NamedTuple

import orjson

from kala.audit.columns import derived
from kala.audit.leaf import MAX_LEAF_BYTES, MAX_SKEW
from kala.audit.merkle import leaf_hash
from kala.audit.times import format_time
from kala.errors import InvalidArgumentError
from services.audit.payloads import PayloadSealer, SealedPayload
from services.audit.storage.store import EntryRow

_MAX_SKEW_US: Final = MAX_SKEW.total_seconds() * 1_000_000
# Subjects of one tenant without a subject of their own share a data key under this name, which no HMAC can be.
_COMMON_SUBJECT: Final = "tenant:"


class PlainPayload(NamedTuple):
    """Content as its producer sent it."""

    kind: str
    data: bytes
    store: bool


class NewEntry(NamedTuple):
    """A validated record: the leaf's fields that its producer decides, and the content that belongs to it.

    `fields` are those of the leaf but the ones that `build` stamps. `record_digest` covers everything but the content's
    bytes: two records with the same key and digest are one.
    """

    key: bytes
    # `Any`: values of canonical JSON; `kala.audit.leaf.FIELDS` says which.
    fields: dict[str, Any]
    occurred_at: int
    record_digest: bytes
    payloads: Sequence[PlainPayload]

    @property
    def subject(self) -> str:
        """Whose data key seals the payloads."""
        subject: str = self.fields["subject_key_id"] or _COMMON_SUBJECT + self.fields["tenant"]
        return subject


class BuiltEntry(NamedTuple):
    """An entry with its place: the row to store and its sealed payloads."""

    row: EntryRow
    sealed: Sequence[SealedPayload]


def build(entry: NewEntry, index: int, recorded_at: int, sealer: PayloadSealer) -> BuiltEntry:
    """Makes the leaf: stamps time, seals and commits to payloads, and spells it canonically.

    `recorded_at` is in microseconds since 1970. Raises `InvalidArgumentError` when the leaf would be too long.
    """
    sealed: Sequence[SealedPayload] = ()
    if entry.payloads:
        seal, subject, key = sealer.seal, entry.subject, entry.key
        sealed = [seal(subject, key, kind, data, store=store) for kind, data, store in entry.payloads]
    # Stamped anew at every try: the entry may get another place and another time.
    value = entry.fields
    value["recorded_at"] = _stamp_text(recorded_at)
    value["skew_flag"] = abs(recorded_at - entry.occurred_at) > _MAX_SKEW_US
    value["commitments"] = [payload.leaf_value() for payload in sealed]
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


# The entries of one transaction share their time.
_stamp_text: Final = lru_cache(maxsize=4)(time_text)


@lru_cache(maxsize=64)
def _second_text(second: int) -> str:
    return format_time(second * 1_000_000)[:-7]


def digest_of_record(record: bytes, payloads: Sequence[PlainPayload]) -> bytes:
    """The digest of a producer's record: its bytes without the content, then each payload's kind, length and fate."""
    shapes = b""
    for kind, data, store in payloads:
        shapes += b"%c%c%s%s" % (store, len(kind), kind.encode(), len(data).to_bytes(8, "big"))
    return sha256(len(record).to_bytes(8, "big") + record + shapes).digest()
