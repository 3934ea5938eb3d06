"""The sequencer: gives every record its place, makes it durable, and answers with proof.

Callers wait in one bounded queue; a single writer thread takes all that wait, writes them in one transaction together
with the signed checkpoint that covers them, and only then answers. Nothing is acknowledged that is not on disk.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Final

import structlog

from kala.errors import InternalError, KalaError, ResourceExhaustedError, UnavailableError
from services.audit.batch import BatchWriter, Logged, Submission
from services.audit.entries import NewEntry

# c2sp's reference log pushes back at the same depth; at 10,000 records a second it is 0.4 s of waiting.
MAX_PENDING: Final = 4_096
# Bounds one transaction, and so the longest wait behind another caller's batch.
MAX_GROUP: Final = 2_048
RETRY_AFTER_SECONDS: Final = 0.5
# How long the writer is idle before it writes the WAL back: long enough not to come between two answers of one chat.
SETTLE_SECONDS: Final = 1.0

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class _Waiting:
    submission: Submission
    future: asyncio.Future[Sequence[Logged]]


class Log:
    """Appends to the log for one event loop. `start` it before use and `stop` it to finish what waits."""

    def __init__(
        self,
        writer: BatchWriter,
        *,
        max_pending: int = MAX_PENDING,
        settle_seconds: float = SETTLE_SECONDS,
    ) -> None:
        self._writer = writer
        self._settle_seconds = settle_seconds
        self._max_pending = max_pending
        self._pending = 0
        self._queue: SimpleQueue[_Waiting | None] = SimpleQueue()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="audit-writer", daemon=True)

    def start(self) -> None:
        """Starts the writer thread; answers arrive on the running event loop."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    async def stop(self) -> None:
        """Refuses new records, writes those that wait and ends the thread."""
        self._stopped = True
        self._queue.put(None)
        await asyncio.to_thread(self._thread.join)

    @property
    def pending(self) -> int:
        """How many records wait for their transaction."""
        return self._pending

    def submit(self, entries: Sequence[NewEntry], *, with_proof: bool) -> asyncio.Future[Sequence[Logged]]:
        """Puts entries in the queue, to be appended in order in one transaction or not at all.

        The future is done when they are on disk. It fails with `AlreadyExistsError` when a key is taken by another
        record and with `UnavailableError` when the database cannot write; cancelling it undoes nothing.
        Raises `ResourceExhaustedError` when the queue is full.
        """
        if self._stopped or self._loop is None:
            raise UnavailableError("the log is not running", reason="AUDIT_UNAVAILABLE")
        # A batch larger than the whole queue goes in alone: it would be turned away for ever.
        if self._pending and self._pending + len(entries) > self._max_pending:
            raise ResourceExhaustedError(
                f"{self._pending} records wait already",
                reason="AUDIT_QUEUE_FULL",
                retry_after_seconds=RETRY_AFTER_SECONDS,
            )
        future: asyncio.Future[Sequence[Logged]] = self._loop.create_future()
        self._pending += len(entries)
        self._queue.put(_Waiting(Submission(entries, with_proof), future))
        return future

    def _run(self) -> None:
        is_settled = False
        while True:
            try:
                first = self._queue.get(timeout=None if is_settled else self._settle_seconds)
            except Empty:
                # Nobody waits: a moment to put everything in the one file that verifiers and backups read.
                self._writer.settle()
                is_settled = True
                continue
            if first is None:
                return
            group, stopping = self._take_more(first)
            self._write(group)
            is_settled = False
            if stopping:
                return

    def _take_more(self, first: _Waiting) -> tuple[list[_Waiting], bool]:
        """All that waits beside `first`, up to the largest group; and whether the log is told to stop."""
        group, count = [first], len(first.submission.entries)
        while count < MAX_GROUP and not self._queue.empty():
            waiting = self._queue.get()
            if waiting is None:
                return group, True
            group.append(waiting)
            count += len(waiting.submission.entries)
        return group, False

    def _write(self, group: Sequence[_Waiting]) -> None:
        outcomes = self._outcomes([waiting.submission for waiting in group])
        assert self._loop is not None  # noqa: S101 - start() came first
        self._loop.call_soon_threadsafe(self._resolve, group, outcomes)

    def _outcomes(self, submissions: Sequence[Submission]) -> Sequence[Sequence[Logged] | KalaError]:
        try:
            return self._writer.write(submissions)
        except KalaError as error:
            return [error] * len(submissions)
        except Exception:  # the edge of the writer thread: a bug must not leave callers waiting for ever
            log.exception("the audit writer failed")
            if len(submissions) == 1:
                return [InternalError("the log cannot write this")]
        # A bug that one caller's record brings out must not fail those that happen to wait beside it.
        return [outcome for submission in submissions for outcome in self._outcomes([submission])]

    def _resolve(self, group: Sequence[_Waiting], outcomes: Sequence[Sequence[Logged] | KalaError]) -> None:
        for waiting, outcome in zip(group, outcomes, strict=True):
            self._pending -= len(waiting.submission.entries)
            if waiting.future.done():
                continue
            if isinstance(outcome, KalaError):
                waiting.future.set_exception(outcome)
            else:
                waiting.future.set_result(outcome)


def system_clock() -> int:
    """The time in microseconds since 1970."""
    return time.time_ns() // 1_000
