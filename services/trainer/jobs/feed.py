"""The events of one job, for everybody who watches: the last hour is kept, and each watcher reads at its own pace."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Final

from kala.errors import FailedPreconditionError
from kala.trainer.v1 import job_pb2
from kala.trainer.v1 import trainer_pb2 as pb
from services.trainer.jobs.states import has_ended, timestamp

KEPT_SECONDS: Final = 3_600.0
KEPT_EVENTS: Final = 20_000
"""Bounds the memory of a job with many events a second; an hour of progress once a second has 3,600."""

SEQUENCE: Final = "sequence"
SAVED_EVERY: Final = 100
"""After a restart numbers go on this far above the last one that was saved, so that none is given twice."""


class Feed:
    """What happened in a job, numbered."""

    def __init__(self, folder: Path, *, clock: Callable[[], float] = time.time) -> None:
        self._path = folder / SEQUENCE
        self._clock = clock
        self._events: deque[pb.WatchTrainingJobResponse] = deque(maxlen=KEPT_EVENTS)
        self._changed = asyncio.Event()
        self.last = _saved(self._path)

    def add(self, event: pb.WatchTrainingJobResponse, *, at: float | None = None) -> None:
        """Number an event and show it to everybody who watches."""
        self.last += 1
        event.sequence = self.last
        event.at.CopyFrom(timestamp(self._clock() if at is None else at))
        self._events.append(event)
        self._forget_old()
        if self.last % SAVED_EVERY == 1:
            self._save()
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def watch(self, job: job_pb2.TrainingJob, after: int) -> AsyncIterator[pb.WatchTrainingJobResponse]:
        """The job as it stands, or what came after an event, then what comes, until the job has ended."""
        if after:
            self._require_kept(after)
        else:
            now = timestamp(self._clock())
            after = self.last
            yield pb.WatchTrainingJobResponse(sequence=after, at=now, job=job)
            if has_ended(job):
                return
        while True:
            # Taken before looking: what is added meanwhile wakes this watcher at once.
            changed = self._changed
            waiting = [event for event in self._events if event.sequence > after]
            if waiting and waiting[0].sequence != after + 1:
                self._require_kept(after)
            for event in waiting:
                after = event.sequence
                yield event
                if event.WhichOneof("event") == "job" and has_ended(event.job):
                    return
            if not waiting:
                await changed.wait()

    def _require_kept(self, after: int) -> None:
        first = self._events[0].sequence if self._events else self.last + 1
        if not first - 1 <= after <= self.last:
            raise FailedPreconditionError(
                f"after_sequence: event {after} is not kept (there are {first} to {self.last}); watch again with 0",
                reason="EVENTS_GONE",
            )

    def _forget_old(self) -> None:
        oldest = self._clock() - KEPT_SECONDS
        while self._events and self._events[0].at.seconds < oldest:
            self._events.popleft()

    def _save(self) -> None:
        with contextlib.suppress(OSError):
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._path.write_text(str(self.last + SAVED_EVERY))


def _saved(path: Path) -> int:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return 0
