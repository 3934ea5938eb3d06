"""The audit service with a stopwatch around its writer: `python -m bench.audit_process`.

`BENCH_AUDIT_FIGURES` names the file that holds the figures so far whenever the service is idle.
With `BENCH_AUDIT_STORE=none` nothing is written: what is left is what everything but the database costs.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kala.audit.note import Signer
from kala.audit.v1 import audit_pb2
from kala.errors import KalaError
from services.audit import __main__ as audit_process
from services.audit import servicer
from services.audit.batch import BatchWriter, Logged, Submission
from services.audit.config import AuditSettings
from services.audit.entries import NewEntry
from services.audit.records import entry_of
from services.audit.storage.store import Commit, Head, HeadMovedError, LogWriter
from services.audit.storage.stores import LogStore, open_log_store
from services.common.event_loop import run


@dataclass(slots=True)
class Figures:
    """What the writer did, in seconds of wall time and of its thread's CPU."""

    records: int = 0
    batches: int = 0
    conflicts: int = 0
    write_seconds: float = 0.0
    write_cpu: float = 0.0
    commit_seconds: float = 0.0
    commit_cpu: float = 0.0
    read_cpu: float = 0.0


FIGURES = Figures()


class TimedWriter:
    """A writer whose commits are timed, or left out."""

    def __init__(self, writer: LogWriter, *, keeps: bool) -> None:
        self._writer = writer
        self._keeps = keeps
        self._head: Head | None = None

    def __getattr__(self, name: str) -> Any:  # Any: whatever the writer has
        return getattr(self._writer, name)

    def head(self) -> Head:
        return self._head or self._writer.head()

    def commit(self, batch: Commit) -> None:
        if not self._keeps:
            self._head = batch.head
            return
        wall, cpu = time.perf_counter(), time.thread_time()
        try:
            self._writer.commit(batch)
        except HeadMovedError:
            FIGURES.conflicts += 1
            raise
        finally:
            FIGURES.commit_seconds += time.perf_counter() - wall
            FIGURES.commit_cpu += time.thread_time() - cpu


class TimedBatches(BatchWriter):
    """A batch writer that is timed as a whole."""

    def write(self, submissions: Sequence[Submission]) -> list[Sequence[Logged] | KalaError]:
        wall, cpu = time.perf_counter(), time.thread_time()
        outcomes = super().write(submissions)
        FIGURES.write_seconds += time.perf_counter() - wall
        FIGURES.write_cpu += time.thread_time() - cpu
        FIGURES.batches += 1
        FIGURES.records += sum(len(submission.entries) for submission in submissions)
        return outcomes

    def settle(self) -> None:
        super().settle()
        path = Path(os.environ["BENCH_AUDIT_FIGURES"])
        path.with_suffix(".new").write_text(json.dumps(asdict(FIGURES)))
        path.with_suffix(".new").rename(path)


def timed_entry_of(record: audit_pb2.Record, recorded_by: str) -> NewEntry:
    """As `entry_of`, and timed; the clock itself costs 0.1 us."""
    cpu = time.thread_time()
    entry = entry_of(record, recorded_by)
    FIGURES.read_cpu += time.thread_time() - cpu
    return entry


def _open(settings: AuditSettings, signer: Signer) -> LogStore:
    store = open_log_store(settings, signer)
    keeps = os.environ.get("BENCH_AUDIT_STORE") != "none"
    store.writer = TimedWriter(store.writer, keeps=keeps)
    return store


if __name__ == "__main__":
    audit_process.open_log_store = _open
    audit_process.BatchWriter = TimedBatches  # type: ignore[misc] # the same, timed
    servicer.entry_of = timed_entry_of
    sys.exit(run(audit_process.main()))
