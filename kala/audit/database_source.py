"""The tiles of a log kept in SQLite, as any other source of tiles gives them."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from kala.audit.database import LOG_ID, connect, unreadable
from kala.audit.merkle import HASH_BYTES
from kala.audit.report import TamperedError, UnverifiableError
from kala.audit.tile_paths import CHECKPOINT_PATH, MAX_ENTRY_BYTES, TilePath, bundle

_NOTE: Final = f"SELECT note FROM checkpoint WHERE log_id = {LOG_ID} ORDER BY size DESC LIMIT 1"  # noqa: S608 - constants only
_ENTRIES: Final = "FROM entry WHERE log_id = ? AND idx >= ? AND idx < ? ORDER BY idx"
_TILE: Final = "SELECT data FROM tile WHERE log_id = ? AND level = ? AND n = ?"


class DatabaseSource:
    """Reads the file directly and never writes it; close it. The log may be in use."""

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise UnverifiableError(f"{path} is not a file")
        with unreadable(lambda: None):
            self._db = connect(path)

    def close(self) -> None:
        """Closes the file."""
        self._db.close()

    def read(self, path: str) -> bytes | None:
        """The tile, bundle or checkpoint of this path; `TamperedError` where the database cannot be read."""
        with unreadable(lambda: None):
            return self._checkpoint() if path == CHECKPOINT_PATH else self._tile(TilePath.parse(path))

    def expect(self, path: str) -> None:
        """Does nothing: a file is quick."""

    def _checkpoint(self) -> bytes | None:
        row = self._db.execute(_NOTE).fetchone()
        return None if row is None else str(row[0]).encode()

    def _tile(self, tile: TilePath) -> bytes | None:
        if tile.level:
            row = self._db.execute(_TILE, (LOG_ID, tile.level, tile.number)).fetchone()
            return None if row is None else _blob(row[0])[: tile.width * HASH_BYTES]
        column = "leaf" if tile.level is None else "leaf_hash"
        rows = self._db.execute(f"SELECT {column} {_ENTRIES}", (LOG_ID, tile.first, tile.last))
        found = [_blob(row[0]) for row in rows]
        if len(found) < tile.width:
            return None
        if tile.level is None:
            for index, leaf in enumerate(found, tile.first):
                if len(leaf) > MAX_ENTRY_BYTES:
                    raise TamperedError(index, f"a leaf has at most {MAX_ENTRY_BYTES} bytes")
        return bundle(found) if tile.level is None else b"".join(found)


def _blob(value: object) -> bytes:
    """A column's bytes; a tampered row may hold anything, and then holds no entry and no hash."""
    return value if isinstance(value, bytes) else b""
