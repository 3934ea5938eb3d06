"""Verification of a log from its tiles (c2sp.org/tlog-tiles): a directory or an address, with files, hashes and a key.

Every entry is hashed again and every tile compared with what the entries make of it; the result must be the root that
the log signed. What the entries say is not read unless asked for: the signed root vouches for their bytes.
One bundle of 256 entries is in memory at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from hashlib import sha256
from typing import Final

from kala.audit.checkpoint import Checkpoint, open_checkpoint
from kala.audit.merkle import HASH_BYTES, LEAF_PREFIX, NODE_PREFIX, CompactRange, consistency_proof
from kala.audit.note import Verifier
from kala.audit.proof import verify_consistency
from kala.audit.report import TILE_LEVELS, TILE_WIDTH, LogReport, TamperedError, UnverifiableError
from kala.audit.sources import TileSource
from kala.audit.tile_check import require_tile
from kala.audit.tile_nodes import TileReader, open_tiles
from kala.audit.tile_paths import CHECKPOINT_PATH, LENGTH_BYTES, TilePath
from kala.errors import VerificationError

_MASK: Final = TILE_WIDTH - 1
# Bundles, with their tiles, that a source may fetch before they are read: a few MB, at worst 135.
AHEAD: Final = 8

OnProgress = Callable[[int, int], None]
# Sees every entry with its index; raises `TamperedError` when it says what it must not.
OnEntry = Callable[[int, bytes], None]


def read_checkpoint(source: TileSource, trusted: Sequence[Verifier]) -> tuple[Checkpoint, str]:
    """The checkpoint that a source shows now and its note; `UnverifiableError` when it has none of a trusted key."""
    if not trusted:
        raise UnverifiableError("a log is verified with its public key: none was given")
    data = source.read(CHECKPOINT_PATH)
    if data is None:
        raise UnverifiableError("there is no checkpoint here, so no log to verify")
    try:
        note = data.decode()
        return open_checkpoint(note, trusted), note
    except UnicodeDecodeError as error:
        raise TamperedError(None, "it is not text", place="the checkpoint") from error
    except VerificationError as error:
        if data.partition(b"\n")[0].decode(errors="replace") not in {verifier.name for verifier in trusted}:
            raise UnverifiableError(
                f"the checkpoint is not of a log whose key was given: {error.message}"
            ) from error
        raise TamperedError(None, error.message, place="the checkpoint") from error


def verify_tiles(
    source: TileSource,
    trusted: Sequence[Verifier],
    *,
    pinned: str | None = None,
    resume: bool = False,
    first: int = 0,
    on_progress: OnProgress | None = None,
    on_entry: OnEntry | None = None,
) -> LogReport:
    """Returns what the log behind `source` proves, or raises `TamperedError` naming the first bad entry.

    `pinned` is a signed checkpoint of an earlier run, kept elsewhere. With `resume`, entries that it covers are not
    read again: they are proved to be the ones that were verified then, not to be still readable now. Entries before
    `first` are not read either, for a log that dropped them: of these only the hashes are held against the signed root.
    """
    known = None if pinned is None else open_pinned(pinned, trusted)
    if resume and known is None:
        raise UnverifiableError("to resume, give the checkpoint of an earlier run")
    checkpoint, note = read_checkpoint(source, trusted)
    if known is not None and known.size > checkpoint.size:
        raise TamperedError(
            checkpoint.size,
            f"the pinned checkpoint covers {known.size} entries: the log was cut or is an old copy",
        )
    tiles = StoredTiles(source, checkpoint.size)
    start = known.size & ~_MASK if resume and known is not None else 0
    start = min(max(start, first + _MASK & ~_MASK), checkpoint.size & ~_MASK)
    if known is not None and 0 < known.size < start:
        _require_continued(known, checkpoint, tiles)
    walk = _Walk(tiles, known, start)
    numbers = range(start >> TILE_LEVELS, checkpoint.size + _MASK >> TILE_LEVELS)
    for number in numbers[:AHEAD]:
        tiles.expect(number)
    for number in numbers:
        if number + AHEAD in numbers:
            tiles.expect(number + AHEAD)
        walk.take(number, on_entry)
        if on_progress is not None:
            on_progress(walk.size, checkpoint.size)
    walk.finish(checkpoint)
    return LogReport(checkpoint, note, checkpoint.size, 1, 0, 0, resumed_from=start)


def _require_continued(known: Checkpoint, checkpoint: Checkpoint, tiles: StoredTiles) -> None:
    try:
        hashes = consistency_proof(
            known.size, checkpoint.size, TileReader(checkpoint.size, tiles.hashes).node
        )
        verify_consistency(known.size, checkpoint.size, hashes, known.root, checkpoint.root)
    except VerificationError as error:
        raise TamperedError(
            0,
            f"nothing leads from the pinned checkpoint of {known.size} entries to this log: {error.message}",
        ) from error


def open_pinned(note: str, trusted: Sequence[Verifier]) -> Checkpoint:
    """The checkpoint that an earlier run kept; `UnverifiableError` when it is of no use."""
    try:
        return open_checkpoint(note, trusted)
    except VerificationError as error:
        raise UnverifiableError(f"the pinned checkpoint cannot be used: {error.message}") from error


class StoredTiles:
    """The tiles and entries of a log of one size, as a source has them."""

    def __init__(self, source: TileSource, size: int) -> None:
        self._source = source
        self.size = size

    def hashes(self, level: int, first: int, last: int) -> list[bytes]:
        """The hashes [first, last) of one tile; raises `TamperedError` when the source lacks them."""
        if first == last:
            return []
        number = first // TILE_WIDTH
        data = self.tile(level, number)
        if data is None or len(data) != self.width(level, number) * HASH_BYTES:
            raise TamperedError(number * TILE_WIDTH ** (level + 1), f"the tile {level}/{number} is not there")
        start = first - number * TILE_WIDTH
        return [data[i * HASH_BYTES : (i + 1) * HASH_BYTES] for i in range(start, start + last - first)]

    def tile(self, level: int, number: int) -> bytes | None:
        """A tile as wide as the log's size makes it, or None."""
        width = self.width(level, number)
        data = self._source.read(str(TilePath(level, number, width)))
        if data is None and width != TILE_WIDTH:
            # The specification lets a log drop a partial tile once the full one is there.
            full = self._source.read(str(TilePath(level, number)))
            return None if full is None else full[: width * HASH_BYTES]
        return data

    def entries(self, number: int) -> tuple[list[bytes], str]:
        """The entries that a bundle has, and what is wrong with it after them; "" when nothing is."""
        width = self.width(0, number)
        data = self._source.read(str(TilePath(None, number, width)))
        is_exact = data is not None
        if data is None and width != TILE_WIDTH:
            data = self._source.read(str(TilePath(None, number)))
        entries = _split(data or b"")
        if data is None:
            return (
                [],
                "the entry is not there; a log that dropped old entries is verified from the first it keeps",
            )
        if len(entries) < width:
            return entries, "the entry is not there"
        if is_exact and len(data or b"") != sum(map(len, entries[:width])) + LENGTH_BYTES * width:
            return entries[:width], "the bundle holds more than its entries"
        return entries[:width], ""

    def expect(self, number: int) -> None:
        """Says that this bundle and its tile will be read soon."""
        width = self.width(0, number)
        for level in (None, 0):
            self._source.expect(str(TilePath(level, number, width)))

    def width(self, level: int, number: int) -> int:
        """How many hashes the tile of this number has at the log's size."""
        return min((self.size >> TILE_LEVELS * level) - number * TILE_WIDTH, TILE_WIDTH)


