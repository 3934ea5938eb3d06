"""Does a job: finds what it names, runs its process until it is through, registers the adapter, evaluates it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NoReturn

import structlog

from kala.common.v1.reference_pb2 import ContentReference
from kala.errors import CancelledError, FailedPreconditionError, InternalError, KalaError
from kala.trainer.v1 import job_pb2
from services.trainer.cores import usable_cores
from services.trainer.desks import Adapters, Evaluations, Trained
from services.trainer.jobs.life import Life
from services.trainer.jobs.new_base import keep_base, require_place
from services.trainer.jobs.resolving import Resolved, Resolving
from services.trainer.jobs.states import last_checkpoint, reports_in
from services.trainer.reports.redraw import redraw
from services.trainer.running import LOCAL, RAY, Running
from services.trainer.work.ended import Ended
from services.trainer.work.order import TRAIN, Order, ServicePlaces

WORKER_LOST: Final = "WORKER_LOST"
SERVICE_RESTARTED: Final = "SERVICE_RESTARTED"

FIRST_PAUSE_SECONDS: Final = 1.0
LAST_PAUSE_SECONDS: Final = 30.0
"""Between a crash and the next try: a machine that is out of something gets time to find it again."""

log: Final = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Rules:
    """How jobs are run on this machine."""

    public_keys: tuple[Path, ...]
    services: ServicePlaces
    threads: int = 0
    """0 means one per core that this process may use."""
    memory_bytes: int = 0
    max_restarts: int = 3
    """In a row without a new checkpoint."""
    settings: Mapping[str, Any] = field(default_factory=dict)  # Any: JSON for the training process
    pause_seconds: float = FIRST_PAUSE_SECONDS
    bases_dir: Path | None = None
    """Where new bases go."""


@dataclass(frozen=True, slots=True)
class Parts:
    """The domains that a job passes through."""

    resolving: Resolving
    adapters: Adapters | None
    evaluations: Evaluations | None


class Supervisor:
    """Does jobs, one call each."""

    def __init__(self, parts: Parts, rules: Rules, *, clock: Callable[[], float] = time.time) -> None:
        self._parts = parts
        self._rules = rules
        self._clock = clock

    async def run(self, running: Running, life: Life) -> job_pb2.TrainingJob:
        """Do the job to its end; raises the KalaError that ended it."""
        since = self._clock()
        spec = life.job.spec
        require_place(spec.method, self._rules.bases_dir)
        running.on_metadata = life.tell
        await life.become(job_pb2.JOB_STATE_STARTING)
        resolved = await self._parts.resolving.job(spec, running.principal)
        result = await self._train(running, life, resolved)
        new_base: list[ContentReference] = []
        if spec.method != job_pb2.TRAINING_METHOD_FULL:
            await self._register(running, life, resolved, result, since)
        elif self._rules.bases_dir is not None:
            await life.become(job_pb2.JOB_STATE_SAVING)
            new_base = await keep_base(life.job, running.folder, self._rules.bases_dir)
            running.end_references.extend(new_base)
        del life.job.reports[:]
        life.job.reports.extend([*new_base, *await asyncio.to_thread(reports_in, running.folder)])
        await self._show(running, life)
        return life.job

    async def stop(self, running: Running, life: Life) -> NoReturn:
        """End a job whose end was wished before the service was restarted, and what of it still runs elsewhere."""
        if life.job.ray_job:

            async def attached(_: str) -> None:
                # As if it was cancelled right then: the executor ends the work before it lets go.
                raise asyncio.CancelledError

            order = Order(TRAIN, life.job.name, running.folder, running.principal, running.deadline)
            with suppress(asyncio.CancelledError):
                await running.attempt(
                    order,
                    executor=executor_of(life.job.spec.placement),
                    placement=life.job.spec.placement,
                    attached=attached,
                    elsewhere_id=life.job.ray_job,
                )
        raise CancelledError("it was cancelled")

    async def _train(self, running: Running, life: Life, resolved: Resolved) -> dict[str, Any]:  # Any: JSON
        """Run the process, again after each crash, as long as it gets anywhere."""
        executor = executor_of(life.job.spec.placement)
        order = self._order(running, life, resolved)
        elsewhere_id, futile, saved = life.job.ray_job, 0, last_checkpoint(running.folder)
        while True:
            ended = await self._attempt(running, life, order, executor, elsewhere_id)
            elsewhere_id = ""
            if not ended.crashed:
                # Whoever told it to stop, it was not this service: that would not have come here.
                with suppress(CancelledError):
                    return ended.result(running.folder)
            reached = await asyncio.to_thread(last_checkpoint, running.folder)
            futile = 0 if reached > saved else futile + 1
            saved = reached
            if futile > self._rules.max_restarts:
                raise ended.crash()
            await self._lost(life, ended, reached)
            await asyncio.sleep(min(self._rules.pause_seconds * 2 ** max(0, futile - 1), LAST_PAUSE_SECONDS))

    async def _attempt(
        self, running: Running, life: Life, order: Order, executor: str, elsewhere_id: str
    ) -> Ended:
        async def attached(ray_job: str) -> None:
            life.job.ray_job = ray_job
            await life.keep()

        async def heard(event: Any) -> None:  # Any: an Event, whose message the feed reads
            await life.hear(event)
            await self._show(running, life)

        return await running.attempt(
            order,
            public_keys=self._rules.public_keys,
            executor=executor,
            placement=life.job.spec.placement,
            on_event=heard,
            attached=attached,
            elsewhere_id=elsewhere_id,
        )

    async def _lost(self, life: Life, ended: Ended, reached: int) -> None:
        """Say that a process died and from where the job goes on."""
        log.warning("job_process_lost", job=life.job.name, exit_code=ended.exit_code, step=reached)
        life.job.progress.resumes += 1
        life.job.progress.checkpoint_step = reached
        message = ended.crash().message
        incident = job_pb2.IncidentEvent(kind=WORKER_LOST, message=message, resumes_from_step=reached)
        await life.tell(incident)
        await life.become(job_pb2.JOB_STATE_RESUMING)

    async def _register(
        self,
        running: Running,
        life: Life,
        resolved: Resolved,
        result: dict[str, Any],  # Any: JSON of the training process
        since: float,
    ) -> None:
        await life.become(job_pb2.JOB_STATE_SAVING)
        if self._parts.adapters is None or running.claim is None:
            raise FailedPreconditionError("this trainer has no registry, so an adapter has no place")
        adapter = await self._parts.adapters.register(
            Trained(
                job=life.job,
                claim=running.claim,
                folder=running.folder,
                result=result,
                base_directory=resolved.base.directory,
                datasets=[dataset for _, dataset in resolved.datasets],
                parents=[parent for _, parent in resolved.parents],
                started_at=life.job.started_at.ToNanoseconds() / 1e9 or since,
                finished_at=self._clock(),
            )
        )
        life.job.adapter = adapter.name
        running.end_attributes["adapter"] = adapter.name
        running.end_attributes["adapter_digest"] = adapter.adapter_digest.hex()
        await life.keep()
        if not life.job.spec.HasField("gate_profile") or self._parts.evaluations is None:
            return
        await life.become(job_pb2.JOB_STATE_EVALUATING)
        try:
            evaluation = await self._parts.evaluations.run_gate(
                running, adapter, life.job.spec.gate_profile, resolved.base.directory
            )
        except Exception as error:
            # The adapter is there and is no more than a candidate: whoever wants it to serve evaluates it again.
            log.exception("evaluation_broke", job=life.job.name, adapter=adapter.name)
            told = (
                error if isinstance(error, KalaError) else InternalError("a bug in the trainer; see its log")
            )
            await life.tell(job_pb2.IncidentEvent(kind="EVALUATION_BROKE", message=told.message))
            running.end_attributes["evaluation"] = told.reason
            return
        life.job.evaluation = evaluation.name
        running.end_attributes["evaluation"] = evaluation.name
        await redraw(running.folder, life.job.name, evaluation)

    async def _show(self, running: Running, life: Life) -> None:
        await running.show_in_operation(metadata_of(life.job))

    def _order(self, running: Running, life: Life, resolved: Resolved) -> Order:
        placement = life.job.spec.placement
        cores = usable_cores()
        threads = int(placement.cpus_per_worker) or self._rules.threads or cores
        return Order(
            kind=TRAIN,
            name=life.job.name,
            folder=running.folder,
            principal=running.principal,
            deadline=running.deadline,
            action=None if running.claim is None else running.claim.sealed.action,
            base=resolved.base,
            datasets=tuple(place for place, _ in resolved.datasets),
            parents=tuple(place for place, _ in resolved.parents),
            services=self._rules.services,
            threads=min(threads, cores) if executor_of(placement) == LOCAL else threads,
            memory_bytes=self._rules.memory_bytes,
            settings=self._rules.settings,
        )


def executor_of(placement: job_pb2.Placement) -> str:
    """Where a placement runs: beside the service, unless it says Ray or wants several workers."""
    if placement.executor == job_pb2.EXECUTOR_RAY:
        return RAY
    return RAY if placement.executor == job_pb2.EXECUTOR_UNSPECIFIED and placement.workers > 1 else LOCAL


def metadata_of(job: job_pb2.TrainingJob) -> job_pb2.CreateTrainingJobMetadata:
    """The metadata of a job's operation."""
    return job_pb2.CreateTrainingJobMetadata(job=job.name, stage=job.spec.stage, progress=job.progress)
