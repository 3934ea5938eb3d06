"""The routes of the gateway as one FastAPI application.

FastAPI does the routing only: every route is a plain ASGI `Endpoint`, so that a request meets no dependency injection,
no response model and no middleware of ours on its way.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from fastapi import FastAPI
from starlette.routing import Route

from gateway.edge import Endpoint, ErrorBody, Exchange, Handler
from gateway.errors import google_body, openai_body
from kala.errors import NotFoundError

if TYPE_CHECKING:
    from gateway.bridge import Bridge
    from gateway.chat import ChatCompletions
    from gateway.completions import Completions
    from gateway.connection_test import ConnectionTest
    from gateway.health import Health
    from gateway.log_mirror import LogMirror
    from gateway.models import Models
    from gateway.moderations import Moderations
    from gateway.openapi import OpenApi
    from gateway.text_tasks import TextTasks
    from gateway.text_tasks_schema import EmbeddingRequest, RerankRequest
    from services.common.telemetry import RpcTelemetry

REST_PREFIX: Final = "/kala/v1/"
LOG_PREFIX: Final = "/kala/v1/audit/log/"


def build_app(
    *,
    chat: ChatCompletions,
    completions: Completions,
    embeddings: TextTasks[EmbeddingRequest],
    reranks: TextTasks[RerankRequest],
    moderations: Moderations,
    models: Models,
    connections: ConnectionTest,
    health: Health,
    bridge: Bridge,
    mirror: LogMirror,
    openapi: OpenApi,
    telemetry: RpcTelemetry,
) -> FastAPI:
    """Put the routes together; the order matters only for the last, which answers for everything unknown."""

    def route(path: str, handler: Handler, *methods: str, error_body: ErrorBody = openai_body) -> Route:
        endpoint = Endpoint(
            handler,
            methods=methods,
            error_body=error_body,
            telemetry=telemetry.of_method(f"HTTP {methods[0]} {path}"),
        )
        return Route(path, endpoint, include_in_schema=False)

    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    app.router.redirect_slashes = False
    every = ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS")
    app.router.routes[:] = [
        route("/v1/chat/completions", chat.complete, "POST"),
        route("/v1/completions", completions.complete, "POST"),
        route("/v1/embeddings", embeddings.answer, "POST"),
        route("/v1/rerank", reranks.answer, "POST"),
        route("/v1/moderations", moderations.moderate, "POST"),
        route("/v1/models", models.list_all, "GET", "HEAD"),
        route("/v1/models/{id:path}", models.get, "GET", "HEAD"),
        route("/api/test-lmstudio", connections.lm_studio, "POST"),
        route("/healthz", health.live, "GET", "HEAD"),
        route("/readyz", health.ready, "GET", "HEAD"),
        route("/metrics", health.metrics, "GET", "HEAD"),
        route("/openapi.json", openapi.serve, "GET", "HEAD"),
        route(LOG_PREFIX + "{path:path}", mirror.serve, "GET", "HEAD", error_body=google_body),
        route(REST_PREFIX + "{path:path}", bridge.serve, *every, error_body=google_body),
        route("/{path:path}", _unknown, *every),
    ]
    return app


async def _unknown(exchange: Exchange) -> None:
    raise NotFoundError(f"there is no {exchange.method} {exchange.path[:256]} here; see /openapi.json")
