"""Verification of an export: its manifest by the log's key, its data by the manifest, its lines by the signed root.

A JSONL export is proved line by line: every line is the leaf at its index. The lines of other formats are made from
leaves; the log's signature over their digest is all there is to hold them against.
One piece of the data is in memory at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO, Final

from kala.audit.checkpoint import Checkpoint
from kala.audit.export_manifest import MAX_MANIFEST_BYTES, Manifest, gap_subtrees, parse_manifest
from kala.audit.leaf import MAX_LEAF_BYTES, parse_leaf
from kala.audit.merkle import CompactRange
from kala.audit.mirror import fold_tile, hash_leaves, open_pinned
from kala.audit.note import Verifier
from kala.audit.report import TILE_LEVELS, TILE_WIDTH, TamperedError, UnverifiableError
from kala.errors import VerificationError

MANIFEST_SUFFIX: Final = ".manifest.json"
PIECE_BYTES: Final = 1 << 20
_PLACE: Final = "the export"

OnProgress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class ExportReport:
    """What was verified of an export."""

    manifest: Manifest
    is_proved: bool
    """Whether every line is proved to be an entry; if not, the log's signature vouches for the data as a whole."""


def manifest_path(data: Path) -> Path:
    """Where the manifest of an export lies: beside its data."""
    return data.with_name(f"{data.name}{MANIFEST_SUFFIX}")


def verify_export(
    data: Path,
    trusted: Sequence[Verifier],
    *,
    manifest: Path | None = None,
    pinned: str | None = None,
    on_progress: OnProgress | None = None,
) -> ExportReport:
    """Returns what the export in this file proves, or raises `TamperedError` naming the first bad entry.

    Without `manifest`, the one beside the data is read. `pinned` is a signed checkpoint kept elsewhere.
    """
    if not trusted:
        raise UnverifiableError("an export is verified with the log's public key: none was given")
    described = _manifest(manifest or manifest_path(data), trusted)
    known = None if pinned is None else open_pinned(pinned, trusted)
    if known is not None:
        _require_comparable(described, known)
    try:
        with data.open("rb") as file:
            if described.hashes is None:
                _check_digest(file, described)
            else:
                _LineCheck(described, known, on_progress).run(file)
    except OSError as error:
        raise UnverifiableError(f"{data} cannot be read: {error.strerror}") from error
    return ExportReport(described, is_proved=described.hashes is not None)


def _manifest(path: Path, trusted: Sequence[Verifier]) -> Manifest:
    try:
        with path.open("rb") as file:
            written = file.read(MAX_MANIFEST_BYTES + 1)
    except OSError as error:
        raise UnverifiableError(f"the manifest {path} cannot be read: {error.strerror}") from error
    try:
        return parse_manifest(written, trusted)
    except VerificationError as error:
        raise TamperedError(None, error.message, place="the manifest") from error


def _require_comparable(manifest: Manifest, pinned: Checkpoint) -> None:
    signed = manifest.checkpoint
    if pinned.size > signed.size:
        raise UnverifiableError(
            f"the export is of {signed.size} entries and the pinned checkpoint covers {pinned.size}:"
            " leave the checkpoint away, or compare the two with `kala audit diff`"
        )
    if pinned.size == signed.size and pinned.root != signed.root:
        raise TamperedError(0, "the export is not of the log of the pinned checkpoint: the log was forked")
    if manifest.hashes is None and 0 < pinned.size < signed.size:
        raise UnverifiableError(
            f"an export as {manifest.format} cannot show that it continues the pinned checkpoint of {pinned.size}"
            " entries: leave the checkpoint away, or compare the two with `kala audit diff`"
        )


def _check_digest(file: BinaryIO, manifest: Manifest) -> None:
    digest, size = sha256(), 0
    while piece := file.read(PIECE_BYTES):
        digest.update(piece)
        size += len(piece)
    if (size, digest.hexdigest()) != (manifest.size_bytes, manifest.sha256):
        raise TamperedError(None, "the data is not what the manifest describes", place=_PLACE)


