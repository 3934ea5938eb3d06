"""LM Studio: told by its greeting, its loaded models by its own REST API (v1 since 0.4.0, v0 since 0.3.6).

It has no health endpoint and answers 200 to unknown paths, so every answer is judged by its content.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import ClassVar, Final

from kala.errors import FailedPreconditionError
from services.inference.backend import BackendFailure, Capability, LoadState, ModelInfo, Status
from services.inference.backends.http import Reply
from services.inference.backends.loading import LOAD_SECONDS, check_context, check_loaded, find_installed
from services.inference.backends.model_server import (
    OK,
    json_list,
    positive,
    status_of_models,
)
from services.inference.backends.openai_compatible import MODELS_PATH, OpenAICompatibleBackend
from services.inference.backends.openai_tasks import EmbeddingServer
from services.inference.failures import failure_of_body
from services.inference.pull.progress import Pulled
from services.inference.pull.servers import pull_by_lm_studio

GREETING_PATH: Final = "/lmstudio-greeting"
V1_MODELS_PATH: Final = "/api/v1/models"
V0_MODELS_PATH: Final = "/api/v0/models"

LOAD_PATH: Final = "/api/v1/models/load"
UNLOAD_PATH: Final = "/api/v1/models/unload"

_OF_EVERY_LLM: Final = (Capability.CHAT, Capability.COMPLETE, Capability.JSON_SCHEMA)

NO_MODEL_CURE: Final = "load one in LM Studio's Developer page or run `lms load <model>`"


def is_greeting(reply: Reply) -> bool:
    """Tell whether an answer to GREETING_PATH is LM Studio's."""
    parsed = reply.json()
    return isinstance(parsed, dict) and parsed.get("lmstudio") is True


class LMStudioBackend(EmbeddingServer, OpenAICompatibleBackend):
    """A running LM Studio server."""

    off_cure: ClassVar[str] = "start LM Studio's local server (Developer page, or `lms server start`)"

    def answers_as(self, answered: str, model: ModelInfo) -> bool:
        """Compare without publisher, instance number and quantization, which it adds and drops between its APIs."""
        return _plain_name(answered) in {_plain_name(name) for name in (model.id, *model.aliases)}

    def load_cure(self, model: str) -> str:
        return f"run `lms load {model or '<model>'}`, or load it in the Developer page"

    def extras(self, model: ModelInfo) -> dict[str, object]:  # noqa: ARG002 - the same for all
        """Keep the conversation out of LM Studio's own store."""
        return {"store": False}

    async def load(self, model: str, context_tokens: int | None) -> ModelInfo:
        """Load a model with its own context length; see ModelManager.  One loaded otherwise is unloaded first."""
        info = await self._installed(model)
        check_context(info.model, context_tokens)
        if info.instances:
            if context_tokens is None or info.model.context_tokens == context_tokens:
                return info.model
            # Two of them may not fit into memory, and would be two answers to "the model that is loaded".
            await self._unload(info.instances)
        length = {} if context_tokens is None else {"context_length": context_tokens}
        await self._tell(LOAD_PATH, {"model": info.model.id, **length})
        loaded = await self._installed(info.model.id)
        return check_loaded(loaded.model, context_tokens, server=self.identity.name)

    async def unload(self, model: str) -> ModelInfo:
        """Unload every instance of a model; see ModelManager."""
        info = await self._installed(model)
        await self._unload(info.instances)
        return (await self._installed(info.model.id)).model if info.instances else info.model

    def pull(self, source: str) -> AsyncGenerator[Pulled]:
        """Get a model from LM Studio's catalogue or by its Hugging Face URL; see Puller."""
        return pull_by_lm_studio(self._http, source)

    async def _unload(self, instances: tuple[str, ...]) -> None:
        for instance in instances:
            await self._tell(UNLOAD_PATH, {"instance_id": instance})

    async def _tell(self, path: str, value: dict[str, object]) -> None:
        reply = await self._http.tell(path, value, within_seconds=LOAD_SECONDS)
        # It answers 200 to unknown paths too, so only the answer itself counts.
        parsed = reply.json()
        if reply.status != OK or not isinstance(parsed, dict) or "instance_id" not in parsed:
            raise failure_of_body(reply.status, reply.body)

    async def _installed(self, model: str) -> _Installed:
        listed = json_list(await self._get(V1_MODELS_PATH), "models")
        if listed is None:
            cure = f"run `lms load {model}`, with `--context-length <tokens>` for another context"
            raise FailedPreconditionError(
                f"{self.identity.name} cannot load models over HTTP before LM Studio 0.4.0; update it, or {cure}",
                reason="LOAD_NOT_SERVED",
            )
        found = [(item, info) for item in listed if (info := _model_of_v1(item)) is not None]
        cure = f"get it with `lms get {model}`"
        chosen = find_installed((info for _, info in found), model, server=self.identity.name, cure=cure)
        item = next(item for item, info in found if info is chosen)
        return _Installed(chosen, tuple(str(one["id"]) for one in _instances(item) if one.get("id")))

    async def _look(self) -> Status:
        for path, key, read in (
            (V1_MODELS_PATH, "models", _model_of_v1),
            (V0_MODELS_PATH, "data", _model_of_v0),
        ):
            listed = json_list(await self._get(path), key)
            if listed is not None:
                models = tuple(model for item in listed if (model := read(item)) is not None)
                return status_of_models(models, no_model=NO_MODEL_CURE)
        return await self._look_at_an_old_one()

    async def _look_at_an_old_one(self) -> Status:
        # Before 0.3.6 nothing tells what is loaded; the greeting still tells LM Studio from anything else.
        if not is_greeting(await self._get(GREETING_PATH)):
            raise BackendFailure("NOT_LM_STUDIO", "something answers there, but it is not LM Studio")
        listed = json_list(await self._get(MODELS_PATH), "data") or []
        models = tuple(ModelInfo(str(item["id"])) for item in listed if item.get("id"))
        return status_of_models(models, no_model=NO_MODEL_CURE)


