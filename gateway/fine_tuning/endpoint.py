"""`/v1/fine_tuning/jobs`: make, describe, list and cancel jobs, with their events and checkpoints."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import datetime
from typing import TYPE_CHECKING, Final

from gateway.edge import Exchange
from gateway.files.listing import read_page, written_page
from gateway.files.model import FINE_TUNE, no_such_file
from gateway.fine_tuning import model
from gateway.fine_tuning.model import Job, new_job_id
from gateway.fine_tuning.schema import FineTuningRequest, parse_fine_tuning_request
from gateway.intake import Desk, Intake
from gateway.lasting_keys import require_lasting
from kala.common.v1 import options_pb2
from kala.errors import (
    InvalidArgumentError,
    NotFoundError,
    ResourceExhaustedError,
    UnavailableError,
    UnimplementedError,
)

if TYPE_CHECKING:
    from gateway.files.store import FileStore
    from gateway.fine_tuning.store import FineTuningStore
    from gateway.keys import ApiKey

ROUTE: Final = "HTTP {verb} /v1/fine_tuning/jobs"
KIND: Final = "fine_tuning"
PAGE: Final = 20
MAX_WAITING: Final = 32
"""Jobs of one tenant that have not ended: the trainer's own queue is as long."""


class FineTuning:
    """Answers the requests about fine-tuning jobs; one per process."""

    def __init__(
        self,
        store: FineTuningStore,
        files: FileStore,
        desk: Desk,
        *,
        missing: str,
        now: Callable[[], datetime],
    ) -> None:
        """`missing` says what this installation lacks for jobs; empty when it lacks nothing."""
        self._store = store
        self._files = files
        self._gate = desk.gate
        self._intake = Intake(desk, KIND, ROUTE.format(verb="POST"))
        self._missing = missing
        self._now = now

    async def create(self, exchange: Exchange) -> None:
        """Take a job up; its file is validated by whoever works on it."""
        key = await self._admit(exchange)
        require_lasting(key)
        request = await self._intake.read(exchange, key, parse_fine_tuning_request)
        if self._missing:
            raise UnavailableError(self._missing, reason="FINE_TUNING_NOT_DEPLOYED")
        job = await asyncio.to_thread(self._create, key, request)
        await exchange.send_json(200, job.to_json())

    async def list_all(self, exchange: Exchange) -> None:
        """List jobs, the newest first."""
        key = await self._admit(exchange)
        page = read_page(exchange.query, default=PAGE)
        jobs = await asyncio.to_thread(self._store.list, key.tenant, limit=page.limit + 1, after=page.after)
        await exchange.send_json(200, written_page([job.to_json() for job in jobs], limit=page.limit))

    async def get(self, exchange: Exchange) -> None:
        """Describe a job."""
        await exchange.send_json(200, (await self._find(exchange)).to_json())

    async def cancel(self, exchange: Exchange) -> None:
        """End a job."""
        job = await self._find(exchange)
        ended = await asyncio.to_thread(self._store.cancel, job.tenant, job.id)
        await exchange.send_json(200, ended.to_json())

    async def events(self, exchange: Exchange) -> None:
        """List what happened to a job, the newest first."""
        job = await self._find(exchange)
        page = read_page(exchange.query, default=PAGE)
        before = _number_of(page.after, job) if page.after else None
        events = await asyncio.to_thread(self._store.events, job, limit=page.limit + 1, before=before)
        await exchange.send_json(
            200, written_page([event.to_json(job.id) for event in events], limit=page.limit)
        )

    async def checkpoints(self, exchange: Exchange) -> None:
        """List what of a job may serve: its end, once that has passed its gate. Nothing between passes one."""
        job = await self._find(exchange)
        page = read_page(exchange.query, default=10)
        made = [] if job.fine_tuned_model is None or page.after else [_checkpoint(job)]
        await exchange.send_json(200, written_page(made, limit=page.limit))

    async def pause(self, exchange: Exchange) -> None:
        """Say that jobs cannot be paused or resumed."""
        await self._find(exchange)
        raise UnimplementedError(
            "jobs cannot be paused or resumed; cancel the job and make another: its checkpoints stay for a day"
        )

    async def _admit(self, exchange: Exchange) -> ApiKey:
        route = ROUTE.format(verb=exchange.method)
        return await self._gate.admit(exchange, rpc=route, scope=options_pb2.SCOPE_TRAIN)

    async def _find(self, exchange: Exchange) -> Job:
        key = await self._admit(exchange)
        return await asyncio.to_thread(self._store.get, key.tenant, exchange.path_params["id"])

    def _create(self, key: ApiKey, request: FineTuningRequest) -> Job:
        try:
            file = self._files.get(key.tenant, request.training_file)
        except NotFoundError as error:
            raise InvalidArgumentError(
                "training_file", no_such_file(request.training_file).message
            ) from error
        if file.purpose != FINE_TUNE:
            raise InvalidArgumentError(
                "training_file", f"is a file for {file.purpose}; upload it for fine-tune"
            )
        if self._store.waiting(key.tenant) >= MAX_WAITING:
            raise ResourceExhaustedError(
                f"{MAX_WAITING} jobs of your tenant have not ended; wait for one, or cancel it",
                retry_after_seconds=60.0,
            )
        job = Job(
            id=new_job_id(),
            tenant=key.tenant,
            owner=key.id,
            subject=file.subject,
            model=request.model,
            training_file=file.id,
            status=model.VALIDATING,
            step=model.LAY,
            created_at=self._now(),
            notes={
                "hyperparameters": request.numbers.model_dump(),
                "seed": request.seed or 0,
                "suffix": request.suffix,
                "metadata": request.metadata,
            },
        )
        self._store.create(job)
        return job


def _number_of(event_id: str, job: Job) -> int:
    prefix, _, number = event_id.rpartition("-")
    if prefix != f"ftevent-{job.id.removeprefix('ftjob-')}" or not number.isdecimal() or len(number) > 9:  # noqa: PLR2004 - an int
        raise InvalidArgumentError("after", "is no event of this job; begin without it")
    return int(number)


def _checkpoint(job: Job) -> dict[str, object]:
    step = int(job.notes.get("last_step", 0))
    return {
        "id": f"ftckpt-{job.id.removeprefix('ftjob-')}",
        "object": "fine_tuning.job.checkpoint",
        "created_at": 0 if job.finished_at is None else int(job.finished_at.timestamp()),
        "fine_tuned_model_checkpoint": job.fine_tuned_model,
        "fine_tuning_job_id": job.id,
        "metrics": {"step": step},
        "step_number": step,
    }
