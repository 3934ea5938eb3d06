"""One transaction of the log: screening for repeats, building leaves, committing, and proving what was committed."""

from __future__ import annotations

import hmac
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import orjson

from kala.audit.checkpoint import Checkpoint, open_checkpoint
from kala.audit.merkle import inclusion_proof
from kala.audit.note import Signer
from kala.audit.receipt import receipt_text
from kala.audit.tile_nodes import TileReader, open_tiles
from kala.errors import (
    AlreadyExistsError,
    DataLossError,
    FailedPreconditionError,
    KalaError,
    NotFoundError,
    UnavailableError,
    VerificationError,
)
from services.audit.edge import TreeEdge
from services.audit.entries import BuiltEntry, NewEntry, build
from services.audit.payloads import (
    KeyEncryptionKey,
    PayloadSealer,
    SealedPayload,
    WrappedKey,
    commit,
    open_payload,
)
from services.audit.privacy.redaction import is_redacted
from services.audit.storage.store import (
    Commit,
    DuplicateKeyError,
    Head,
    HeadMovedError,
    LogReader,
    LogWriter,
    PayloadRow,
    StoredEntry,
    StoreFailedError,
)

# Tells a writer that the answer is about its record alone, whatever class the error has.
RECORD_REFUSED: Final = "AUDIT_RECORD_REFUSED"
# Each failed try makes progress (repeats found, or another writer's append), so a few suffice.
MAX_TRIES: Final = 8


@dataclass(frozen=True, slots=True)
class Submission:
    """Records that one caller wants appended together."""

    entries: Sequence[NewEntry]
    with_proof: bool


@dataclass(slots=True)  # one for each record: freezing would triple its cost
class Logged:
    """Where a record is in the log; `created` is false when its key was there before.

    `proof` is the receipt text, empty when not asked for. `openings` are kinds with their salts; none for repeats.
    `note` is the signed checkpoint that covers it.
    """

    key: bytes
    index: int
    leaf_hash: bytes
    created: bool
    proof: str
    openings: Sequence[tuple[str, bytes]]
    note: str


@dataclass(slots=True)
class _Plan:
    """What one transaction will write; `fresh` says which key has which place in `built`."""

    old_size: int
    recorded_at: int
    built: list[BuiltEntry] = field(default_factory=list)
    fresh: dict[bytes, tuple[NewEntry, int]] = field(default_factory=dict)
    refused: dict[int, KalaError] = field(default_factory=dict)
    # Entries that earlier transactions wrote, by key.
    known: Mapping[bytes, StoredEntry] = field(default_factory=dict)

    def find(self, key: bytes) -> tuple[int, bytes, bytes, Sequence[SealedPayload]]:
        """Index, leaf, leaf hash and sealed payloads of a key of this plan; no payloads for a known one."""
        if key not in self.fresh:
            stored = self.known[key]
            return stored.index, stored.leaf, stored.leaf_hash, ()
        built = self.built[self.fresh[key][1]]
        return built.row.index, built.row.leaf, built.row.leaf_hash, built.sealed


