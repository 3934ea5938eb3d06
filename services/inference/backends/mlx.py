"""mlx_lm.server: one model, given on its command line, without authentication.

A model name that it does not know makes it look on the Hugging Face hub, so it is only ever sent `default_model`, its
own name for the model it was started with.  What a client writes never reaches it.
"""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import ClassVar, Final

from services.inference.backend import (
    BackendFailure,
    Blame,
    Capability,
    ContextOverflow,
    LoadState,
    ModelInfo,
    State,
    Status,
)
from services.inference.backends.http import Reply
from services.inference.backends.llamacpp import is_llama_server
from services.inference.backends.model_server import OK, json_list, status_of_models
from services.inference.backends.openai_compatible import MODELS_PATH, OpenAICompatibleBackend
from services.inference.chat import Event, Finish
from services.inference.failures import failure_of_body

HEALTH_PATH: Final = "/health"
PINNED_MODEL: Final = "default_model"
NOT_FOUND: Final = 404
UNAVAILABLE: Final = 503


def is_mlx(health: Reply, models: Reply) -> bool:
    """Tell whether answers to /health and /v1/models are mlx_lm.server's (a Python BaseHTTP server)."""
    is_python = "basehttp" in models.headers.get("server", "").lower()
    return is_python and _is_healthy(health) and _is_list(models)


class MlxBackend(OpenAICompatibleBackend):
    """A running mlx_lm.server."""

    # Its HTTP server writes a whole answer without looking at the connection; only a stream notices that nobody reads.
    always_streams: ClassVar[bool] = True
    names_its_model: ClassVar[bool] = False
    off_cure: ClassVar[str] = "start it, e.g. `mlx_lm.server --model <model> --port 8080`"

    def wire_model(self, model: ModelInfo) -> str:  # noqa: ARG002 - whatever the model is called here
        return PINNED_MODEL

    def load_cure(self, model: str) -> str:
        return f"start mlx_lm.server with --model {model or '<model>'}"

    def failure_of(self, status: int, body: bytes) -> BackendFailure:
        failure = failure_of_body(status, body)
        if status == NOT_FOUND and failure.blame is Blame.BACKEND:
            # 404 is its answer to every failed generation, so it does not mean that something was not found.
            return BackendFailure("GENERATION_FAILED", "could not generate", told=failure.told)
        return failure

    def _check_model(self, event: Event, model: ModelInfo) -> None:
        """Notice a prompt beyond the context: the server reads it and answers as if nothing were wrong."""
        super()._check_model(event, model)
        if not isinstance(event, Finish) or model.context_tokens is None:
            return
        used = event.usage.input_tokens or 0
        if used > model.context_tokens:
            raise ContextOverflow(prompt_tokens=used, context_tokens=model.context_tokens)

    async def _look(self) -> Status:
        health = await self._get(HEALTH_PATH)
        if health.status == UNAVAILABLE:
            return Status(State.LOADING, "is starting; wait for it", reason="BACKEND_LOADING")
        reply = await self._get(MODELS_PATH)
        # Someone configured this address, so a proxy that hides the server's name is believed.
        if not _is_healthy(health) or not _is_list(reply) or is_llama_server(reply):
            raise BackendFailure("NOT_MLX", "something answers there, but it is not mlx_lm.server")
        model = ModelInfo(
            id=self.identity.default_model or _pinned_id(reply),
            state=LoadState.LOADED,
            aliases=(PINNED_MODEL,),
            capabilities=frozenset({Capability.CHAT, Capability.COMPLETE, Capability.TOOLS}),
        )
        return status_of_models((model,), no_model=self.load_cure(""))


def _is_healthy(health: Reply) -> bool:
    parsed = health.json()
    return isinstance(parsed, dict) and "status" in parsed


def _is_list(models: Reply) -> bool:
    # Without a directory of downloaded models on its machine, its handler dies between the head and the body.
    dies = models.status == OK and not models.body and "access-control-allow-methods" in models.headers
    return dies or json_list(models, "data") is not None


def _pinned_id(reply: Reply) -> str:
    # The list is the hub's cache, and last the command line's model where that is a path. Its directory stays private.
    ids = [str(item["id"]) for item in json_list(reply, "data") or [] if item.get("id")]
    if ids and ids[-1].startswith("/"):
        return PurePosixPath(ids[-1]).name
    return ids[0] if len(ids) == 1 else PINNED_MODEL
