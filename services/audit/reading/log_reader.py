"""Reading the log: entries, receipts, checkpoints and proofs, all against one signed checkpoint each."""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Sequence
from dataclasses import dataclass

import orjson

from kala.audit.merkle import consistency_proof, inclusion_proof
from kala.audit.note import MAX_TREE_SIZE
from kala.audit.receipt import receipt_text
from kala.audit.tile_nodes import TileReader
from kala.errors import DataLossError, InvalidArgumentError, NotFoundError
from services.audit.payloads import KeyEncryptionKey, commit, is_kept, open_payload
from services.audit.reading.query import Condition, PageToken, digest_of
from services.audit.reading.scan import Scanner
from services.audit.storage.store import GapRow, LogReader, PayloadRow, StoredEntry

# Columns that a summary counts.
SUMMARY_COLUMNS = ("type", "outcome", "law", "model")


@dataclass(frozen=True, slots=True)
class FoundEntry:
    """An entry with the kinds of its payloads that are still kept, and the receipt when it was asked for."""

    entry: StoredEntry
    payload_kinds: Sequence[str]
    proof: str = ""


@dataclass(frozen=True, slots=True)
class Question:
    """A query: times in microseconds since 1970, None for an open end."""

    conditions: Sequence[Condition]
    recorded_from: int | None
    recorded_until: int | None
    page_size: int
    page_token: str
    descending: bool
    asked_by: str = ""
    """Whose question it is; nobody else can turn its pages."""


@dataclass(frozen=True, slots=True)
class Page:
    """One page of a query; `next_token` is empty on the last."""

    entries: Sequence[FoundEntry]
    next_token: str
    snapshot_size: int


