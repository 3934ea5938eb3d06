"""The jobs' RPCs: accepted against the plan, one per adapter name, watched, cancelled, taken up after a restart."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, Protocol

from google.longrunning.operations_pb2 import Operation
from google.protobuf.message import Message

from kala.common.v1.clearance_pb2 import Principal
from kala.errors import FailedPreconditionError, InvalidArgumentError, KalaError, NotFoundError
from kala.trainer.v1 import job_pb2
from kala.trainer.v1 import trainer_pb2 as pb
from services.common.sealing import unpack_strictly
from services.trainer import names
from services.trainer.jobs.feed import KEPT_SECONDS, Feed
from services.trainer.jobs.life import Life
from services.trainer.jobs.logs import follow
from services.trainer.jobs.new_base import require_place
from services.trainer.jobs.retention import forget_rows
from services.trainer.jobs.states import has_ended, last_checkpoint, timestamp
from services.trainer.jobs.supervisor import SERVICE_RESTARTED, Supervisor, metadata_of
from services.trainer.operations import TRAIN, Asked, Operations, Work
from services.trainer.pages import MAX_SIZE, PageTokens
from services.trainer.places import Places
from services.trainer.records import TRAINING_STARTED, Claim, Cleared
from services.trainer.running import Running
from services.trainer.store.operation_rows import OperationRow
from services.trainer.store.store import Store

DEFAULT_SECONDS: Final = 86_400.0
MAX_SECONDS: Final = 14 * 86_400.0
MAX_PROBLEMS: Final = 20


class Planner(Protocol):
    """Says of a spec what stops it."""

    async def plan_spec(self, spec: job_pb2.TrainingSpec, principal: Principal) -> job_pb2.TrainingPlan:
        """The plan; a job may start when it has no problems and its spec is the one that was planned."""
        ...


@dataclass(frozen=True, slots=True)
class Bounds:
    """What the operator allows a job."""

    max_seconds: float = MAX_SECONDS
    bases_dir: Path | None = None
    """Where full fine-tuning puts new bases."""


class Jobs:
    """Serves the jobs of one trainer."""

    def __init__(
        self,
        *,
        store: Store,
        places: Places,
        operations: Operations,
        planner: Planner,
        supervisor: Supervisor,
        tokens: PageTokens,
        bounds: Bounds | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._places = places
        self._operations = operations
        self._planner = planner
        self._supervisor = supervisor
        self._tokens = tokens
        self._bounds = bounds or Bounds()
        self._clock = clock
        self._lives: dict[str, Life] = {}

    async def create(self, action: pb.CreateTrainingJobAction, cleared: Cleared) -> Operation:
        """Start a job, or give the one that the same request has already become.

        Raises FailedPreconditionError with the plan's problems, AlreadyExistsError when another job makes the adapter.
        """
        names.require_request_id(action.request_id)
        spec = action.spec
        names.require_stem(names.ADAPTERS, spec.adapter, field="spec.adapter")
        principal = cleared.verified.claims.principal
        number = names.new_number()
        asked = Asked(
            kind=TRAIN,
            request_id=action.request_id,
            principal=principal,
            digest=hashlib.sha256(cleared.sealed.action.value).digest(),
            seconds=self._seconds(spec),
            claims=(spec.adapter,),
            started=TRAINING_STARTED,
            attributes={"job": names.numbered(names.JOBS, number), "adapter": spec.adapter},
            metadata=job_pb2.CreateTrainingJobMetadata(
                job=names.numbered(names.JOBS, number), stage=spec.stage
            ),
        )
        known = await self._operations.find(asked)
        if known is not None:
            return known
        require_place(spec.method, self._bounds.bases_dir)
        await self._store.require_free(spec.adapter, principal.tenant)
        await self._require_planned(spec, principal)
        job = self._new_job(number, spec, cleared, asked.seconds)
        return await self._operations.start(
            asked, self._work(job), cleared=cleared, name=names.numbered(names.OPERATIONS, number)
        )

    async def resume(self, row: OperationRow, claim: Claim) -> Work | None:
        """Go on with a job that an earlier life of this service was doing; None when this release cannot."""
        name = names.numbered(names.JOBS, names.number_of(names.OPERATIONS, row.name))
        try:
            job = await self._store.get_job(name, None)
        except NotFoundError:
            # It was cut between the record that it begins and its first state.
            job = job_pb2.TrainingJob(name=name)
            self._fill(job, row.principal, row.created_at / 1e6, row.deadline_at / 1e6)
        try:
            # What runs is what was cleared, whatever became of the database.
            action = unpack_strictly(claim.sealed.action, pb.CreateTrainingJobAction)
        except KalaError as error:
            await self._fail(job, error, row.principal.subject)
            return None
        job.spec.CopyFrom(action.spec)
        return self._work(job, is_resumed=job.HasField("started_at"))

    async def get(self, request: pb.GetTrainingJobRequest, principal: Principal) -> pb.GetTrainingJobResponse:
        """Show a job."""
        return pb.GetTrainingJobResponse(job=await self._job(request.name, principal))

    async def list(
        self, request: pb.ListTrainingJobsRequest, principal: Principal
    ) -> pb.ListTrainingJobsResponse:
        """List jobs, the newest first."""
        if request.adapter:
            names.require_stem(names.ADAPTERS, request.adapter, field="adapter")
        page = self._tokens.page(
            "ListTrainingJobs",
            principal,
            request.page_size,
            request.page_token,
            request.state,
            request.adapter,
        )
        part = await self._store.list_jobs(
            principal.tenant,
            state=request.state,
            adapter=request.adapter,
            limit=page.limit,
            after=page.after,
        )
        return pb.ListTrainingJobsResponse(
            jobs=[self._now(job) for job in part.items],
            next_page_token=self._tokens.next_token(page, part.next_after),
        )

    async def cancel(
        self, request: pb.CancelTrainingJobRequest, principal: Principal
    ) -> pb.CancelTrainingJobResponse:
        """End a job; one that has ended stays as it is."""
        job = await self._job(request.name, principal)
        if not has_ended(job):
            await self._operations.end(job.operation)
        return pb.CancelTrainingJobResponse(job=await self._job(request.name, principal))

    async def watch(
        self, request: pb.WatchTrainingJobRequest, principal: Principal
    ) -> AsyncIterator[pb.WatchTrainingJobResponse]:
        """Stream what happens in a job, until it has ended."""
        job = await self._job(request.name, principal)
        life = self._lives.get(job.name)
        feed = life.feed if life is not None else Feed(self._folder(job.name), clock=self._clock)
        async with aclosing(feed.watch(job, request.after_sequence)) as events:  # type: ignore[type-var]  # a generator
            async for event in events:
                yield event

    async def watch_logs(
        self, request: pb.WatchLogsRequest, principal: Principal
    ) -> AsyncIterator[pb.WatchLogsResponse]:
        """Stream what a job's processes wrote, until it has ended."""
        job = await self._job(request.name, principal)

        def is_over() -> bool:
            life = self._lives.get(job.name)
            return not request.follow or life is None or life.ended_at is not None

        lines = follow(self._folder(job.name), after=request.after_line, is_over=is_over)
        async with aclosing(lines) as found:  # type: ignore[type-var]  # a generator
            async for line in found:
                yield line

    async def end_jobs_on(self, datasets: Sequence[str], reason: str) -> Sequence[str]:
        """End the jobs that use any of these datasets, wait until they have, and name them."""
        wanted = set(datasets)
        hit = [
            life.job
            for life in self._lives.values()
            if not has_ended(life.job) and wanted & {share.dataset.name for share in life.job.spec.datasets}
        ]
        for job in hit:
            await self._operations.end(job.operation, reason)
        await asyncio.gather(*(self._operations.wait(job.operation) for job in hit))
        return sorted(job.name for job in hit)

    async def forget_rows_of(self, datasets: Sequence[str], tenant: str) -> None:
        """Remove what jobs of any time keep in their folders of the rows of these datasets."""
        wanted, after = set(datasets), b""
        while wanted:
            part = await self._store.list_jobs(tenant, limit=MAX_SIZE, after=after)
            for job in part.items:
                if wanted & {share.dataset.name for share in job.spec.datasets}:
                    await forget_rows(self._folder(job.name))
            after = part.next_after
            if not after:
                return

    def sweep(self) -> None:
        """Let go of the events of jobs that ended an hour ago."""
        oldest = self._clock() - KEPT_SECONDS
        for name, life in list(self._lives.items()):
            if life.ended_at is not None and life.ended_at < oldest:
                del self._lives[name]

    async def _require_planned(self, spec: job_pb2.TrainingSpec, principal: Principal) -> None:
        plan = await self._planner.plan_spec(spec, principal)
        if plan.problems:
            told = "; ".join(plan.problems[:MAX_PROBLEMS])
            raise FailedPreconditionError(f"the job cannot run: {told}", reason="PLAN_HAS_PROBLEMS")
        if plan.spec != spec:
            differing = [
                field.name
                for field in spec.DESCRIPTOR.fields
                if getattr(plan.spec, field.name) != getattr(spec, field.name)
            ]
            raise FailedPreconditionError(
                f"spec: {', '.join(differing)} must be as PlanJob returns them, every field set; plan the job and "
                "send its spec",
                reason="SPEC_NOT_PLANNED",
            )

    def _seconds(self, spec: job_pb2.TrainingSpec) -> float:
        seconds = spec.deadline.ToNanoseconds() / 1e9 if spec.HasField("deadline") else DEFAULT_SECONDS
        most = min(MAX_SECONDS, self._bounds.max_seconds)
        if not 0 < seconds <= most:
            raise InvalidArgumentError("spec.deadline", f"must be above 0 and at most {most:.0f} s")
        return seconds

    def _new_job(
        self, number: str, spec: job_pb2.TrainingSpec, cleared: Cleared, seconds: float
    ) -> job_pb2.TrainingJob:
        job = job_pb2.TrainingJob(name=names.numbered(names.JOBS, number), spec=spec)
        now = self._clock()
        self._fill(job, cleared.verified.claims.principal, now, now + seconds)
        job.decision_id = cleared.verified.claims.decision_id
        return job

    def _fill(self, job: job_pb2.TrainingJob, principal: Principal, created: float, deadline: float) -> None:
        job.tenant, job.owner = principal.tenant, principal.id
        job.operation = names.numbered(names.OPERATIONS, names.number_of(names.JOBS, job.name))
        job.progress.state = job_pb2.JOB_STATE_QUEUED
        job.created_at.CopyFrom(timestamp(created))
        job.deadline_at.CopyFrom(timestamp(deadline))

    async def _fail(self, job: job_pb2.TrainingJob, error: KalaError, subject: str) -> None:
        """End a job that nobody is doing."""
        job.progress.state = job_pb2.JOB_STATE_FAILED
        job.error, job.error_reason = error.message, error.reason
        job.finished_at.CopyFrom(timestamp(self._clock()))
        await self._store.put_job(job, subject=subject)

    def _work(self, job: job_pb2.TrainingJob, *, is_resumed: bool = False) -> Work:
        """The job's work, and its life, which begins with the operation."""
        folder = self._folder(job.name)
        life = Life(job, Feed(folder, clock=self._clock), _never, clock=self._clock)
        is_unwanted = job.progress.state == job_pb2.JOB_STATE_CANCELLING

        async def began(running: Running) -> None:
            life.bind(partial(self._store.put_job, subject=running.principal.subject))
            if running.claim is not None:
                job.intent_receipt = running.claim.receipt_id
                job.decision_id = running.claim.claims.decision_id
            self._lives[job.name] = life
            if is_unwanted:
                return
            if is_resumed:
                step = await asyncio.to_thread(last_checkpoint, folder)
                job.progress.resumes += 1
                told = "the trainer was restarted; the job goes on from its last checkpoint"
                await life.become(job_pb2.JOB_STATE_RESUMING)
                await life.tell(
                    job_pb2.IncidentEvent(kind=SERVICE_RESTARTED, message=told, resumes_from_step=step)
                )
            else:
                await life.become(job_pb2.JOB_STATE_QUEUED)

        async def run(running: Running) -> Message:
            if is_unwanted:
                await self._supervisor.stop(running, life)
            return await self._supervisor.run(running, life)

        async def settle(running: Running, error: KalaError | None) -> Message:
            await life.settle(error)
            await running.show_in_operation(metadata_of(job))
            return job

        async def cancelling(running: Running) -> None:
            del running
            await life.become(job_pb2.JOB_STATE_CANCELLING)

        return Work(run, settle=settle, cancelling=cancelling, began=began)

    async def _job(self, name: str, principal: Principal) -> job_pb2.TrainingJob:
        names.number_of(names.JOBS, name)
        return self._now(await self._store.get_job(name, principal.tenant))

    def _now(self, job: job_pb2.TrainingJob) -> job_pb2.TrainingJob:
        """The job with the progress that is not written yet."""
        life = self._lives.get(job.name)
        return job if life is None else life.job

    def _folder(self, name: str) -> Path:
        return self._places.work(names.number_of(names.JOBS, name))


async def _never(job: job_pb2.TrainingJob) -> None:
    del job
