"""Routes of the gateway: a path, a verb, and who answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from starlette.routing import Route

from gateway.edge import Endpoint, ErrorBody, Handler, Receive, Scope, Send
from gateway.errors import openai_body

if TYPE_CHECKING:
    from services.common.telemetry import RpcTelemetry


@dataclass(frozen=True, slots=True)
class ApiRoute:
    """One verb of one path; several routes may share a path."""

    method: str
    path: str
    """As Starlette writes it: `/v1/files/{id}`, `{path:path}` for what may hold slashes."""
    handler: Handler
    error_body: ErrorBody = openai_body


class _Verbs:
    """The endpoints of one path, as an ASGI application; a verb that it does not have is answered by 405."""

    def __init__(self, endpoints: Mapping[str, Endpoint]) -> None:
        self._endpoints = endpoints
        self._any = next(iter(endpoints.values()))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        method = "GET" if scope["method"] == "HEAD" else scope["method"]
        await self._endpoints.get(method, self._any)(scope, receive, send)


_ANSWERED_WITH_GET: Final = {"GET": ("GET", "HEAD")}


def routes_of(api: Sequence[ApiRoute], telemetry: RpcTelemetry) -> list[Route]:
    """Give one Starlette route per path, in the order in which the paths first come."""
    by_path: dict[str, list[ApiRoute]] = {}
    for route in api:
        by_path.setdefault(route.path, []).append(route)
    return [Route(path, _Verbs(_endpoints(routes, telemetry)), include_in_schema=False)
            for path, routes in by_path.items()]  # fmt: skip


def _endpoints(routes: Sequence[ApiRoute], telemetry: RpcTelemetry) -> dict[str, Endpoint]:
    methods = [verb for route in routes for verb in _ANSWERED_WITH_GET.get(route.method, (route.method,))]
    return {
        route.method: Endpoint(
            route.handler,
            methods=methods,
            error_body=route.error_body,
            telemetry=telemetry.of_method(f"HTTP {route.method} {route.path}"),
        )
        for route in routes
    }