class _Walk:
    """Follows the log bundle by bundle, with the tiles that still grow as its only memory."""

    def __init__(self, tiles: StoredTiles, pinned: Checkpoint | None, start: int) -> None:
        """`start` is a multiple of 256; what lies before it comes from the tiles, and the pinned root vouches for it."""
        self.size = start
        self._tiles = tiles
        self._pinned = pinned
        self._proved = 0
        self._rows = open_tiles(start, tiles.hashes)
        self._require_pinned([])

    def take(self, number: int, on_entry: OnEntry | None) -> None:
        """Takes the next bundle."""
        entries, problem = self._tiles.entries(number)
        first = number * TILE_WIDTH
        hashes = hash_leaves(entries)
        stored = self._tiles.tile(0, number)
        # Before what is wrong with the bundle: a changed length shifts all that follows it.
        expected = b"".join(hashes)
        require_tile(0, number, expected, stored[: len(expected)] if problem and stored else stored)
        if problem:
            raise TamperedError(first + len(entries), problem)
        if on_entry is not None:
            for index, entry in enumerate(entries, first):
                on_entry(index, entry)
        self._require_pinned(hashes)
        self.size = first + len(hashes)
        if len(hashes) == TILE_WIDTH:
            self._climb(1, fold_tile(hashes))
        else:
            self._rows[0] = hashes

    def finish(self, checkpoint: Checkpoint) -> None:
        """Compares the tiles that still grow, and the root with the signed one."""
        for level, row in self._rows.items():
            if level and row:
                number = self.size >> TILE_LEVELS * (level + 1)
                require_tile(level, number, b"".join(row), self._tiles.tile(level, number))
        if self._tree().root() != checkpoint.root:
            raise TamperedError(
                self._proved,
                f"entries {self._proved} to {max(self.size - 1, 0)} do not lead to the signed root at size {self.size}",
            )

    def _climb(self, level: int, digest: bytes) -> None:
        row = self._rows.setdefault(level, [])
        row.append(digest)
        if len(row) == TILE_WIDTH:
            number = (self.size >> TILE_LEVELS * (level + 1)) - 1
            require_tile(level, number, b"".join(row), self._tiles.tile(level, number))
            folded = fold_tile(row)
            row.clear()
            self._climb(level + 1, folded)

    def _tree(self) -> CompactRange:
        return CompactRange(self.size, peaks_of(self._rows))

    def _require_pinned(self, hashes: Sequence[bytes]) -> None:
        pinned = self._pinned
        if pinned is None or not self.size <= pinned.size <= self.size + len(hashes):
            return
        tree = self._tree()
        for digest in hashes[: pinned.size - self.size]:
            tree.append(digest)
        if tree.root() != pinned.root:
            raise TamperedError(
                0,
                f"the first {pinned.size} entries are not those of the pinned checkpoint: the log was forked",
            )
        self._proved = pinned.size


