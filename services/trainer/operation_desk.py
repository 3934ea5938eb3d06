"""What a tenant may do with its operations: see them, wait for their end, end them."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Final

from google.longrunning.operations_pb2 import Operation
from google.protobuf.duration_pb2 import Duration

from kala.common.v1.clearance_pb2 import Principal
from kala.errors import InvalidArgumentError
from kala.trainer.v1 import trainer_pb2 as pb
from services.trainer.operations import Operations
from services.trainer.pages import PageTokens
from services.trainer.store.operation_rows import OperationRows

DEFAULT_WAIT_SECONDS: Final = 30.0
MAX_WAIT_SECONDS: Final = 300.0
"""Whoever waits for longer asks again; a proxy on the way ends a silent request sooner than a job ends."""

ANSWER_SECONDS: Final = 0.5
"""Left of the caller's own deadline, to say how the operation stands."""


class OperationDesk:
    """Operations by their tenant; another tenant's do not exist."""

    def __init__(self, operations: Operations, rows: OperationRows, tokens: PageTokens) -> None:
        self._operations = operations
        self._rows = rows
        self._tokens = tokens

    async def get(self, request: pb.GetOperationRequest, principal: Principal) -> Operation:
        """Show one as it stands."""
        return await self._operations.get(request.name, principal)

    async def list(
        self, request: pb.ListOperationsRequest, principal: Principal
    ) -> pb.ListOperationsResponse:
        """List them, the newest first."""
        page = self._tokens.page("ListOperations", principal, request.page_size, request.page_token)
        part = await self._rows.list(principal.tenant, limit=page.limit, after=page.after)
        return pb.ListOperationsResponse(
            operations=[self._operations.as_it_stands(operation) for operation in part.items],
            next_page_token=self._tokens.next_token(page, part.next_after),
        )

    async def wait(
        self, request: pb.WaitOperationRequest, principal: Principal, left: float | None
    ) -> Operation:
        """Show one at its end, or as it stands when the time is up; `left` is what the caller's deadline leaves, in seconds."""
        seconds = _seconds_of(request.timeout) if request.HasField("timeout") else DEFAULT_WAIT_SECONDS
        if left is not None:
            seconds = max(0.0, min(seconds, left - ANSWER_SECONDS))
        operation = await self._operations.get(request.name, principal)
        if not operation.done:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._operations.wait(request.name), seconds)
            operation = await self._operations.get(request.name, principal)
        return operation

    async def cancel(
        self, request: pb.CancelOperationRequest, principal: Principal
    ) -> pb.CancelOperationResponse:
        """End one; one that has ended stays as it is."""
        await self._operations.cancel(request.name, principal)
        return pb.CancelOperationResponse()


def _seconds_of(timeout: Duration) -> float:
    seconds = timeout.seconds + timeout.nanos / 1e9
    if not 0 <= seconds <= MAX_WAIT_SECONDS:
        raise InvalidArgumentError(
            "timeout", f"must be 0 to {MAX_WAIT_SECONDS:g} s; wait again for longer", reason="INVALID_TIMEOUT"
        )
    return seconds
