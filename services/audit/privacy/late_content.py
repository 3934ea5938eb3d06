"""Keeps content from coming back after its person was erased: a record that waited in a spool, here or far away.

Only records that are late are looked up, so that the others cost one comparison.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Final

from services.audit.entries import NewEntry
from services.audit.privacy.store import PrivacyStore
from services.audit.records import MAX_ATTRIBUTES
from services.common.audit_refusals import ERASED_ATTRIBUTE

# A record that waited in no spool is here within a second or two of its act.
LATE_US: Final = 10_000_000
NEVER: Final = -1


class LateContent:
    """Takes the content of late records whose person was erased after their act; the records themselves are logged."""

    def __init__(self, store: PrivacyStore, *, clock: Callable[[], int]) -> None:
        """`clock` gives microseconds since 1970."""
        self._store = store
        self._clock = clock

    async def drop(self, entries: list[NewEntry]) -> list[NewEntry]:
        """The entries, without what an erasure covers; raises `UnavailableError` when that cannot be known."""
        before = self._clock() - LATE_US
        late = [entry for entry in entries if entry.payloads and entry.occurred_at < before]
        if not late:
            return entries
        subjects = sorted({subject for entry in late if (subject := entry.fields["subject_key_id"])})
        erased = await asyncio.to_thread(self._erased, subjects)
        return [
            _without_content(entry)
            if entry.payloads
            and entry.occurred_at
            <= erased.get((entry.fields["subject_key_id"], entry.fields["tenant"]), NEVER)
            else entry
            for entry in entries
        ]

    def _erased(self, subjects: Sequence[str]) -> dict[tuple[str, str], int]:
        return self._store.erased_at(subjects) if subjects else {}


def _without_content(entry: NewEntry) -> NewEntry:
    """As a spool leaves a record of an erased subject; its digest stays the producer's, so a repeat is known."""
    attributes = entry.fields["attributes"]
    if len(attributes) < MAX_ATTRIBUTES and not any(key == ERASED_ATTRIBUTE for key, _ in attributes):
        entry.fields["attributes"] = sorted([*attributes, [ERASED_ATTRIBUTE, "true"]])
    return entry._replace(payloads=())
