"""llama.cpp's llama-server, single model or router mode; llama_cpp.server (Python) is tolerated as one of the kind."""

from __future__ import annotations

from typing import ClassVar, Final

from services.inference.backend import BackendFailure, Capability, LoadState, ModelInfo, State, Status
from services.inference.backends.http import Reply
from services.inference.backends.model_server import json_list, positive, status_of_models
from services.inference.backends.openai_compatible import MODELS_PATH, OpenAICompatibleBackend

HEALTH_PATH: Final = "/health"
LOADING_STATUS: Final = 503
OWNER: Final = "llamacpp"
SERVER_NAME: Final = "llama.cpp"

_STATES: Final = {
    "loaded": LoadState.LOADED,
    "loading": LoadState.LOADING,
    "downloading": LoadState.LOADING,
    "sleeping": LoadState.LOADED,
    "unloaded": LoadState.NOT_LOADED,
}


def is_llama_server(reply: Reply) -> bool:
    """Tell whether an answer to /v1/models, also a refusal, is llama-server's."""
    if reply.headers.get("server", "") == SERVER_NAME:
        return True
    return any(item.get("owned_by") == OWNER for item in json_list(reply, "data") or [])


def is_llama_cpp_python(reply: Reply) -> bool:
    """Tell whether an answer to /v1/models is llama_cpp.server's."""
    return any(
        item.get("owned_by") == "me" and "permissions" in item for item in json_list(reply, "data") or []
    )


class LlamaCppBackend(OpenAICompatibleBackend):
    """A running llama-server."""

    off_cure: ClassVar[str] = "start it, e.g. `llama-server -m model.gguf --port 8080`"

    _repeats_names = False
    """Set for everything but llama-server itself: llama_cpp.server repeats any model name that it is sent."""

    def load_cure(self, model: str) -> str:
        return f"start llama-server with -m, or in router mode load {model or 'a model'} by POST /models/load"

    def answers_as(self, answered: str, model: ModelInfo) -> bool:
        return self._repeats_names or super().answers_as(answered, model)

    async def _look(self) -> Status:
        health = await self._get(HEALTH_PATH)
        if health.status == LOADING_STATUS:
            return Status(State.LOADING, "is loading its model; wait for it", reason="BACKEND_LOADING")
        reply = await self._get(MODELS_PATH)
        listed = json_list(reply, "data")
        if listed is None:
            raise BackendFailure("NOT_LLAMACPP", "something answers there, but it is not llama-server")
        # Someone configured this address, so a proxy that hides the server's marks is believed; but not its names.
        self._repeats_names = not is_llama_server(reply)
        is_multimodal = _is_multimodal(reply)
        models = tuple(model for item in listed if (model := _model(item, sees=is_multimodal)) is not None)
        return status_of_models(
            models, no_model="load one with POST /models/load, or start llama-server with -m"
        )


def _is_multimodal(reply: Reply) -> bool:
    # Single mode tells it beside the list; router mode per model (`architecture`).
    for item in json_list(reply, "models") or []:
        capabilities = item.get("capabilities")
        if isinstance(capabilities, list) and "multimodal" in capabilities:
            return True
    return False


def _model(item: dict[str, object], *, sees: bool) -> ModelInfo | None:
    name = item.get("id")
    if not isinstance(name, str) or not name:
        return None
    status, meta, architecture = item.get("status"), item.get("meta"), item.get("architecture")
    meta = meta if isinstance(meta, dict) else {}
    aliases = item.get("aliases")
    modalities = architecture.get("input_modalities") if isinstance(architecture, dict) else None
    capabilities = {Capability.CHAT, Capability.TOOLS, Capability.JSON_SCHEMA}
    if sees or (isinstance(modalities, list) and "image" in modalities):
        capabilities.add(Capability.VISION)
    return ModelInfo(
        id=name,
        # Single mode names no status: the server answers only once its model is in memory.
        state=_STATES.get(str(status.get("value")), LoadState.UNKNOWN)
        if isinstance(status, dict)
        else LoadState.LOADED,
        aliases=tuple(str(alias) for alias in aliases if alias != name) if isinstance(aliases, list) else (),
        context_tokens=positive(meta.get("n_ctx")),
        max_context_tokens=positive(meta.get("n_ctx_train")),
        capabilities=frozenset(capabilities),
        quantization=str(meta.get("ftype") or ""),
    )
