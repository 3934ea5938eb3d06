"""Records of the log itself that happen once, whoever repeats the step they belong to."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Final

from kala.audit.leaf import parse_leaf
from kala.audit.v1 import audit_pb2
from kala.errors import AlreadyExistsError, FailedPreconditionError, NotFoundError
from services.audit.own_records import OwnRecords
from services.audit.reading.log_reader import LogReading
from services.audit.records import KEY_BYTES
from services.common.peers import AUDIT

_LABEL: Final = b"kala.audit.once.v1\0"


@dataclass(frozen=True, slots=True)
class LoggedOnce:
    """An entry that happens once, with its receipt; `created` is false when an earlier call logged it."""

    key: bytes
    index: int
    leaf_hash: bytes
    leaf: Mapping[str, Any]  # Any: the values of the leaf's JSON
    proof: str
    created: bool


class OnceRecords:
    """Logs records under keys that follow from what they are about, so that a repeat finds the first."""

    def __init__(self, own: OwnRecords, reading: LogReading) -> None:
        """`reading` is this object's own: one thread at a time."""
        self._own = own
        self._reading = reading
        self._thread = ThreadPoolExecutor(1, "audit-once")

    async def close(self) -> None:
        """Waits for the look-up that runs."""
        await asyncio.to_thread(self._thread.shutdown)

    async def append(self, record: audit_pb2.Record, facts: Mapping[str, str], key: bytes) -> LoggedOnce:
        """Logs a record, or gives the one that an earlier call logged under this key."""
        found = await self.find(key, record.type)
        if found is not None:
            return found
        try:
            logged = await self._own.append(record, facts, key=key)
        except AlreadyExistsError:
            # Another replica was quicker.
            logged = None
        found = await self.find(key, record.type, created=logged is not None)
        if found is None:
            raise FailedPreconditionError(f"the log does not show the {record.type} that it took")
        return found

    async def find(self, key: bytes, kind: str, *, created: bool = False) -> LoggedOnce | None:
        """The record of this kind under this key; `FailedPreconditionError` when somebody else wrote what is there."""
        loop = asyncio.get_running_loop()
        try:
            found = await loop.run_in_executor(self._thread, self._reading.by_key, key)
        except NotFoundError:
            return None
        leaf = parse_leaf(found.entry.leaf)
        if (leaf.value["type"], leaf.value["recorded_by"]) != (kind, AUDIT):
            raise FailedPreconditionError(
                f"entry {found.entry.index} took the place of this {kind}, and the log did not write it"
            )
        return LoggedOnce(key, found.entry.index, leaf.hash, leaf.value, found.proof, created)


def key_of(kind: str, name: bytes) -> bytes:
    """The idempotency key of the one entry of this kind about this thing."""
    return sha256(_LABEL + kind.encode() + b"\0" + name).digest()[:KEY_BYTES]
