"""`GET /v1/models` and `/v1/models/{id}`: what can be asked for now, and the alias `auto` for the router's choice."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import grpc

from gateway.chat_action import AUTO_MODEL
from gateway.edge import Exchange
from gateway.errors import MODEL_NOT_FOUND
from gateway.gate import Gate
from gateway.generation import backend_failure
from kala.common.v1 import options_pb2
from kala.errors import NotFoundError
from kala.inference.v1 import inference_pb2

if TYPE_CHECKING:
    from kala.inference.v1.inference_pb2_grpc import InferenceServiceAsyncStub

LIST_ROUTE: Final = "HTTP GET /v1/models"
GET_ROUTE: Final = "HTTP GET /v1/models/{id}"
PAGE_SIZE: Final = 1000
OWNER: Final = "kala"


class Models:
    """Lists models in OpenAI's shape."""

    def __init__(self, *, gate: Gate, inference: InferenceServiceAsyncStub, started_at: int) -> None:
        self._gate = gate
        self._inference = inference
        # Backends do not say when a model was made; the process's start is the same in every reply.
        self._started_at = started_at

    async def list_all(self, exchange: Exchange) -> None:
        """Answer with all models, `auto` first."""
        await self._gate.admit(exchange, rpc=LIST_ROUTE, scope=options_pb2.SCOPE_CHAT)
        models = [self._auto(), *map(self._shown, await self._all())]
        await exchange.send_json(200, {"object": "list", "data": models})

    async def get(self, exchange: Exchange) -> None:
        """Answer with one model; ids may hold slashes."""
        await self._gate.admit(exchange, rpc=GET_ROUTE, scope=options_pb2.SCOPE_CHAT)
        wanted = exchange.path_params["id"]
        if wanted == AUTO_MODEL:
            await exchange.send_json(200, self._auto())
            return
        for model in await self._all():
            if model.id == wanted:
                await exchange.send_json(200, self._shown(model))
                return
        raise NotFoundError(
            f"the model {wanted[:256]!r} does not exist here; GET /v1/models lists those that do",
            reason=MODEL_NOT_FOUND,
        )

    async def _all(self) -> list[inference_pb2.Model]:
        models: list[inference_pb2.Model] = []
        token = ""
        while True:
            request = inference_pb2.ListModelsRequest(page_size=PAGE_SIZE, page_token=token)
            try:
                response = await self._inference.ListModels(request)
            except grpc.RpcError as error:
                raise backend_failure(error) from error
            models += response.models
            token = response.next_page_token
            if not token:
                return models

    def _auto(self) -> dict[str, Any]:  # Any: JSON
        return {"id": AUTO_MODEL, "object": "model", "created": self._started_at, "owned_by": OWNER}

    def _shown(self, model: inference_pb2.Model) -> dict[str, Any]:  # Any: JSON
        return {
            "id": model.id,
            "object": "model",
            "created": self._started_at,
            "owned_by": model.backend.removeprefix("backends/") or OWNER,
            "kala": {
                "backend": model.backend,
                "backend_model": model.backend_model,
                "state": inference_pb2.LoadState.Name(model.state).removeprefix("LOAD_STATE_"),
                "context_tokens": model.context_tokens if model.HasField("context_tokens") else None,
                "capabilities": [
                    inference_pb2.Capability.Name(capability).removeprefix("CAPABILITY_")
                    for capability in model.capabilities
                ],
                "demo": model.demo,
                "breaker": inference_pb2.BreakerState.Name(model.breaker).removeprefix("BREAKER_STATE_"),
            },
        }