def _plain_name(name: str) -> str:
    return name.rpartition("/")[2].partition(":")[0].partition("@")[0].lower()


@dataclass(frozen=True, slots=True)
class _Installed:
    """A model, and the names of what of it is in memory."""

    model: ModelInfo
    instances: tuple[str, ...]


def _instances(item: dict[str, object]) -> list[dict[str, object]]:
    listed = item.get("loaded_instances")
    return [value for value in listed if isinstance(value, dict)] if isinstance(listed, list) else []


def _model_of_v1(item: dict[str, object]) -> ModelInfo | None:
    key = item.get("key")
    if not isinstance(key, str) or not key:
        return None
    instances = _instances(item)
    config = instances[0].get("config") if instances else None
    quantization = item.get("quantization")
    return ModelInfo(
        id=key,
        state=LoadState.LOADED if instances else LoadState.NOT_LOADED,
        aliases=tuple(
            str(instance["id"]) for instance in instances if instance.get("id") and instance["id"] != key
        ),
        # The instance's own limit: a model made for 262,144 tokens is usually loaded with far fewer.
        context_tokens=positive(config.get("context_length")) if isinstance(config, dict) else None,
        max_context_tokens=positive(item.get("max_context_length")),
        capabilities=_capabilities_of_v1(item),
        quantization=str(quantization.get("name") or "") if isinstance(quantization, dict) else "",
    )


def _capabilities_of_v1(item: dict[str, object]) -> frozenset[Capability]:
    if item.get("type") == "embedding":
        return frozenset({Capability.EMBED})
    named = item.get("capabilities")
    named = named if isinstance(named, dict) else {}
    found = {*_OF_EVERY_LLM}
    if named.get("vision"):
        found.add(Capability.VISION)
    if named.get("trained_for_tool_use"):
        found.add(Capability.TOOLS)
    return frozenset(found)


def _model_of_v0(item: dict[str, object]) -> ModelInfo | None:
    name = item.get("id")
    if not isinstance(name, str) or not name:
        return None
    loaded = item.get("state") == "loaded"
    kind = item.get("type")
    capabilities = {Capability.EMBED} if kind == "embeddings" else {*_OF_EVERY_LLM}
    if kind == "vlm":
        capabilities.add(Capability.VISION)
    named = item.get("capabilities")
    if isinstance(named, list) and "tool_use" in named:
        capabilities.add(Capability.TOOLS)
    return ModelInfo(
        id=name,
        state=LoadState.LOADED if loaded else LoadState.NOT_LOADED,
        context_tokens=positive(item.get("loaded_context_length")),
        max_context_tokens=positive(item.get("max_context_length")),
        capabilities=frozenset(capabilities),
        quantization=str(item.get("quantization") or ""),
    )
