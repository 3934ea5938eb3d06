"""Ollama: its state by the native API (/api/tags, /api/ps), chat by its /v1.

Ollama loads a model when it is asked for, so an installed one may be named although it is not in memory.
Its /v1 cuts long histories without saying so; the native protocol that can forbid that is a later step (README).
"""

from __future__ import annotations

from typing import ClassVar, Final

from services.inference.backend import BackendFailure, LoadState, ModelInfo, Status
from services.inference.backends.http import Reply
from services.inference.backends.model_server import json_list, positive, status_of_models
from services.inference.backends.openai_compatible import OpenAICompatibleBackend

VERSION_PATH: Final = "/api/version"
TAGS_PATH: Final = "/api/tags"
RUNNING_PATH: Final = "/api/ps"

_LATEST: Final = ":latest"


def is_ollama(reply: Reply) -> bool:
    """Tell whether an answer to VERSION_PATH is Ollama's."""
    parsed = reply.json()
    return isinstance(parsed, dict) and isinstance(parsed.get("version"), str) and len(parsed) == 1


class OllamaBackend(OpenAICompatibleBackend):
    """A running Ollama."""

    off_cure: ClassVar[str] = "start it with `ollama serve`"

    def load_cure(self, model: str) -> str:
        return f"run `ollama run {model or '<model>'}`, or set OLLAMA_MODEL"

    def answers_as(self, answered: str, model: ModelInfo) -> bool:
        return answered.removesuffix(_LATEST) == model.id.removesuffix(_LATEST)

    async def _look(self) -> Status:
        installed = json_list(await self._get(TAGS_PATH), "models")
        if installed is None:
            raise BackendFailure("NOT_OLLAMA", "something answers there, but it is not Ollama")
        running = {
            str(item.get("name")): item for item in json_list(await self._get(RUNNING_PATH), "models") or []
        }
        models = tuple(_model(item, running) for item in installed if item.get("name"))
        return status_of_models(models, no_model=self.load_cure(""))


def _model(item: dict[str, object], running: dict[str, dict[str, object]]) -> ModelInfo:
    name, details = str(item["name"]), item.get("details")
    loaded = running.get(name)
    return ModelInfo(
        id=name,
        state=LoadState.NOT_LOADED if loaded is None else LoadState.LOADED,
        aliases=(name.removesuffix(_LATEST),) if name.endswith(_LATEST) else (),
        context_tokens=positive(loaded.get("context_length")) if loaded else None,
        quantization=str(details.get("quantization_level") or "") if isinstance(details, dict) else "",
    )
