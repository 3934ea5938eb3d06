"""Exports: the matching entries of one tree size as whole lines, then the signed manifest that proves what they are."""

from __future__ import annotations

import base64
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Final

from kala.audit import canonical
from kala.audit.canonical import Json
from kala.audit.export_manifest import JSONL, SCHEMA, Run, gap_subtrees, signed_text
from kala.audit.tile_nodes import TileReader
from kala.errors import InvalidArgumentError, NotFoundError
from services.audit.entries import time_text
from services.audit.export.formats import FORMATS
from services.audit.reading.filters import Span
from services.audit.reading.query import Condition
from services.audit.reading.scan import Scanner
from services.audit.storage.store import LogReader, StoredEntry

# `ExportResponse.data` promises whole lines and at most 1 MiB; the longest line, a leaf in OCSF, has far less.
MAX_CHUNK_BYTES: Final = 1024 * 1024
# A read holds at most this many leaves of at most 65,535 bytes.
READ_ENTRIES: Final = 512
# Bounds the manifest, which is one message, to 34 MiB: 500,000 runs and as many hashes. Any export of a log of a million
# entries fits, and any of a larger one whose entries lie together.
MAX_RUNS: Final = 500_000
MAX_PROOF_HASHES: Final = 500_000
# Tiles that a proof's reader remembers before it starts anew: 8 MiB.
_TILES_REMEMBERED: Final = 512


@dataclass(frozen=True, slots=True)
class ExportPlan:
    """What is exported, in which format, and the filter as the manifest spells it."""

    conditions: Sequence[Condition]
    span: Span
    format: str
    described: dict[str, Json]


class ExportRun:
    """One export, chunk by chunk; blocking, for one thread at a time."""

    def __init__(
        self,
        reader: LogReader,
        plan: ExportPlan,
        *,
        origin: str,
        sign: Callable[[str], str],
        created_at: int,
    ) -> None:
        """Fixes the tree size; `sign` makes a signed note, `created_at` is in microseconds since 1970."""
        self._reader = reader
        self._plan = plan
        self._origin = origin
        self._sign = sign
        self._created_at = created_at
        self._write = FORMATS[plan.format]
        self._scanner = Scanner(reader)
        note = reader.note(None)
        if note is None:
            raise NotFoundError("the log is empty")
        self.size, self._note = note
        self._position, self._last = self._range()
        self._chunks: deque[bytes] = deque()
        self._digest = sha256()
        self._bytes = 0
        self._runs: list[list[int]] = []

    def next_chunk(self) -> bytes | None:
        """The next whole lines, at most 1 MiB, or None after the last; may be empty while nothing is found."""
        if not self._chunks:
            if self._position >= self._last:
                return None
            self._read_more()
        if not self._chunks:
            return b""
        chunk = self._chunks.popleft()
        self._digest.update(chunk)
        self._bytes += len(chunk)
        return chunk

    def manifest(self, receipt: str) -> bytes:
        """The signed manifest, when every chunk was taken; `receipt` is that of the export's own entry."""
        proof: str | None = None
        if self._plan.format == JSONL:
            proof = base64.b64encode(b"".join(self._gap_hashes())).decode()
        fields: dict[str, Json] = {
            "schema": SCHEMA,
            "origin": self._origin,
            "format": self._plan.format,
            "filter": self._plan.described,
            "created_at": time_text(self._created_at),
            "receipt": receipt,
            "count": sum(length for _, length in self._runs),
            "bytes": self._bytes,
            "sha256": self._digest.hexdigest(),
            "indexes": [list[Json](run) for run in self._runs],
            "tree_size": self.size,
            "checkpoint": self._note,
            "proof": proof,
        }
        return canonical.encode({**fields, "signature": self._sign(signed_text(fields))})

    def _range(self) -> tuple[int, int]:
        first, last, span = 0, self.size, self._plan.span
        if span.recorded_from is not None:
            first = self._reader.index_at(span.recorded_from)
        if span.recorded_until is not None:
            last = min(last, self._reader.index_at(span.recorded_until))
        return first, last

    def _read_more(self) -> None:
        found = self._scanner.scan(
            self._plan.conditions, first=self._position, last=self._last, limit=READ_ENTRIES
        )
        self._position = self._last if found.is_done else found.position
        for entry in found.rows:
            self._note_index(entry)
        self._chunks.extend(_chunks(self._write(found.rows, self._origin)))

    def _note_index(self, entry: StoredEntry) -> None:
        if self._runs and sum(self._runs[-1]) == entry.index:
            self._runs[-1][1] += 1
            return
        self._runs.append([entry.index, 1])
        self._require_provable(len(self._runs), MAX_RUNS)

    def _gap_hashes(self) -> Iterable[bytes]:
        runs: list[Run] = [(first, length) for first, length in self._runs]
        tiles = TileReader(self.size, self._reader.hashes)
        for number, (level, index) in enumerate(gap_subtrees(runs, self.size)):
            self._require_provable(number, MAX_PROOF_HASHES)
            if number % _TILES_REMEMBERED == _TILES_REMEMBERED - 1:
                tiles = TileReader(self.size, self._reader.hashes)
            yield tiles.node(level, index)

    def _require_provable(self, count: int, most: int) -> None:
        if count > most:
            raise InvalidArgumentError(
                "filter",
                f"picks entries too scattered to prove in one manifest (more than {most} pieces); "
                "narrow filter.from and filter.until, and export in parts",
            )


def _chunks(lines: Sequence[bytes]) -> Iterable[bytes]:
    """The lines, each with its newline, in as few pieces as their greatest size allows."""
    waiting: list[bytes] = []
    size = 0
    for line in lines:
        if waiting and size + len(line) + 1 > MAX_CHUNK_BYTES:
            yield b"\n".join(waiting) + b"\n"
            waiting, size = [], 0
        waiting.append(line)
        size += len(line) + 1
    if waiting:
        yield b"\n".join(waiting) + b"\n"
