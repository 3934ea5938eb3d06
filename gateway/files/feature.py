"""Opens `/v1/files` on the gateway's core."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

import structlog

from gateway.batches.files_in_use import files_in_use
from gateway.feature import Feature
from gateway.files.endpoint import Files
from gateway.files.openapi import PATHS, SCHEMAS
from gateway.files.store import Bounds, FileStore
from gateway.routing import ApiRoute
from kala.audit.v1 import audit_pb2
from kala.errors import KalaError

if TYPE_CHECKING:
    from gateway.core import Core
    from gateway.erasure import Eraser

SWEEP_SECONDS: Final = 60.0
"""Between two looks for files past their end; they are out of sight at once."""


def open_store(core: Core, *, max_file_bytes: int | None = None) -> FileStore:
    """Give the files of the core's database; output of batches may be larger than what is uploaded."""
    return FileStore(
        core.engine,
        core.payloads,
        bounds=Bounds(max_file_bytes or core.settings.max_file_bytes, core.settings.file_quota_bytes),
        now=now,
    )


async def open_files(core: Core) -> Feature:
    """Open the endpoints and the sweeper."""
    store = open_store(core)
    files = Files(
        store,
        gate=core.desk.gate,
        ledger=core.desk.ledger,
        in_use=files_in_use(core.engine),
        max_bytes=core.settings.max_file_bytes,
        idle_seconds=core.settings.body_timeout_seconds,
    )
    core.stack.callback(core.background.keep(sweeping(store.sweep)).cancel)
    return Feature(
        routes=(
            ApiRoute("POST", "/v1/files", files.upload),
            ApiRoute("GET", "/v1/files", files.list_all),
            ApiRoute("GET", "/v1/files/{id}", files.get),
            ApiRoute("DELETE", "/v1/files/{id}", files.delete),
            ApiRoute("GET", "/v1/files/{id}/content", files.content),
        ),
        erasers={"gateway.files": files_eraser(store)},
        paths=PATHS,
        schemas=SCHEMAS,
    )


def files_eraser(store: FileStore) -> Eraser:
    """Erases a person's files."""

    async def erase(subject: str, tenant: str) -> Sequence[audit_pb2.ErasedStore]:
        erased = await asyncio.to_thread(store.erase, tenant, subject)
        return [audit_pb2.ErasedStore(store="gateway.files", items=erased)]

    return erase


async def sweeping(sweep: Callable[[], object], *, every_seconds: float = SWEEP_SECONDS) -> None:
    """Sweep now and then, for ever; a database that is away is waited for."""
    while True:
        try:
            await asyncio.to_thread(sweep)
        except KalaError as error:
            structlog.get_logger().warning("what has ended could not be swept away", reason=error.reason)
        await asyncio.sleep(every_seconds)


def now() -> datetime:
    """Give the time by which files end."""
    return datetime.now(UTC)
