"""Verification of a whole log, entry by entry, in constant memory and without any service.

`LogChecker` takes what a log claims, in order of index, and raises `TamperedError` at the first claim that does not
follow from the leaves. It reads no files; `database.py` feeds it from a SQLite log, an export or mirror can do the same.
What it proves ends at the newest signed checkpoint; a pinned checkpoint, kept elsewhere, is what shows a cut tail
or a fork signed by the log's own key.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from hashlib import sha256
from typing import Any

from kala.audit.checkpoint import Checkpoint, open_checkpoint
from kala.audit.columns import derived
from kala.audit.leaf import MAX_LEAF_BYTES, SCHEMA
from kala.audit.merkle import CompactRange, leaf_hash
from kala.audit.note import Verifier
from kala.audit.report import (
    PAYLOAD_KEY_ID_BYTES,
    TILE_LEVELS,
    LogReport,
    StoredPayload,
    TamperedError,
    UnverifiableError,
)
from kala.audit.times import parse_time
from kala.errors import VerificationError

__all__ = ["LogChecker", "LogReport", "StoredPayload", "TamperedError", "UnverifiableError", "verify_leaves"]


class LogChecker:
    """Follows a log from its first entry and holds everything it claims against its leaves."""

    def __init__(
        self,
        trusted: Sequence[Verifier],
        pinned: str | None = None,
        on_hash: Callable[[int, bytes], None] | None = None,
    ) -> None:
        """`on_hash(level, hash)` sees every hash that belongs in a tile of that level, in order."""
        self._trusted = trusted
        self._tree = CompactRange()
        self._pinned = None if pinned is None else _open_pinned(pinned, trusted)
        self._newest: tuple[Checkpoint, str] | None = None
        self._recorded_at = 0
        self._on_hash = on_hash
        self._counts = {"checkpoints": 0, "payloads": 0, "erased": 0}

    @property
    def size(self) -> int:
        """How many entries were taken; also the index of the next one."""
        return self._tree.size

    @property
    def recorded_at(self) -> int:
        """The recording time of the last entry, in microseconds since 1970."""
        return self._recorded_at

    @property
    def range_bytes(self) -> bytes:
        """The compact range over the entries taken so far."""
        return self._tree.to_bytes()

    def root(self) -> bytes:
        """The root over the entries taken so far."""
        return self._tree.root()

    def take(
        self,
        leaf: bytes,
        stored_hash: bytes | None = None,
        columns: tuple[object, ...] | None = None,
        payloads: Sequence[StoredPayload] | None = None,
    ) -> None:
        """Takes the next leaf with what the store says about it; None where the source holds no such claim."""
        index = self.size
        digest = leaf_hash(leaf)
        if stored_hash is not None and digest != stored_hash:
            raise TamperedError(index, "the leaf does not have its stored hash")
        try:
            value = _fields(leaf)
            expected = derived(value)
            recorded_at = parse_time(value["recorded_at"])
            kept = _kept_payloads(value)
        except VerificationError as error:
            raise TamperedError(index, error.message) from error
        if columns is not None and columns != expected:
            raise TamperedError(index, "a column of the entry does not agree with its leaf")
        if recorded_at < self._recorded_at:
            raise TamperedError(index, "it was recorded before the entry that precedes it")
        if payloads is not None:
            self._check_payloads(index, kept, payloads)
        self._recorded_at = recorded_at
        if self._on_hash is None:
            self._tree.append(digest)
        else:
            self._on_hash(0, digest)
            self._tree.append(digest, self._note_node)
        if self._pinned is not None and self._pinned.size == self.size and self._pinned.root != self.root():
            raise TamperedError(
                0, f"entries 0 to {index} are not those of the pinned checkpoint: the log was forked"
            )

    def take_checkpoint(self, size: int, root: bytes, note: str) -> None:
        """Takes the stored checkpoint of the current size, after the last entry that it covers."""
        first = self._newest[0].size if self._newest else 0
        last = min(max(size - 1, 0), self.size)
        try:
            checkpoint = open_checkpoint(note, self._trusted)
        except VerificationError as error:
            raise TamperedError(last, f"the checkpoint of size {size}: {error.message}") from error
        if (checkpoint.size, checkpoint.root) != (size, root):
            raise TamperedError(last, f"the checkpoint of size {size} is filed under another size or root")
        if size > self.size:
            raise TamperedError(self.size, f"a checkpoint covers {size} entries, and there are {self.size}")
        if size != self.size or root != self.root():
            raise TamperedError(
                first, f"entries {first} to {last} do not lead to the signed root at size {size}"
            )
        self._newest = (checkpoint, note)
        self._counts["checkpoints"] += 1

    def finish(self) -> LogReport:
        """Returns what was verified, or raises when entries lie beyond the newest checkpoint or pinned ones are gone."""
        if self._pinned is not None and self._pinned.size > self.size:
            raise TamperedError(
                self.size, f"the pinned checkpoint covers {self._pinned.size} entries: the log was cut"
            )
        if self._newest is None:
            if self.size:
                raise TamperedError(0, "no checkpoint signs the entries")
            raise UnverifiableError("the log holds no checkpoint, so there is nothing to verify")
        checkpoint, note = self._newest
        if checkpoint.size != self.size:
            raise TamperedError(checkpoint.size, "no checkpoint signs the entries from here on")
        counts = self._counts
        return LogReport(
            checkpoint, note, self.size, counts["checkpoints"], counts["payloads"], counts["erased"]
        )

    def _note_node(self, level: int, _index: int, digest: bytes) -> None:
        if level % TILE_LEVELS == 0 and self._on_hash is not None:
            self._on_hash(level // TILE_LEVELS, digest)

    def _check_payloads(
        self, index: int, expected: Mapping[str, object], payloads: Sequence[StoredPayload]
    ) -> None:
        if expected.keys() != {payload.kind for payload in payloads} or len(expected) != len(payloads):
            raise TamperedError(index, "its payloads are not those that its leaf names")
        for payload in payloads:
            if payload.ciphertext is None:
                self._counts["erased"] += 1
            elif sha256(payload.ciphertext).hexdigest() != expected[payload.kind]:
                raise TamperedError(index, f"the payload {payload.kind} is not the one that its leaf names")
            elif payload.ciphertext[1 : 1 + PAYLOAD_KEY_ID_BYTES].hex() != payload.key_id:
                raise TamperedError(index, f"the payload {payload.kind} is filed under another key")
            else:
                self._counts["payloads"] += 1


def verify_leaves(leaves: Iterable[bytes], checkpoint_note: str, trusted: Sequence[Verifier]) -> LogReport:
    """Verifies all leaves of a log against one signed checkpoint of exactly their number."""
    checker = LogChecker(trusted)
    for leaf in leaves:
        checker.take(leaf)
    checkpoint = open_checkpoint(checkpoint_note, trusted)
    checker.take_checkpoint(checkpoint.size, checkpoint.root, checkpoint_note)
    return checker.finish()


def _fields(leaf: bytes) -> Mapping[str, Any]:
    # The signed root vouches for these bytes; whether they are spelled canonically was the log's business.
    if len(leaf) > MAX_LEAF_BYTES:
        raise VerificationError(f"a leaf has at most {MAX_LEAF_BYTES} bytes")
    try:
        value = json.loads(leaf)
    except (ValueError, RecursionError) as error:
        raise VerificationError("the leaf is not JSON") from error
    if not isinstance(value, dict) or value.get("schema") != SCHEMA:
        raise VerificationError(f"the leaf's schema is not {SCHEMA}")
    return value


def _kept_payloads(leaf: Mapping[str, Any]) -> dict[str, object]:
    """The digests of the ciphertexts that belong to a leaf, by kind; raises `VerificationError` when it names none right."""
    try:
        digests = {c["kind"]: c["ciphertext_sha256"] for c in leaf["commitments"]}
        is_repeated = len(digests) != len(leaf["commitments"])
    except (KeyError, TypeError) as error:
        raise VerificationError("the leaf's commitments are malformed") from error
    if is_repeated:
        raise VerificationError("the leaf commits to one payload twice")
    return {kind: digest for kind, digest in digests.items() if digest is not None}


def _open_pinned(note: str, trusted: Sequence[Verifier]) -> Checkpoint:
    try:
        return open_checkpoint(note, trusted)
    except VerificationError as error:
        raise UnverifiableError(f"the pinned checkpoint cannot be used: {error.message}") from error
