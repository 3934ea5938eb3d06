"""grpc.health.v1 for one server: NOT_SERVING until told otherwise, and watchers that let a drain finish.

grpcio's own servicer keeps every Watch open until the server's grace period is over; this one ends them.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Iterable
from typing import TYPE_CHECKING, Final

from grpc_health.v1 import health_pb2, health_pb2_grpc

from kala.errors import NotFoundError
from services.common.status import abort

if TYPE_CHECKING:
    from services.common.peers import Context

_Status = health_pb2.HealthCheckResponse

WHOLE_SERVER: Final = ""
"""The name under which clients ask for the server as a whole."""


class HealthServicer(health_pb2_grpc.HealthServicer):
    """Answers for the whole server and for each service by name; a withheld service is not ready while the server is."""

    def __init__(self, services: Iterable[str]) -> None:
        self._services = frozenset({WHOLE_SERVER, *services})
        self._is_serving = False
        self._is_closed = False
        self._withheld: frozenset[str] = frozenset()
        self._changed = asyncio.Condition()

    async def set(self, *, is_serving: bool, withheld: Collection[str] = ()) -> None:
        """Tell all watchers; without effect once closed.

        `withheld` names services that cannot do their duty: a probe for one of them hears NOT_SERVING, while calls still
        come, which answer why.
        """
        async with self._changed:
            if not self._is_closed:
                self._is_serving = is_serving
                self._withheld = frozenset(withheld)
                self._changed.notify_all()

    async def close(self) -> None:
        """Say NOT_SERVING for the last time and end every Watch."""
        async with self._changed:
            self._is_serving = False
            self._is_closed = True
            self._changed.notify_all()

    async def Check(  # noqa: N802 - the contract's name
        self, request: health_pb2.HealthCheckRequest, context: Context
    ) -> health_pb2.HealthCheckResponse:
        """Answer once; a service that this server lacks is NOT_FOUND."""
        if request.service not in self._services:
            await abort(context, NotFoundError(f"this server has no service {request.service!r}"))
        return self._response(request.service)

    async def Watch(  # noqa: N802 - the contract's name
        self,
        request: health_pb2.HealthCheckRequest,
        context: Context,  # noqa: ARG002 - the servicer's signature
    ) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        """Answer now and after every change, until the server drains."""
        while True:
            response, is_last = self._response(request.service), self._is_closed
            yield response
            if is_last:
                return
            async with self._changed:
                while not self._is_closed and self._response(request.service) == response:
                    await self._changed.wait()

    def _response(self, service: str) -> health_pb2.HealthCheckResponse:
        if service not in self._services:
            return _Status(status=_Status.SERVICE_UNKNOWN)
        is_serving = self._is_serving and service not in self._withheld
        return _Status(status=_Status.SERVING if is_serving else _Status.NOT_SERVING)
