"""Appends records to a log that exists, one transaction each, and says on stdout what is acknowledged.

`python -m tests.fakes.power_loss_writer LOG COUNT SYNCHRONOUS`; the power-loss test runs it under strace. With
SYNCHRONOUS other than FULL it is broken on purpose.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from services.audit.storage.sqlite_store import SqliteWriter
from tests.fakes.audit_log import LogFile, record


def main() -> None:
    """Write until told."""
    path, count, synchronous = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    log = LogFile(path)
    assert isinstance(log.writer, SqliteWriter)
    if synchronous != "FULL":
        log.writer._db.execute(f"PRAGMA synchronous = {synchronous}")
    first = log.reader.head().size
    for number in range(first, first + count):
        (logged,) = log.append(record(number, payloads=1))
        os.write(1, f"ack {logged.index}\n".encode())
        if number == first + count // 2:
            log.batches.settle()
    os._exit(0)  # as abrupt as the power


if __name__ == "__main__":
    main()
