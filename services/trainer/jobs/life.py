"""The life of one job: its state for everybody who asks, and each change of it as an event."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable

from google.protobuf.message import Message

from kala.errors import CancelledError, KalaError
from kala.trainer.v1 import job_pb2, registry_pb2
from kala.trainer.v1 import trainer_pb2 as pb
from services.trainer.jobs.feed import Feed
from services.trainer.jobs.states import MAX_ERROR_CHARS, has_ended, timestamp
from services.trainer.work.events import Event

Save = Callable[[job_pb2.TrainingJob], Awaitable[None]]

SAVE_SECONDS = 5.0
"""Between two writes of progress; every change of state is written at once."""

TOLD_STATES = frozenset(
    {
        job_pb2.JOB_STATE_STARTING,
        job_pb2.JOB_STATE_DRAFTING,
        job_pb2.JOB_STATE_TRAINING,
        job_pb2.JOB_STATE_RESUMING,
        job_pb2.JOB_STATE_SAVING,
    }
)
"""What a process may say of where it stands; whether a job has ended, only the service says."""


class Life:
    """One job that is not over yet, and for an hour after."""

    def __init__(
        self, job: job_pb2.TrainingJob, feed: Feed, save: Save, *, clock: Callable[[], float] = time.time
    ) -> None:
        self.job = job
        self.feed = feed
        self.ended_at: float | None = None
        self._save = save
        self._clock = clock
        self._next_save = 0.0

    def bind(self, save: Save) -> None:
        """Name where it is kept."""
        self._save = save

    @property
    def state(self) -> job_pb2.JobState.ValueType:
        """Where it stands."""
        return self.job.progress.state

    async def become(self, state: job_pb2.JobState.ValueType) -> None:
        """Go to a state, keep it and tell it; a job that is being cancelled only ends."""
        if has_ended(self.job):
            return
        is_end = state in (
            job_pb2.JOB_STATE_SUCCEEDED,
            job_pb2.JOB_STATE_FAILED,
            job_pb2.JOB_STATE_CANCELLED,
        )
        if self.state == job_pb2.JOB_STATE_CANCELLING and not is_end:
            return
        self.job.progress.state = state
        now = timestamp(self._clock())
        if state == job_pb2.JOB_STATE_STARTING and not self.job.HasField("started_at"):
            self.job.started_at.CopyFrom(now)
        if is_end:
            self.job.finished_at.CopyFrom(now)
            self.job.progress.ClearField("remaining")
            self.ended_at = self._clock()
        await self.keep()
        self.feed.add(pb.WatchTrainingJobResponse(job=self.job))

    async def keep(self) -> None:
        """Write the job as it stands."""
        self._next_save = self._clock() + SAVE_SECONDS
        await self._save(self.job)

    async def hear(self, event: Event) -> None:
        """Take what a process of the job said."""
        response = pb.WatchTrainingJobResponse()
        match event.message:
            case job_pb2.TrainingProgress():
                await self._progressed(event.message, event.at)
                return
            case job_pb2.CheckpointEvent():
                self.job.progress.checkpoint_step = event.message.step
                response.checkpoint.CopyFrom(event.message)
            case job_pb2.IncidentEvent():
                response.incident.CopyFrom(event.message)
            case job_pb2.DraftEvent():
                response.draft.CopyFrom(event.message)
            case registry_pb2.EvaluateAdapterMetadata():
                response.evaluation.CopyFrom(event.message)
            case _:
                return
        self.feed.add(response, at=event.at)

    async def tell(self, message: Message) -> None:
        """Take what the service itself says of the job."""
        await self.hear(Event(0, self._clock(), message))

    async def settle(self, error: KalaError | None) -> None:
        """End it as its operation ended."""
        if error is None:
            await self.become(job_pb2.JOB_STATE_SUCCEEDED)
            return
        self.job.error = error.message[:MAX_ERROR_CHARS]
        self.job.error_reason = error.reason
        is_cancelled = isinstance(error, CancelledError)
        await self.become(job_pb2.JOB_STATE_CANCELLED if is_cancelled else job_pb2.JOB_STATE_FAILED)

    async def _progressed(self, progress: job_pb2.TrainingProgress, at: float) -> None:
        before, mine = self.state, self.job.progress
        resumes, checkpoint = mine.resumes, mine.checkpoint_step
        told = progress.state if progress.state in TOLD_STATES else before
        mine.CopyFrom(progress)
        # The service counts lives and knows the wish to end; a process only knows its own.
        mine.resumes = max(resumes, progress.resumes)
        mine.checkpoint_step = max(checkpoint, progress.checkpoint_step)
        mine.state = before
        if told != before:
            await self.become(told)
        self.feed.add(pb.WatchTrainingJobResponse(progress=mine), at=at)
        if self._clock() >= self._next_save:
            await self.keep()
