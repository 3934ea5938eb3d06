"""The routes of the gateway as one Starlette application.

Starlette does the routing only: every route is a plain ASGI `Endpoint`, so that a request meets no dependency injection,
no response model and no middleware of ours on its way.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from starlette.applications import Starlette

from gateway.edge import Endpoint, ErrorBody, Exchange, Handler, Receive, Scope, Send
from gateway.errors import google_body, openai_body
from gateway.routing import ApiRoute, routes_of
from kala.errors import NotFoundError

if TYPE_CHECKING:
    from starlette.types import ASGIApp

    from gateway.bridge import Bridge
    from services.common.telemetry import RpcTelemetry

REST_PREFIX: Final = "/kala/v1/"
LOG_PREFIX: Final = "/kala/v1/audit/log/"
EVERY_METHOD: Final = ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS")


def build_app(api: Sequence[ApiRoute], *, bridge: Bridge, telemetry: RpcTelemetry) -> Starlette:
    """Put the routes together: the endpoints, the bridge, and the answer for everything unknown."""

    def endpoint(handler: Handler, path: str, error_body: ErrorBody) -> Endpoint:
        method = telemetry.of_method(f"HTTP {EVERY_METHOD[0]} {path}{{path:path}}")
        return Endpoint(handler, methods=EVERY_METHOD, error_body=error_body, telemetry=method)

    app = Starlette(routes=routes_of(api, telemetry))
    app.router.redirect_slashes = False
    app.router.default = _Elsewhere(
        rest=endpoint(bridge.serve, REST_PREFIX, google_body),
        unknown=endpoint(_unknown, "/", openai_body),
        not_http=app.router.default,
    )
    return app


class _Elsewhere:
    """Serves every path that has no route: the bridge's, and those that nobody knows.

    No route of its own: Starlette's `{path:path}` does not match a line break, and would leave such a path to others.
    """

    def __init__(self, *, rest: Endpoint, unknown: Endpoint, not_http: ASGIApp) -> None:
        self._rest = rest
        self._unknown = unknown
        self._not_http = not_http

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._not_http(scope, receive, send)
        elif scope["path"].startswith(REST_PREFIX):
            await self._rest(scope, receive, send)
        else:
            await self._unknown(scope, receive, send)


async def _unknown(exchange: Exchange) -> None:
    raise NotFoundError(f"there is no {exchange.method} {exchange.path[:256]} here; see /openapi.json")
