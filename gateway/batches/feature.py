"""Opens `/v1/batches` on the gateway's core, and the worker behind it."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Mapping
from contextlib import suppress
from datetime import timedelta
from typing import TYPE_CHECKING

from gateway.batches.endpoint import Batches
from gateway.batches.erasing import batches_eraser
from gateway.batches.openapi import PATHS, SCHEMAS
from gateway.batches.store import BatchStore
from gateway.batches.worker import BatchWorker
from gateway.feature import Feature
from gateway.files.feature import now, open_store, sweeping
from gateway.routing import ApiRoute

if TYPE_CHECKING:
    from gateway.core import Core
    from gateway.edge import Handler


async def open_batches(core: Core) -> Feature:
    """Open the endpoints; the worker begins when all endpoints that it calls are open."""
    settings = core.settings
    files = open_store(core)
    lease = timedelta(seconds=settings.batch_lease_seconds)
    store = BatchStore(core.engine, core.payloads, lease=lease, now=now)
    # Filled by `begin`: endpoints that other features bring are called by their paths.
    handlers: dict[str, Handler] = {}
    worker = BatchWorker(
        store,
        open_store(core, max_file_bytes=settings.file_quota_bytes),
        handlers=handlers,
        subject_of=core.pseudonyms.person,
        holder=secrets.token_hex(16),
        concurrency=settings.batch_concurrency,
        lease=lease,
        max_line_bytes=settings.max_image_body_bytes,
        now=now,
    )
    batches = Batches(store, files, core.desk, wake=worker.wake, now=now)

    def begin(endpoints: Mapping[str, Handler]) -> None:
        handlers.update(endpoints)
        if settings.batch_concurrency:
            core.stack.push_async_callback(stopped, asyncio.ensure_future(worker.run()))

    core.stack.callback(core.background.keep(sweeping(store.sweep)).cancel)
    return Feature(
        routes=(
            ApiRoute("POST", "/v1/batches", batches.create),
            ApiRoute("GET", "/v1/batches", batches.list_all),
            ApiRoute("GET", "/v1/batches/{id}", batches.get),
            ApiRoute("POST", "/v1/batches/{id}/cancel", batches.cancel),
        ),
        erasers={
            "gateway.batches": batches_eraser(
                store,
                files,
                subject_of=core.pseudonyms.person,
                max_line_bytes=settings.max_image_body_bytes,
            )
        },
        begin=begin,
        paths=PATHS,
        schemas=SCHEMAS,
    )


async def stopped(work: asyncio.Task[None]) -> None:
    """End a worker, and wait for its last write."""
    work.cancel()
    with suppress(asyncio.CancelledError):
        await work
