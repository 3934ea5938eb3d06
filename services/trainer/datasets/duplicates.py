"""Finds rows that are the same, or nearly, as one that was kept before."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from services.trainer.datasets.rows import Row

if TYPE_CHECKING:
    from services.trainer.datasets.near_rows import NearRows

DEFAULT_SIMILARITY: Final = 0.8
_EXACT_BYTES: Final = 16


class Duplicates:
    """Remembers rows: equal ones by digest, near ones by MinHash over runs of five words.

    Rows of generators are alike by design, so among themselves only equal ones count; a row of a file counts as a duplicate
    of whatever file's row it is near to.
    """

    def __init__(self, similarity: float = DEFAULT_SIMILARITY) -> None:
        self._exact: set[bytes] = set()
        self._near: NearRows | None = None
        self._similarity = similarity

    def seen(self, row: Row, *, near: bool) -> bool:
        """Says whether such a row was kept before, and remembers it if not; `near` compares by likeness too."""
        digest = row.digest()[:_EXACT_BYTES]
        if digest in self._exact:
            return True
        if near and self._similarity < 1 and self._nearby().seen(row):
            return True
        self._exact.add(digest)
        return False

    def _nearby(self) -> NearRows:
        if self._near is None:
            # Half a second of imports that a dataset of generators alone does without.
            from services.trainer.datasets.near_rows import NearRows

            self._near = NearRows(self._similarity)
        return self._near