def _split(bundle: bytes) -> list[bytes]:
    """The whole entries of a bundle; what is left of a cut one is not among them."""
    entries: list[bytes] = []
    start, end = LENGTH_BYTES, len(bundle)
    while start <= end:
        stop = start + (bundle[start - 2] << 8 | bundle[start - 1])
        if stop > end:
            break
        entries.append(bundle[start:stop])
        start = stop + LENGTH_BYTES
    return entries


def hash_leaves(leaves: Sequence[bytes]) -> list[bytes]:
    """The leaf hashes of these leaves."""
    digest_of, prefix = sha256, LEAF_PREFIX  # locals: this is the verifier's inner loop
    return [digest_of(prefix + leaf).digest() for leaf in leaves]


def fold_tile(row: Sequence[bytes]) -> bytes:
    """The root over the hashes of a full tile."""
    digest_of, prefix = sha256, NODE_PREFIX  # as above
    while len(row) > 1:
        pairs = iter(row)
        row = [digest_of(prefix + left + right).digest() for left, right in zip(pairs, pairs, strict=True)]
    return row[0]


def peaks_of(rows: Mapping[int, Sequence[bytes]]) -> list[bytes]:
    """The compact range of a tree, from the hashes of the tile that still grows at each level."""
    peaks: list[bytes] = []
    for level in sorted(rows, reverse=True):
        tree = CompactRange()
        for digest in rows[level]:
            tree.append(digest)
        peaks += tree.hashes
    return peaks