class _LineCheck:
    """Follows the lines of a JSONL export, with the right edge of the tree as its only memory."""

    def __init__(self, manifest: Manifest, pinned: Checkpoint | None, on_progress: OnProgress | None) -> None:
        self._manifest = manifest
        self._pinned = pinned
        self._on_progress = on_progress
        self._tree = CompactRange()
        self._subtrees = gap_subtrees(manifest.runs, manifest.checkpoint.size)
        self._hashes = iter(manifest.hashes or ())
        # Everything before it is proved to be what the pinned checkpoint covers.
        self._proved = 0

    def run(self, file: BinaryIO) -> None:
        manifest, digest, size = self._manifest, sha256(), self._manifest.checkpoint.size
        done, waiting = 0, list[bytes]()
        lines = _lines(file, digest.update)
        for first, length in manifest.runs:
            self._skip_to(first)
            while self._tree.size < first + length:
                waiting = waiting or next(lines, [])
                if not waiting:
                    raise self._bad(file, f"it ends after {done} of {manifest.count} lines")
                count = min(len(waiting), first + length - self._tree.size)
                self._take(hash_leaves(waiting[:count]))
                waiting, done = waiting[count:], done + count
                if self._on_progress is not None:
                    self._on_progress(done, manifest.count)
        self._skip_to(size)
        if waiting or next(lines, []):
            raise self._bad(file, f"it holds more than the {manifest.count} lines of its manifest")
        if self._tree.root() != manifest.checkpoint.root:
            raise self._bad(file, "its lines do not lead to the signed root")
        if (file.tell(), digest.hexdigest()) != (manifest.size_bytes, manifest.sha256):
            raise TamperedError(None, "the manifest describes other data than these entries", place=_PLACE)
        if self._pinned is not None and self._pinned.size != self._proved:
            raise UnverifiableError(
                f"the export does not hold the entries around {self._pinned.size}, where the pinned checkpoint ends:"
                " leave it away, or compare the two checkpoints with `kala audit diff`"
            )

    def _skip_to(self, index: int) -> None:
        """Takes the proof's subtrees up to this entry."""
        while self._tree.size < index:
            level, _ = next(self._subtrees)
            self._tree.append_subtree(level, next(self._hashes))
            self._compare_with_pinned()

    def _take(self, hashes: Sequence[bytes]) -> None:
        tree, start = self._tree, 0
        while start < len(hashes):
            if tree.size % TILE_WIDTH or len(hashes) - start < TILE_WIDTH or self._ends_soon():
                tree.append(hashes[start])
                start += 1
            else:
                tree.append_subtree(TILE_LEVELS, fold_tile(hashes[start : start + TILE_WIDTH]))
                start += TILE_WIDTH
            self._compare_with_pinned()

    def _ends_soon(self) -> bool:
        """Whether the pinned checkpoint ends within the next tile."""
        return self._pinned is not None and 0 < self._pinned.size - self._tree.size < TILE_WIDTH

    def _compare_with_pinned(self) -> None:
        if self._pinned is None or self._pinned.size != self._tree.size:
            return
        if self._pinned.root != self._tree.root():
            raise TamperedError(
                0, "the export does not begin with the entries of the pinned checkpoint: the log was forked"
            )
        self._proved = self._pinned.size

    def _bad(self, file: BinaryIO, problem: str) -> TamperedError:
        """The error that names the first line which is no leaf; without one, the first that nothing vouches for."""
        file.seek(0)
        indexes = (index for first, length in self._manifest.runs for index in range(first, first + length))
        unproved = None
        for line in (line for lines in _lines(file) for line in lines):
            index = next(indexes, None)
            if index is None or index < self._proved:
                continue
            unproved = index if unproved is None else unproved
            try:
                parse_leaf(line)
            except VerificationError as error:
                # A broken line may stand there to draw the eye from a changed one that is whole.
                before = (
                    f"; nor does anything vouch for the lines from entry {unproved} on"
                    if unproved < index
                    else ""
                )
                return TamperedError(index, f"the line is no entry of the log: {error.message}{before}")
        if unproved is None and self._manifest.runs:
            unproved = self._manifest.runs[0][0]
        return TamperedError(
            unproved, f"from here on nothing vouches for the export: {problem}", place=_PLACE
        )


def _lines(file: BinaryIO, on_piece: Callable[[bytes], object] | None = None) -> Iterator[list[bytes]]:
    """The lines of a file, a piece at a time; what follows the last newline is a line too."""
    rest = b""
    while piece := file.read(PIECE_BYTES):
        if on_piece is not None:
            on_piece(piece)
        *lines, rest = (rest + piece).split(b"\n")
        if len(rest) > MAX_LEAF_BYTES:
            raise TamperedError(None, f"a line has more than {MAX_LEAF_BYTES} bytes", place=_PLACE)
        if lines:
            yield lines
    if rest:
        yield [rest]
