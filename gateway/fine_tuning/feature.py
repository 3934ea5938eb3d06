"""Opens `/v1/fine_tuning/jobs` on the gateway's core, and the worker behind it."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from gateway.app import REST_PREFIX
from gateway.batches.feature import stopped
from gateway.feature import Feature
from gateway.files.feature import now, open_store, sweeping
from gateway.fine_tuning.endpoint import FineTuning
from gateway.fine_tuning.laying import Tray
from gateway.fine_tuning.openapi import PATHS, SCHEMAS
from gateway.fine_tuning.store import FineTuningStore
from gateway.fine_tuning.trainer import TrainerCalls
from gateway.fine_tuning.worker import FineTuningWorker
from gateway.routing import ApiRoute
from kala.audit.v1 import audit_pb2
from kala.trainer.v1.trainer_pb2_grpc import TrainerServiceStub
from services.common.peers import TRAINER

if TYPE_CHECKING:
    from gateway.config import GatewaySettings
    from gateway.core import Core
    from gateway.edge import Handler
    from gateway.erasure import Eraser

_JOBS: Final = "/v1/fine_tuning/jobs"


async def open_fine_tuning(core: Core) -> Feature:
    """Open the endpoints; the worker begins when the bridge to the trainer is open."""
    settings = core.settings
    files = open_store(core)
    lease = timedelta(seconds=settings.batch_lease_seconds)
    store = FineTuningStore(core.engine, core.payloads, lease=lease, now=now)
    missing = _missing(settings, core)
    jobs = FineTuning(store, files, core.desk, missing=missing, now=now)
    tray = None if settings.training_data_dir is None else Tray(settings.training_data_dir)

    def begin(endpoints: Mapping[str, Handler]) -> None:
        if tray is None or missing:
            return
        worker = FineTuningWorker(
            store,
            files,
            tray,
            trainer=TrainerCalls(endpoints[REST_PREFIX], TrainerServiceStub(core.channels[TRAINER])),
            holder=secrets.token_hex(16),
            lease=lease,
            gate=settings.fine_tuning_gate,
        )
        core.stack.push_async_callback(stopped, asyncio.ensure_future(worker.run()))

    def sweep() -> None:
        store.sweep()
        if tray is not None:
            clear_unneeded(store, tray)

    core.stack.callback(core.background.keep(sweeping(sweep)).cancel)
    return Feature(
        routes=(
            ApiRoute("POST", _JOBS, jobs.create),
            ApiRoute("GET", _JOBS, jobs.list_all),
            ApiRoute("GET", _JOBS + "/{id}", jobs.get),
            ApiRoute("POST", _JOBS + "/{id}/cancel", jobs.cancel),
            ApiRoute("POST", _JOBS + "/{id}/pause", jobs.pause),
            ApiRoute("POST", _JOBS + "/{id}/resume", jobs.pause),
            ApiRoute("GET", _JOBS + "/{id}/events", jobs.events),
            ApiRoute("GET", _JOBS + "/{id}/checkpoints", jobs.checkpoints),
        ),
        erasers={"gateway.fine_tuning": fine_tuning_eraser(store, tray)},
        begin=begin,
        paths=PATHS,
        schemas=SCHEMAS,
    )


def fine_tuning_eraser(store: FineTuningStore, tray: Tray | None) -> Eraser:
    """Erases a person's jobs and what was laid for the trainer, which erases its own part itself."""

    def erase_blocking(tenant: str, subject: str) -> int:
        # The files first: after a crash between the two a repeat still knows whose they are. What a worker lays in
        # between it takes away itself, or the sweeper does.
        if tray is None:
            return store.erase(tenant, subject)
        for job_id in store.of(tenant, subject):
            tray.clear(job_id)
        erased = store.erase(tenant, subject)
        clear_unneeded(store, tray)
        return erased

    async def erase(subject: str, tenant: str) -> Sequence[audit_pb2.ErasedStore]:
        erased = await asyncio.to_thread(erase_blocking, tenant, subject)
        return [audit_pb2.ErasedStore(store="gateway.fine_tuning", items=erased)]

    return erase


def clear_unneeded(store: FineTuningStore, tray: Tray) -> None:
    """Take away what was laid for jobs that need it no more: whoever laid it was killed before it could."""
    laid = tray.laid()
    # Asked after the look: what is laid meanwhile is left alone.
    for job_id in laid - store.needing_files() if laid else ():
        tray.clear(job_id)


def _missing(settings: GatewaySettings, core: Core) -> str:
    if TRAINER not in core.channels:
        return "the trainer service is not deployed here; set KALA_GATEWAY_TRAINER_ADDRESS"
    if settings.training_data_dir is None:
        return "files cannot be given to the trainer here; set KALA_GATEWAY_TRAINING_DATA_DIR to its data directory"
    return ""
