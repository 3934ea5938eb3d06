"""llama.cpp's llama-server, single model or router mode; llama_cpp.server (Python) is tolerated as one of the kind."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import ClassVar, Final
from urllib.parse import quote

from kala.errors import FailedPreconditionError
from services.inference.backend import (
    BackendFailure,
    Capability,
    Identity,
    LoadState,
    ModelInfo,
    State,
    Status,
)
from services.inference.backends.http import ModelServerClient, Reply
from services.inference.backends.llama_tokens import COUNT_SECONDS, count_request, count_text
from services.inference.backends.loading import (
    LOAD_SECONDS,
    POLL_SECONDS,
    check_context,
    check_loaded,
    find_installed,
)
from services.inference.backends.model_server import (
    OK,
    json_list,
    positive,
    status_of_models,
)
from services.inference.backends.openai_compatible import MODELS_PATH, OpenAICompatibleBackend
from services.inference.backends.openai_tasks import EMBED_PATH, RERANK_PATH, RankingServer
from services.inference.chat import ChatCall, Role

HEALTH_PATH: Final = "/health"
LOAD_PATH: Final = "/models/load"
UNLOAD_PATH: Final = "/models/unload"
ADAPTERS_PATH: Final = "/lora-adapters"
ADAPTER_FLAGS: Final = frozenset({"--lora", "--lora-scaled"})
LOADING_STATUS: Final = 503

COUNTS_AT_ONCE: Final = 2
"""Counts take no place in the bulkhead; as many as there are callers would leave looks at the server no connection."""

IDLE_POLLS: Final = 8
"""How often a model may be seen out of memory after its loading began: a child process takes a moment to show."""

BAD_REQUEST: Final = 400
INCOMPLETE: Final = b"must be provided"
"""What it says of an empty request to an endpoint that it serves."""

OWNER: Final = "llamacpp"
SERVER_NAME: Final = "llama.cpp"

_STATES: Final = {
    "loaded": LoadState.LOADED,
    "loading": LoadState.LOADING,
    "downloading": LoadState.LOADING,
    "sleeping": LoadState.LOADED,
    "unloaded": LoadState.NOT_LOADED,
}


_FLAGS: Final = {
    Capability.EMBED: frozenset({"--embedding", "--embeddings"}),
    Capability.RERANK: frozenset({"--rerank", "--reranking"}),
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


class LlamaCppBackend(RankingServer, OpenAICompatibleBackend):
    """A running llama-server."""

    carries_on: bool = True
    off_cure: ClassVar[str] = "start it, e.g. `llama-server -m model.gguf --port 8080`"

    _repeats_names = False
    """Set for everything but llama-server itself: llama_cpp.server repeats any model name that it is sent."""

    _is_router = False
    """Set for llama-server in router mode, which loads and unloads its models on demand."""

    def __init__(self, identity: Identity, http: ModelServerClient, *, max_output_tokens: int) -> None:
        super().__init__(identity, http, max_output_tokens=max_output_tokens)
        self._adapters: dict[str, tuple[int, ...]] = {}
        self._serves: dict[tuple[str, ...], frozenset[Capability]] = {}
        self._counts = asyncio.Semaphore(COUNTS_AT_ONCE)

    def load_cure(self, model: str) -> str:
        return (
            f"start llama-server with -m, or in router mode load {model or 'a model'} with `kala models load`"
        )

    def answers_as(self, answered: str, model: ModelInfo) -> bool:
        return self._repeats_names or super().answers_as(answered, model)

    def extras(self, model: ModelInfo) -> dict[str, object] | None:
        """Switch off every LoRA adapter of the model: none may serve that did not pass its gates.

        llama-server applies what it was started with to every request that does not say otherwise.
        """
        adapters = self._adapters.get(model.id)
        return {"lora": [{"id": number, "scale": 0.0} for number in adapters]} if adapters else None

    def extras_of(self, call: ChatCall) -> dict[str, object]:
        """Have an unfinished answer gone on with, and not said again before the rest."""
        return (
            {"continue_final_message": True, "add_generation_prompt": False} if _is_unfinished(call) else {}
        )

    def streams(self, call: ChatCall) -> bool:
        """Stream the rest of an unfinished answer: in a whole one it says the beginning again."""
        return super().streams(call) or _is_unfinished(call)

    async def load(self, model: str, context_tokens: int | None) -> ModelInfo:
        """Load a model in router mode; see ModelManager.  Its context is the one that llama-server was started with."""
        info = await self._installed(model)
        check_context(info, context_tokens)
        was_loaded = info.state is LoadState.LOADED
        if not was_loaded:
            await self._tell(LOAD_PATH, info.id, done_already="already")
            info = await self._until(info.id, lambda state: state is LoadState.LOADED)
        try:
            return check_loaded(info, context_tokens, server=self.identity.name)
        except FailedPreconditionError as error:
            if not was_loaded:
                await self.unload(info.id)
            cure = "llama-server takes a model's context from its own command line or preset (--ctx-size)"
            raise FailedPreconditionError(f"{error.message}; {cure}", reason=error.reason) from None

    async def unload(self, model: str) -> ModelInfo:
        """Unload a model in router mode; see ModelManager."""
        info = await self._installed(model)
        if not self._is_router:
            raise FailedPreconditionError(
                f"{self.identity.name} is llama-server with one fixed model; stop it, or start it with --models-dir",
                reason="UNLOAD_NOT_SERVED",
            )
        if info.state is not LoadState.NOT_LOADED:
            await self._tell(UNLOAD_PATH, info.id, done_already="not running")
        return await self._until(info.id, lambda state: state is LoadState.NOT_LOADED)

    async def count_prompt(self, call: ChatCall, model: ModelInfo) -> int:
        """Count a whole prompt; see TokenCounter."""
        self._require_in_memory(model)
        async with self._turn_to_count():
            return await count_request(
                self._http, self._request(call, model, stream=False), self.wire_model(model)
            )

    async def count_text(self, text: str, model: ModelInfo) -> int:
        """Count a text; see TokenCounter."""
        self._require_in_memory(model)
        async with self._turn_to_count():
            return await count_text(self._http, text, self.wire_model(model))

    @asynccontextmanager
    async def _turn_to_count(self) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(COUNT_SECONDS):
                await self._counts.acquire()
        except TimeoutError:
            raise BackendFailure("TOKENIZER_BUSY", "counts tokens for others") from None
        try:
            yield
        finally:
            self._counts.release()

    def _require_in_memory(self, model: ModelInfo) -> None:
        # Router mode would load the model for a count.
        if model.state is not LoadState.LOADED or self._repeats_names:
            raise BackendFailure("NO_TOKENIZER", "has no tokenizer at hand for this model")

    async def _installed(self, model: str) -> ModelInfo:
        status = await self._look()
        if status.state is State.LOADING and not status.models:
            raise BackendFailure(status.reason, status.detail)
        cure = "put its file into llama-server's --models-dir, or start llama-server with -m"
        return find_installed(status.models, model, server=self.identity.name, cure=cure)

    async def _tell(self, path: str, model: str, *, done_already: str) -> None:
        reply = await self._http.tell(path, {"model": model}, within_seconds=LOAD_SECONDS)
        if reply.status != OK and done_already not in reply.body.decode("utf-8", "replace"):
            raise self.failure_of(reply.status, reply.body)

    async def _until(self, model: str, holds: Callable[[LoadState], bool]) -> ModelInfo:
        """Wait for a state; a model that went out of memory while it was being loaded will not come."""
        idle = 0
        while True:
            info = await self._installed(model)
            if holds(info.state):
                return info
            idle = idle + 1 if info.state is LoadState.NOT_LOADED else 0
            if idle > IDLE_POLLS:
                raise BackendFailure("LOAD_FAILED", f"could not load {info.id}; its own log says why")
            await asyncio.sleep(POLL_SECONDS)

    async def _look(self) -> Status:
        try:
            health = await self._get(HEALTH_PATH)
        except BackendFailure:
            # Whoever answers here next may have been started otherwise.
            self._serves.clear()
            raise
        if health.status == LOADING_STATUS:
            return Status(State.LOADING, "is loading its model; wait for it", reason="BACKEND_LOADING")
        reply = await self._get(MODELS_PATH)
        listed = json_list(reply, "data")
        if listed is None:
            raise BackendFailure("NOT_LLAMACPP", "something answers there, but it is not llama-server")
        # Someone configured this address, so a proxy that hides the server's marks is believed; but not its names.
        self._repeats_names = not is_llama_server(reply)
        is_multimodal = _is_multimodal(reply)
        self._is_router = any("status" in item for item in listed)
        serves = frozenset() if self._is_router else await self._served(listed)
        models = tuple(
            model for item in listed if (model := _model(item, sees=is_multimodal, serves=serves)) is not None
        )
        self._adapters = {} if self._repeats_names else await self._adapters_of(listed, models)
        status = status_of_models(
            models, no_model="load one with `kala models load`, or start llama-server with -m"
        )
        return replace(status, detail=f"{status.detail}{self._switched_off()}")

    def _switched_off(self) -> str:
        count = sum(len(adapters) for adapters in self._adapters.values())
        if not count:
            return ""
        return f"; LoRA adapters of its own are switched off ({count}): none can be held against a signed manifest"

    async def _served(self, listed: list[dict[str, object]]) -> frozenset[Capability]:
        """Find out once per model whether it embeds or ranks.

        llama-server says nowhere what it was started for, but looks at that before it reads a request: an empty one is
        501 where the endpoint is off and 400 where it is on, and costs no model a token.
        """
        names = tuple(str(item.get("id")) for item in listed)
        if names not in self._serves:
            asked = {Capability.EMBED: EMBED_PATH, Capability.RERANK: RERANK_PATH}
            replies = {task: await self._http.tell(path, {}) for task, path in asked.items()}
            found = frozenset(
                task
                for task, reply in replies.items()
                # It is also 400 where it would give a vector per token, which is no embedding of a text.
                if reply.status == BAD_REQUEST and INCOMPLETE in reply.body
            )
            # Of one server, and as long as it serves the same.
            self._serves = {names: found}
        return self._serves[names]

    async def _adapters_of(
        self, listed: list[dict[str, object]], models: tuple[ModelInfo, ...]
    ) -> dict[str, tuple[int, ...]]:
        """Give the numbers of every model's LoRA adapters; router mode tells them ahead, by its command lines."""
        named = {str(item.get("id")): _adapters_named(item) for item in listed}
        found: dict[str, tuple[int, ...]] = {}
        for model in models:
            told = named.get(model.id)
            if told is not None:
                found[model.id] = told
            elif model.state is LoadState.LOADED:
                asked = f"?model={quote(model.id, safe='')}" if self._is_router else ""
                parsed = (await self._get(f"{ADAPTERS_PATH}{asked}")).json()
                adapters = parsed if isinstance(parsed, list) else []
                numbers = (item.get("id") for item in adapters if isinstance(item, dict))
                found[model.id] = tuple(number for number in numbers if isinstance(number, int))
        return found


