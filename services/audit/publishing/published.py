"""What the log publishes: checkpoints with their cosignatures, tiles and bundles of entries (c2sp.org/tlog-tiles)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from kala.audit.tile_paths import TilePath, bundle
from kala.errors import DataLossError, NotFoundError, UnavailableError
from services.audit.storage.store import LogReader


class Cosignatures(Protocol):
    """The cosignatures that witnesses gave."""

    def lines(self, size: int) -> Sequence[str]:
        """The lines of the checkpoint of this size."""
        ...

    def publishable(self) -> int | None:
        """The newest size that as many witnesses cosigned as the policy wants; None for the newest of all."""
        ...


class NoCosignatures:
    """Of a log without witnesses: every checkpoint may be published as the log signed it."""

    def lines(self, size: int) -> Sequence[str]:
        """None."""
        del size
        return ()

    def publishable(self) -> int | None:
        """The newest."""
        return None


class PublishedLog:
    """Reads what is published from one reader; blocking, for one thread at a time."""

    def __init__(self, reader: LogReader, cosignatures: Cosignatures) -> None:
        self._reader = reader
        self._cosignatures = cosignatures

    def checkpoint(self) -> str:
        """The newest checkpoint that may be published, with its cosignatures.

        Raises `UnavailableError` while there is none: the witnesses have not cosigned yet.
        """
        found = self._reader.note(self._cosignatures.publishable())
        if found is None:
            raise UnavailableError(
                "no checkpoint has the cosignatures that the log's policy wants yet",
                reason="AUDIT_NOT_WITNESSED",
                retry_after_seconds=1.0,
            )
        size, note = found
        return note + "".join(self._cosignatures.lines(size))

    def lines(self, size: int) -> Sequence[str]:
        """The cosignatures of the checkpoint of this size, a line each."""
        return self._cosignatures.lines(size)

    def resource(self, path: TilePath) -> bytes:
        """The tile or bundle at this path; raises `NotFoundError` for one that the log does not have (yet)."""
        if not path.is_in(self._reader.head().size):
            raise NotFoundError(f"the log has no {path} yet")
        if path.level is None:
            rows = self._reader.query(
                [], first=path.first, last=path.last, limit=path.width, descending=False
            )
            if not rows:
                raise NotFoundError(f"the entries of {path} were dropped by retention; their hashes are kept")
            content = [row.leaf for row in rows]
        else:
            content = self._reader.hashes(path.level, path.first, path.last)
        if len(content) != path.width:
            raise DataLossError(f"the store holds {len(content)} of the {path.width} items of {path}")
        return bundle(content) if path.level is None else b"".join(content)