class BatchWriter:
    """Writes submissions, several in one transaction. The log's writer thread owns it."""

    def __init__(
        self,
        *,
        writer: LogWriter,
        reader: LogReader,
        signer: Signer,
        kek: KeyEncryptionKey,
        clock: Callable[[], int],
    ) -> None:
        """`clock` gives microseconds since 1970; `reader` must see what `writer` committed."""
        self._writer = writer
        self._reader = reader
        self._signer = signer
        self._kek = kek
        self._clock = clock
        _require_kek(kek, reader.newest_key())
        self._sealer = PayloadSealer(kek, writer.live_key)
        self._head, self._edge = self._load()
        # True while the edge may hold leaves that are not committed; it is then read anew before the next use.
        self._is_stale = False

    def settle(self) -> None:
        """Puts what is committed in the log's one file; called when nobody waits."""
        self._writer.settle()

    def write(self, submissions: Sequence[Submission]) -> list[Sequence[Logged] | KalaError]:
        """Appends each submission whole or not at all; the outcomes are in the same order."""
        known: Mapping[bytes, StoredEntry] = {}
        for _ in range(MAX_TRIES):
            try:
                self._catch_up()
                plan = self._plan(submissions, known)
                note = self._commit(plan)
            except DuplicateKeyError:
                # Rolled back first: a look-up inside the failed transaction would see its own uncommitted rows.
                known = self._reader.by_keys([entry.key for s in submissions for entry in s.entries])
                continue
            except HeadMovedError:
                continue
            except StoreFailedError as error:
                raise UnavailableError(error.message, reason="AUDIT_UNAVAILABLE") from error
            finally:
                self._writer.end_turn()
            outcomes = self._answer(submissions, plan, note)
            self._edge.settle()
            self._is_stale = False
            return outcomes
        raise UnavailableError(
            "the log's head moved too often", reason="AUDIT_UNAVAILABLE", retry_after_seconds=1.0
        )

    def _catch_up(self) -> None:
        """Reads the head and the edge anew, if they may not be what is committed."""
        head = self._writer.take_turn()
        if self._is_stale or (head is not None and head != self._head):
            self._reload()

    def _plan(self, submissions: Sequence[Submission], known: Mapping[bytes, StoredEntry]) -> _Plan:
        plan = _Plan(self._head.size, max(self._clock(), self._head.recorded_at), known=known)
        for number, submission in enumerate(submissions):
            try:
                self._plan_one(plan, submission)
            except StoreFailedError:
                raise
            except KalaError as error:
                # Its own alone: a damaged data key of one subject, say, must not stop the records of others.
                if isinstance(error, (DataLossError, FailedPreconditionError, NotFoundError)):
                    error.reason = RECORD_REFUSED
                plan.refused[number] = error
        self._is_stale = bool(plan.built)
        for built in plan.built:
            self._edge.append(built.row.leaf_hash)
        return plan

    def _plan_one(self, plan: _Plan, submission: Submission) -> None:
        """Adds a submission's new entries to the plan, all or none."""
        start = len(plan.built)
        added: dict[bytes, tuple[NewEntry, int]] = {}
        try:
            for entry in submission.entries:
                before = added.get(entry.key) or plan.fresh.get(entry.key)
                if before is not None:
                    _require_same(entry, before[0])
                elif entry.key in plan.known:
                    self._require_logged(entry, plan.known[entry.key])
                else:
                    place = len(plan.built)
                    plan.built.append(build(entry, plan.old_size + place, plan.recorded_at, self._sealer))
                    added[entry.key] = (entry, place)
        except KalaError:
            del plan.built[start:]
            raise
        plan.fresh.update(added)

    def _commit(self, plan: _Plan) -> str:
        """Writes the plan, if there is anything to write; returns the checkpoint that covers it."""
        if not plan.built:
            # Of this size: another writer may have signed a larger one, which the proofs made here would not fit.
            found = self._reader.note(self._head.size)
            return "" if found is None else found[1]
        edge = self._edge
        before = self._head
        head = Head(
            edge.size, edge.range_bytes, edge.root(), before.epoch, plan.recorded_at, before.key_epoch
        )
        note = self._signer.sign(Checkpoint(self._signer.verifier.name, head.size, head.root).text())
        payloads = [
            PayloadRow(built.row.index, s.kind, s.key_id, s.ciphertext)
            for built in plan.built
            for s in built.sealed
        ]
        rows = [built.row for built in plan.built]
        keys = self._sealer.new_keys()
        self._writer.commit(
            Commit(before.size, before.root, head, note, rows, payloads, keys, edge.changed_tiles())
        )
        self._sealer.settle()
        self._head = head
        return note

    def _answer(
        self, submissions: Sequence[Submission], plan: _Plan, note: str
    ) -> list[Sequence[Logged] | KalaError]:
        tiles = TileReader(self._head.size, self._reader.hashes)
        told: set[bytes] = set()
        outcomes: list[Sequence[Logged] | KalaError] = []
        for number, submission in enumerate(submissions):
            if number in plan.refused:
                outcomes.append(plan.refused[number])
                continue
            answers: list[Logged] = []
            for entry in submission.entries:
                index, leaf, digest, sealed = plan.find(entry.key)
                is_first = entry.key in plan.fresh and entry.key not in told
                told.add(entry.key)
                proof = (
                    receipt_text(leaf, index, self._prove(plan, index, tiles), note)
                    if submission.with_proof
                    else ""
                )
                openings = [(payload.kind, payload.salt) for payload in sealed] if is_first else []
                answers.append(Logged(entry.key, index, digest, is_first, proof, openings, note))
            outcomes.append(answers)
        return outcomes

    def _prove(self, plan: _Plan, index: int, tiles: TileReader) -> list[bytes]:
        if index >= plan.old_size:
            return self._edge.prove(index)
        return inclusion_proof(index, self._head.size, tiles.node)

    def _require_logged(self, entry: NewEntry, stored: StoredEntry) -> None:
        """Raises `AlreadyExistsError` unless the logged entry is this very record, content included."""
        if stored.record_digest != entry.record_digest:
            raise _taken(entry.key)
        commitments = {c["kind"]: c["hmac"] for c in orjson.loads(stored.leaf)["commitments"]}
        rows = {row.kind: row for row in self._reader.payloads(stored.index)}
        for payload in entry.payloads:
            if is_redacted(payload.kind):
                continue  # another release may mask other words; what was said is compared beside it
            row = rows.get(payload.kind)
            key = self._reader.key(row.key_id) if row is not None and row.ciphertext is not None else None
            if row is None or row.ciphertext is None or key is None or key.wrapped is None:
                continue  # erased: nothing is left to compare with
            salt, _ = open_payload(self._kek.unwrap(key), entry.key, payload.kind, row.ciphertext)
            if not hmac.compare_digest(commit(salt, payload.data), commitments[payload.kind]):
                raise _taken(entry.key)

    def _reload(self) -> None:
        self._sealer.forget()
        head, edge = self._load()
        self._require_continued(head)
        self._head, self._edge = head, edge

    def _load(self) -> tuple[Head, TreeEdge]:
        head = self._writer.head()
        edge = TreeEdge(head.size, head.range_bytes, open_tiles(head.size, self._reader.hashes))
        if edge.root() != head.root:
            raise DataLossError("the log's head does not hold the root of its own tree")
        self._require_signed(head)
        return head, edge

    def _require_continued(self, head: Head) -> None:
        """Raises `DataLossError` unless this head grew out of ours.

        A database that was restored, or a standby that lagged when it took over, lost entries that were acknowledged; to
        sign on from there would give the log two histories.
        """
        before = self._head
        if (head.size, head.root) == (before.size, before.root) or not before.size:
            return
        found = self._reader.note(before.size) if head.size > before.size else None
        if found is None or Checkpoint.parse(found[1].partition("\n\n")[0] + "\n").root != before.root:
            raise DataLossError(
                f"the database went back: it holds {head.size} entries and not the {before.size} that were acknowledged"
            )

    def _require_signed(self, head: Head) -> None:
        """Raises `DataLossError` unless our key signed this head.

        Whoever can write the file but does not hold the key could otherwise add an entry and have it signed with the next.
        """
        if not head.size:
            return
        found = self._reader.note(head.size)
        if found is None:
            raise DataLossError(f"no checkpoint signs the {head.size} entries that the log's head claims")
        try:
            signed = open_checkpoint(found[1], self._signer.verifiers)
        except VerificationError as error:
            raise DataLossError(f"the checkpoint of size {head.size}: {error.message}") from error
        if (signed.size, signed.root) != (head.size, head.root):
            raise DataLossError(f"the checkpoint of size {head.size} does not sign the log's head")


def _require_kek(kek: KeyEncryptionKey, newest: WrappedKey | None) -> None:
    """Raises `FailedPreconditionError` for another key than the log's: each known subject's records would fail later."""
    if newest is not None and newest.kek_id != kek.kek_id:
        raise FailedPreconditionError(
            f"the log's data keys are wrapped by key {newest.kek_id}, and the key file holds {kek.kek_id}"
        )


def _require_same(entry: NewEntry, before: NewEntry) -> None:
    if entry.record_digest != before.record_digest or list(entry.payloads) != list(before.payloads):
        raise _taken(entry.key)


def _taken(key: bytes) -> AlreadyExistsError:
    return AlreadyExistsError(
        f"idempotency key {key.hex()} is taken by another record", reason="IDEMPOTENCY_KEY_TAKEN"
    )
