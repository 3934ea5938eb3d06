"""What the log needs of a database, as a Protocol, and the values that cross it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from kala.errors import FailedPreconditionError, KalaError
from services.audit.edge import Tile
from services.audit.keys import require_successor
from services.audit.payloads import WrappedKey
from services.audit.reading.query import Condition

Column = None | int | str | bytes


class DuplicateKeyError(KalaError):
    """An entry of the batch carries an idempotency key that is already in the log; nothing was written."""


class HeadMovedError(KalaError):
    """Another writer appended first; nothing was written."""


class StoreFailedError(KalaError):
    """The database could not write; nothing was acknowledged, and what was acknowledged before is safe."""


@dataclass(frozen=True, slots=True)
class Head:
    """The head row: `recorded_at` is the last entry's, in microseconds since 1970; `key_epoch` counts erasures."""

    size: int
    range_bytes: bytes
    root: bytes
    epoch: int
    recorded_at: int
    key_epoch: int = 0


@dataclass(slots=True)  # one for each record: freezing would triple its cost
class EntryRow:
    """An entry to store; `columns` are those of `kala.audit.columns.DERIVED`."""

    index: int
    leaf: bytes
    leaf_hash: bytes
    columns: tuple[Column, ...]


@dataclass(slots=True)  # one for each record: freezing would triple its cost
class PayloadRow:
    """A payload to store or as stored; `ciphertext` is None after erasure."""

    index: int
    kind: str
    key_id: str
    ciphertext: bytes | None


@dataclass(frozen=True, slots=True)
class Commit:
    """Everything that one transaction writes; it holds only if the head still has this size, root and `key_epoch`."""

    old_size: int
    old_root: bytes
    head: Head
    note: str
    entries: Sequence[EntryRow]
    payloads: Sequence[PayloadRow]
    keys: Sequence[WrappedKey]
    tiles: Sequence[Tile]


@dataclass(frozen=True, slots=True)
class StoredEntry:
    """An entry as read."""

    index: int
    leaf: bytes
    leaf_hash: bytes
    record_digest: bytes
    idem: bytes


@dataclass(frozen=True, slots=True)
class GapRow:
    """Something missing, noticed at entry `index`.

    It is the numbers from `before` + 1 to `sequence` - 1 of a producer's boot, or the entry's outcome if `is_intent`.
    """

    index: int
    is_intent: bool
    producer: str
    boot: bytes
    before: int
    sequence: int
    recorded_at: int


def require_own_log(found: tuple[str, str], origin: str, vkey: str, newest: str | None) -> bool:
    """Raises `FailedPreconditionError` unless the log row (origin and key) is that of the log we sign.

    True when the row must name our key from now on, for it is being replaced; `newest` is the newest checkpoint's note.
    """
    if found[0] != origin:
        raise FailedPreconditionError(f"this database holds the log {found[0]!r}, not {origin!r}")
    if found[1] == vkey:
        return False
    require_successor(vkey, stored=found[1], newest=newest)
    return True


class LogWriter(Protocol):
    """The writing side. Every method blocks; one thread calls them."""

    def head(self) -> Head:
        """The head as committed."""
        ...

    def commit(self, batch: Commit) -> None:
        """Writes all or nothing, durably; DuplicateKeyError, HeadMovedError or StoreFailedError otherwise."""
        ...

    def live_key(self, subject: str) -> WrappedKey | None:
        """The subject's data key that is not erased."""
        ...

    def take_turn(self) -> Head | None:
        """Waits for other writers of the log, if there are any; the head as it then is, or None without a turn.

        They in turn wait until `commit` or `end_turn`. Only less work is done in vain by it: `commit` is safe without.
        """
        ...

    def end_turn(self) -> None:
        """Ends a turn in which nothing was committed."""
        ...

    def settle(self) -> None:
        """Puts what is committed in the log's one file, if no reader is in the way."""
        ...

    def close(self) -> None:
        """Writes the WAL back and releases the file."""
        ...


class LogReader(Protocol):
    """The reading side; each method reads one committed state. Every method blocks."""

    def head(self) -> Head:
        """The head as committed."""
        ...

    def entry(self, index: int) -> StoredEntry | None:
        """The entry at this index."""
        ...

    def by_keys(self, keys: Iterable[bytes]) -> dict[bytes, StoredEntry]:
        """The entries with these idempotency keys."""
        ...

    def hashes(self, level: int, first: int, last: int) -> list[bytes]:
        """The hashes [first, last), all of one tile, of a tile level."""
        ...

    def note(self, size: int | None) -> tuple[int, str] | None:
        """The signed checkpoint of this size, or the newest, with its size."""
        ...

    def payloads(self, index: int) -> list[PayloadRow]:
        """The payload rows of an entry."""
        ...

    def kept_kinds(self, indexes: Sequence[int]) -> dict[int, list[str]]:
        """The kinds of the payloads whose plaintext is still kept, sorted, per entry; entries without any are left out.

        It reads the first byte of each ciphertext and no more.
        """
        ...

    def key(self, key_id: str) -> WrappedKey | None:
        """A data key by its id."""
        ...

    def newest_key(self) -> WrappedKey | None:
        """The data key that was made last."""
        ...

    def query(
        self, conditions: Sequence[Condition], *, first: int, last: int, limit: int, descending: bool
    ) -> list[StoredEntry]:
        """The entries of [first, last) that meet all conditions, in order of index, at most `limit`."""
        ...

    def index_at(self, recorded_at: int) -> int:
        """The first index recorded at or after this time, in microseconds since 1970."""
        ...

    def gaps(
        self,
        conditions: Sequence[Condition] = (),
        *,
        last: int,
        intents_before: int,
        limit: int,
        offset: int,
    ) -> list[GapRow]:
        """What is missing among the entries below `last`, in order of index, from the `offset`th on.

        The conditions are those on the entry that shows it.
        An intent without outcome counts when it was recorded before `intents_before`, in microseconds since 1970.
        """
        ...

    def counts(self, column: str, first: int, conditions: Sequence[Condition] = ()) -> list[tuple[str, int]]:
        """How many entries from index `first` on have each value of a derived column; nulls are left out."""
        ...

    def close(self) -> None:
        """Closes the connection."""
        ...
