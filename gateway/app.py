"""The routes of the gateway as one FastAPI application.

FastAPI does the routing only: every route is a plain ASGI `Endpoint`, so that a request meets no dependency injection,
no response model and no middleware of ours on its way.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from fastapi import FastAPI
from starlette.routing import Route

from gateway.edge import Endpoint, Exchange, Handler
from gateway.errors import google_body, openai_body
from gateway.routing import ApiRoute, routes_of
from kala.errors import NotFoundError

if TYPE_CHECKING:
    from gateway.bridge import Bridge
    from services.common.telemetry import RpcTelemetry

REST_PREFIX: Final = "/kala/v1/"
LOG_PREFIX: Final = "/kala/v1/audit/log/"
EVERY_METHOD: Final = ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS")


def build_app(api: Sequence[ApiRoute], *, bridge: Bridge, telemetry: RpcTelemetry) -> FastAPI:
    """Put the routes together: the endpoints, the bridge, and the answer for everything unknown."""

    def catch_all(path: str, handler: Handler, *, is_rest: bool) -> Route:
        endpoint = Endpoint(
            handler,
            methods=EVERY_METHOD,
            error_body=google_body if is_rest else openai_body,
            telemetry=telemetry.of_method(f"HTTP {EVERY_METHOD[0]} {path}"),
        )
        return Route(path, endpoint, include_in_schema=False)

    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    app.router.redirect_slashes = False
    app.router.routes[:] = [
        *routes_of(api, telemetry),
        catch_all(REST_PREFIX + "{path:path}", bridge.serve, is_rest=True),
        catch_all("/{path:path}", _unknown, is_rest=False),
    ]
    return app


async def _unknown(exchange: Exchange) -> None:
    raise NotFoundError(f"there is no {exchange.method} {exchange.path[:256]} here; see /openapi.json")
