"""Two checkpoints of one log: whether they are the same, one continues the other, or the log was forked between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from kala.audit.checkpoint import Checkpoint, open_checkpoint
from kala.audit.merkle import EMPTY_ROOT, CompactRange, consistency_proof
from kala.audit.mirror import StoredTiles, peaks_of
from kala.audit.note import Verifier
from kala.audit.proof import prefix_root, verify_consistency
from kala.audit.report import TamperedError, UnverifiableError
from kala.audit.sources import TileSource
from kala.audit.tile_nodes import TileReader, open_tiles
from kala.audit.tile_paths import CHECKPOINT_PATH
from kala.errors import DataLossError, KalaError, VerificationError


class Relation(Enum):
    """How two checkpoints of one log lie to each other."""

    SAME = "same"
    CONSISTENT = "consistent"
    FORKED = "forked"


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two checkpoints in order of size, and what is proved of them."""

    relation: Relation
    older: Checkpoint
    newer: Checkpoint


class LogView(Protocol):
    """What a follower needs of a log. Nothing that it gives is trusted; what it cannot give is `UnverifiableError`."""

    def newest(self) -> str:
        """The note of the newest checkpoint."""
        ...

    def prove(self, old_size: int, new_size: int) -> Sequence[bytes]:
        """The hashes of the consistency proof between two sizes (RFC 6962 section 2.1.2)."""
        ...

    def root(self, size: int) -> bytes | None:
        """The root that this view has at a size; None when it cannot say."""
        ...


class TileView:
    """A log as its tiles show it."""

    def __init__(self, source: TileSource) -> None:
        self._source = source

    def newest(self) -> str:
        """The note of the newest checkpoint."""
        data = self._source.read(CHECKPOINT_PATH)
        if data is None:
            raise UnverifiableError("there is no checkpoint here, so no log to follow")
        return data.decode(errors="replace")

    def prove(self, old_size: int, new_size: int) -> Sequence[bytes]:
        """The hashes of a consistency proof, read from as few tiles as it crosses."""
        tiles = self._tiles(new_size)
        try:
            return consistency_proof(old_size, new_size, TileReader(new_size, tiles.hashes).node)
        except (TamperedError, DataLossError) as error:
            raise UnverifiableError(f"the tiles give no proof: {error.message}") from error

    def root(self, size: int) -> bytes | None:
        """The root that the tiles make at a size."""
        try:
            return CompactRange(size, peaks_of(open_tiles(size, self._tiles(size).hashes))).root()
        except (TamperedError, DataLossError) as error:
            raise UnverifiableError(f"the tiles make no root: {error.message}") from error

    def _tiles(self, size: int) -> StoredTiles:
        # Of the size that the source shows: it need no longer have the partial tiles of a smaller one.
        try:
            shown = Checkpoint.parse(self.newest().rpartition("\n\n")[0] + "\n").size
        except VerificationError as error:
            raise UnverifiableError(f"the checkpoint here cannot be read: {error.message}") from error
        if shown < size:
            raise UnverifiableError(f"the log here has {shown} entries, fewer than {size}")
        return StoredTiles(self._source, shown)


def compare(
    first: Checkpoint, second: Checkpoint, view: LogView | None = None, trusted: Sequence[Verifier] = ()
) -> Comparison:
    """Says how two verified checkpoints lie to each other; of different sizes, by a proof that `view` gives.

    FORKED is said only when hashes prove it, so that no copy can accuse a log: they lead to one of the checkpoints, or to
    a newer one that a `trusted` key signed. `UnverifiableError`: they are of different logs, or no proof can be had.
    `TamperedError`: what the view gives leads nowhere.
    """
    if first.origin != second.origin:
        raise UnverifiableError(f"the checkpoints are of two logs, {first.origin} and {second.origin}")
    older, newer = sorted((first, second), key=lambda checkpoint: checkpoint.size)
    if older.size == newer.size:
        return Comparison(Relation.SAME if older.root == newer.root else Relation.FORKED, older, newer)
    if older.size == 0:
        # No proof begins at nothing; the only root of nothing begins every log.
        begins = older.root == EMPTY_ROOT
        return Comparison(Relation.CONSISTENT if begins else Relation.FORKED, older, newer)
    if view is None:
        raise UnverifiableError(
            f"that size {newer.size} continues size {older.size} needs a proof: name the log to ask, or its tiles"
        )
    try:
        verify_consistency(older.size, newer.size, view.prove(older.size, newer.size), older.root, newer.root)
    except VerificationError as error:
        if _begins(older, newer, view) is False or _parts(older, newer, view, trusted):
            return Comparison(Relation.FORKED, older, newer)
        raise TamperedError(None, "it is not the log of these checkpoints", place="the log's copy") from error
    return Comparison(Relation.CONSISTENT, older, newer)


def _parts(older: Checkpoint, newer: Checkpoint, view: LogView, trusted: Sequence[Verifier]) -> bool:
    """Whether the view's own signed head proves that one of these begins its log and the other does not."""
    try:
        head = open_checkpoint(view.newest(), trusted)
    except KalaError:
        return False
    if head.origin != newer.origin:
        return False
    return {_begins(checkpoint, head, view) for checkpoint in (older, newer)} == {True, False}


def _begins(checkpoint: Checkpoint, head: Checkpoint, view: LogView) -> bool | None:
    """Whether the log of `head` begins with that of `checkpoint`, by hashes that lead to `head`; None if none do."""
    if checkpoint.size >= head.size:
        return head.root == checkpoint.root if checkpoint.size == head.size else None
    try:
        hashes = view.prove(checkpoint.size, head.size)
        root = view.root(checkpoint.size) or prefix_root(checkpoint.size, head.size, hashes, head.root)
        verify_consistency(checkpoint.size, head.size, hashes, root, head.root)
    except KalaError:
        return None
    return root == checkpoint.root