def _adapters_named(item: dict[str, object]) -> tuple[int, ...] | None:
    """Count the adapters of a command line, which numbers them from 0; None where it is not told."""
    status = item.get("status")
    arguments = status.get("args") if isinstance(status, dict) else None
    if not isinstance(arguments, list):
        return None
    pairs = itertools.pairwise(arguments)
    return tuple(range(sum(len(str(value).split(",")) for flag, value in pairs if flag in ADAPTER_FLAGS)))


def _started_for(arguments: object) -> frozenset[Capability]:
    """Read from a command line of router mode what a model is started for."""
    given = {str(argument) for argument in arguments} if isinstance(arguments, list) else set()
    return frozenset(task for task, flags in _FLAGS.items() if given & flags)


def _is_unfinished(call: ChatCall) -> bool:
    last = call.messages[-1]
    return last.role is Role.ASSISTANT and not last.tool_calls


def _is_multimodal(reply: Reply) -> bool:
    # Single mode tells it beside the list; router mode per model (`architecture`).
    for item in json_list(reply, "models") or []:
        capabilities = item.get("capabilities")
        if isinstance(capabilities, list) and "multimodal" in capabilities:
            return True
    return False


def _model(
    item: dict[str, object], *, sees: bool, serves: frozenset[Capability] = frozenset()
) -> ModelInfo | None:
    name = item.get("id")
    if not isinstance(name, str) or not name:
        return None
    status, meta, architecture = item.get("status"), item.get("meta"), item.get("architecture")
    meta = meta if isinstance(meta, dict) else {}
    aliases = item.get("aliases")
    modalities = architecture.get("input_modalities") if isinstance(architecture, dict) else None
    if isinstance(status, dict):
        serves = _started_for(status.get("args"))
    capabilities = {Capability.CHAT, Capability.COMPLETE, Capability.TOOLS, Capability.JSON_SCHEMA, *serves}
    if sees or (isinstance(modalities, list) and "image" in modalities):
        capabilities.add(Capability.VISION)
    if Capability.RERANK in serves:
        # Its one output is a score: such a model neither speaks nor embeds.
        capabilities = {Capability.RERANK}
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
