"""An audit service that is broken on purpose: it acknowledges records before they are on disk.

The kill test runs against it to show that its checker would notice a log that loses data.
"""

from __future__ import annotations

import sys
from pathlib import Path

from services.audit import __main__ as audit_process
from services.audit import stores
from services.audit.sqlite_store import SqliteWriter
from services.audit.store import Commit, Head
from services.common.event_loop import run

HELD_BATCHES = 20


class EarlyWriter(SqliteWriter):
    """Keeps batches in memory and writes them a few at a time, long after they were acknowledged."""

    def __init__(self, path: Path, *, origin: str, vkey: str) -> None:
        super().__init__(path, origin=origin, vkey=vkey)
        self._held: list[Commit] = []

    def head(self) -> Head:
        return self._held[-1].head if self._held else super().head()

    def commit(self, batch: Commit) -> None:
        self._held.append(batch)
        if len(self._held) >= HELD_BATCHES:
            self._write_held()

    def close(self) -> None:
        self._write_held()
        super().close()

    def _write_held(self) -> None:
        while self._held:
            super().commit(self._held[0])
            self._held.pop(0)


if __name__ == "__main__":
    stores.SqliteWriter = EarlyWriter  # type: ignore[misc] # the one thing that is broken
    sys.exit(run(audit_process.main()))
