"""`/v1/batches`: make, describe, list and cancel a tenant's batches."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import datetime
from typing import TYPE_CHECKING, Final

from gateway.batches.model import VALIDATING, WINDOW_TIME, Batch, new_batch_id
from gateway.batches.schema import BatchRequest, parse_batch_request
from gateway.edge import Exchange
from gateway.files.listing import read_page, written_page
from gateway.files.model import BATCH, no_such_file
from gateway.intake import Desk, Intake
from gateway.lasting_keys import require_lasting
from kala.common.v1 import options_pb2
from kala.errors import InvalidArgumentError, NotFoundError, ResourceExhaustedError

if TYPE_CHECKING:
    from gateway.batches.store import BatchStore
    from gateway.files.store import FileStore
    from gateway.keys import ApiKey

ROUTE: Final = "HTTP {verb} /v1/batches"
KIND: Final = "batch"
PAGE: Final = 20

MAX_WAITING: Final = 100
"""Batches of one tenant that have not ended: a week of work for a local model."""


class Batches:
    """Answers the requests about batches; one per process."""

    def __init__(
        self,
        store: BatchStore,
        files: FileStore,
        desk: Desk,
        *,
        wake: Callable[[], None],
        now: Callable[[], datetime],
    ) -> None:
        self._store = store
        self._files = files
        self._gate = desk.gate
        self._intake = Intake(desk, KIND, ROUTE.format(verb="POST"))
        self._wake = wake
        self._now = now

    async def create(self, exchange: Exchange) -> None:
        """Take a batch up; its input file is validated by whoever works on it."""
        key = await self._admit(exchange)
        require_lasting(key)
        request = await self._intake.read(exchange, key, parse_batch_request)
        batch = await asyncio.to_thread(self._create, key, request)
        self._wake()
        await exchange.send_json(200, batch.to_json())

    async def list_all(self, exchange: Exchange) -> None:
        """List batches, the newest first."""
        key = await self._admit(exchange)
        page = read_page(exchange.query, default=PAGE)
        batches = await asyncio.to_thread(
            self._store.list, key.tenant, limit=page.limit + 1, after=page.after
        )
        await exchange.send_json(200, written_page([batch.to_json() for batch in batches], limit=page.limit))

    async def get(self, exchange: Exchange) -> None:
        """Describe a batch."""
        key = await self._admit(exchange)
        batch = await asyncio.to_thread(self._store.get, key.tenant, exchange.path_params["id"])
        await exchange.send_json(200, batch.to_json())

    async def cancel(self, exchange: Exchange) -> None:
        """Ask for a batch's end: what runs is finished, what was done is kept."""
        key = await self._admit(exchange)
        batch = await asyncio.to_thread(self._store.cancel, key.tenant, exchange.path_params["id"])
        self._wake()
        await exchange.send_json(200, batch.to_json())

    async def _admit(self, exchange: Exchange) -> ApiKey:
        route = ROUTE.format(verb=exchange.method)
        return await self._gate.admit(exchange, rpc=route, scope=options_pb2.SCOPE_CHAT)

    def _create(self, key: ApiKey, request: BatchRequest) -> Batch:
        now = self._now()
        try:
            file = self._files.get(key.tenant, request.input_file_id)
        except NotFoundError as error:
            raise InvalidArgumentError(
                "input_file_id", no_such_file(request.input_file_id).message
            ) from error
        if file.purpose != BATCH:
            raise InvalidArgumentError("input_file_id", f"is a file for {file.purpose}; upload it for batch")
        if file.expires_at is not None and file.expires_at < now + WINDOW_TIME:
            raise InvalidArgumentError(
                "input_file_id", "ends before the batch may; upload it again for longer"
            )
        if self._store.waiting(key.tenant) >= MAX_WAITING:
            raise ResourceExhaustedError(
                f"{MAX_WAITING} batches of your tenant have not ended; wait for one, or cancel it",
                retry_after_seconds=60.0,
            )
        batch = Batch(
            id=new_batch_id(),
            tenant=key.tenant,
            owner=key.id,
            subject=file.subject,
            endpoint=request.endpoint,
            input_file_id=file.id,
            status=VALIDATING,
            created_at=now,
            expires_at=now + WINDOW_TIME,
            metadata=request.metadata,
            output_life=request.output_life,
        )
        self._store.create(batch)
        return batch