class LogReading:
    """Answers from one reader; blocking, for one thread at a time."""

    def __init__(
        self, reader: LogReader, kek: KeyEncryptionKey | None = None, *, page_key: bytes | None = None
    ) -> None:
        """`kek` opens payloads; without it none is read. `page_key` seals page tokens; without it they are good here only."""
        self._reader = reader
        self._kek = kek
        self._page_key = page_key or secrets.token_bytes(32)
        self._scanner = Scanner(reader)

    def entry(self, index: int) -> FoundEntry:
        """The entry at this index with its proof against the newest checkpoint; `NotFoundError` otherwise."""
        entry = self._reader.entry(index) if index <= MAX_TREE_SIZE else None
        if entry is None:
            raise NotFoundError(f"the log has no entry {index}")
        return self._found(entry, proof=self._prove(entry))

    def by_key(self, key: bytes) -> FoundEntry:
        """The entry of this idempotency key with its proof; `NotFoundError` when it is not logged (yet)."""
        entry = self._reader.by_keys([key]).get(key)
        if entry is None:
            raise NotFoundError(f"rcpt_{key.hex()} is not in the log, or not yet: it may wait in a spool")
        return self._found(entry, proof=self._prove(entry))

    def require_payload(self, index: int, kind: str) -> None:
        """Raises `NotFoundError` unless the content of this payload is still there to be read."""
        if kind not in self._reader.kept_kinds([min(index, MAX_TREE_SIZE)]).get(index, ()):
            self._kept_payload(index, kind)

    def payload(self, index: int, kind: str) -> tuple[bytes, bytes]:
        """The salt and the plaintext of a payload; `DataLossError` when they are not what the leaf commits to."""
        entry, row = self._kept_payload(index, kind)
        key = self._reader.key(row.key_id)
        if key is None or self._kek is None or row.ciphertext is None:
            raise NotFoundError(f"the key of {kind} of entry {index} is not here", reason="SUBJECT_ERASED")
        salt, data = open_payload(self._kek.unwrap(key), entry.idem, kind, row.ciphertext)
        committed = {value["kind"]: value["hmac"] for value in orjson.loads(entry.leaf)["commitments"]}
        if not hmac.compare_digest(commit(salt, data), committed.get(kind, "")):
            raise DataLossError(
                f"the payload {kind} of entry {index} is not the one that its leaf commits to"
            )
        return salt, data

    def checkpoint(self, size: int | None) -> tuple[int, str]:
        """The newest signed checkpoint, or the one of this size, with its size; `NotFoundError` otherwise."""
        found = self._reader.note(size) if size is None or size <= MAX_TREE_SIZE else None
        if found is None:
            raise NotFoundError(
                "the log is empty" if size is None else f"no checkpoint of size {size} was signed"
            )
        return found

    def consistency(self, old_size: int, new_size: int | None) -> tuple[list[bytes], int, str]:
        """The proof that the log of `old_size` begins the one of `new_size`; that size, and its checkpoint."""
        size, note = self.checkpoint(new_size)
        if not 1 <= old_size <= size:
            raise InvalidArgumentError("old_size", f"must be 1 to {size}")
        return consistency_proof(old_size, size, TileReader(size, self._reader.hashes).node), size, note

    def query(self, question: Question) -> Page:
        """One page; all pages of a query see the tree size of its first.

        A page may hold fewer entries than asked for, even none, when looking for them took its time; the last has no
        token.
        """
        asked = (question.recorded_from, question.recorded_until, question.descending, question.asked_by)
        digest = digest_of(question.conditions, *asked)
        token = self._token(question.page_token, digest)
        size = token.snapshot_size if token else self._reader.head().size
        first, last = self._range(question, size)
        if token is not None:
            first, last = (
                (first, min(last, token.index)) if question.descending else (max(first, token.index), last)
            )
        # One more than asked tells whether another page follows.
        found = self._scanner.scan(
            question.conditions,
            first=first,
            last=last,
            limit=question.page_size + 1,
            descending=question.descending,
        )
        rows, position, is_last = found.rows[: question.page_size], found.position, found.is_done
        if len(found.rows) > question.page_size:
            position, is_last = rows[-1].index + (0 if question.descending else 1), False
        next_token = "" if is_last else PageToken(size, position).text(self._page_key, digest)
        kept = self._reader.kept_kinds([row.index for row in rows])
        return Page([FoundEntry(row, kept.get(row.index, ())) for row in rows], next_token, size)

    def _range(self, question: Question, size: int) -> tuple[int, int]:
        """The indexes [first, last) that were recorded in the question's span of time, in a tree of this size."""
        first, last = 0, size
        if question.recorded_from is not None:
            first = self._reader.index_at(question.recorded_from)
        if question.recorded_until is not None:
            last = min(last, self._reader.index_at(question.recorded_until))
        return first, last

    def gaps(
        self,
        conditions: Sequence[Condition] = (),
        *,
        intents_before: int,
        page_size: int,
        page_token: str,
        asked_by: str = "",
    ) -> tuple[Sequence[GapRow], str]:
        """One page of what is missing, oldest first, and the token of the next; all pages see one tree size.

        An intent without outcome counts when it was recorded before `intents_before`, in microseconds since 1970.
        """
        digest = digest_of(conditions, "gaps", asked_by)
        token = self._token(page_token, digest) or PageToken(self._reader.head().size, 0)
        rows = self._reader.gaps(
            conditions,
            last=token.snapshot_size,
            intents_before=intents_before,
            limit=page_size + 1,
            offset=token.index,
        )
        if len(rows) <= page_size:
            return rows, ""
        return rows[:page_size], PageToken(token.snapshot_size, token.index + page_size).text(
            self._page_key, digest
        )

    def summary(
        self, recorded_from: int, conditions: Sequence[Condition] = ()
    ) -> tuple[int, dict[str, list[tuple[str, int]]]]:
        """The tree size, and counts per value of each of `SUMMARY_COLUMNS` since a time, under these conditions."""
        first = self._reader.index_at(recorded_from)
        return self._reader.head().size, {
            column: self._reader.counts(column, first, conditions) for column in SUMMARY_COLUMNS
        }

    def _token(self, text: str, digest: bytes) -> PageToken | None:
        """Where a page starts; None without a token. Raises `InvalidArgumentError` for one that no reply carried."""
        token = PageToken.parse(text, self._page_key, digest) if text else None
        if token is not None and token.snapshot_size > self._reader.head().size:
            raise InvalidArgumentError("page_token", "is of a larger log; start again without one")
        return token

    def _found(self, entry: StoredEntry, proof: str = "") -> FoundEntry:
        return FoundEntry(entry, self._reader.kept_kinds([entry.index]).get(entry.index, ()), proof)

    def _kept_payload(self, index: int, kind: str) -> tuple[StoredEntry, PayloadRow]:
        entry = self._reader.entry(index) if index <= MAX_TREE_SIZE else None
        if entry is None:
            raise NotFoundError(f"the log has no entry {index}")
        rows = [row for row in self._reader.payloads(index) if row.kind == kind]
        if not rows:
            raise NotFoundError(f"entry {index} has no payload {kind!r}")
        if not is_kept(rows[0].ciphertext):
            raise NotFoundError(
                f"the content of {kind!r} of entry {index} was erased, expired or never kept",
                reason="PAYLOAD_NOT_KEPT",
            )
        return entry, rows[0]

    def _prove(self, entry: StoredEntry) -> str:
        size, note = self.checkpoint(None)
        path = inclusion_proof(entry.index, size, TileReader(size, self._reader.hashes).node)
        return receipt_text(entry.leaf, entry.index, path, note)
