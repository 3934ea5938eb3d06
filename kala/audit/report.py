"""What a verification finds: a report of what holds, or the first entry that does not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from kala.audit.checkpoint import Checkpoint
from kala.errors import KalaError, VerificationError

# c2sp.org/tlog-tiles: a tile covers 8 levels, so a full one holds 256 hashes.
TILE_LEVELS: Final = 8
TILE_WIDTH: Final = 1 << TILE_LEVELS
# A stored payload begins with a flag byte and the id of the key that seals it.
PAYLOAD_KEY_ID_BYTES: Final = 16


class TamperedError(VerificationError):
    """The log is not what was signed; `first_bad_index` is the first entry that cannot be relied on.

    It is None when no entry is concerned, and `place` says what is: an index of the database, a checkpoint.
    """

    default_reason = "LOG_TAMPERED"

    def __init__(self, first_bad_index: int | None, problem: str, *, place: str = "the database") -> None:
        where = place if first_bad_index is None else f"entry {first_bad_index}"
        super().__init__(f"{where}: {problem}")
        self.first_bad_index = first_bad_index


class UnverifiableError(KalaError):
    """There is nothing to verify with or against: no such log, or a key that is not this log's."""

    default_reason = "LOG_UNVERIFIABLE"


@dataclass(frozen=True, slots=True)
class LogReport:
    """What was verified: the log's newest checkpoint and how much of what hangs on it."""

    checkpoint: Checkpoint
    checkpoint_note: str
    entries: int
    checkpoints: int
    payloads: int
    payloads_erased: int
    # Entries before this one were not read again: a pinned checkpoint vouches for them.
    resumed_from: int = 0


@dataclass(frozen=True, slots=True)
class StoredPayload:
    """A payload row: its kind, the data key's id, and its ciphertext or None after erasure."""

    kind: str
    key_id: str
    ciphertext: bytes | None
