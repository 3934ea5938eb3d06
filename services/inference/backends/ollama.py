"""Ollama by its native API: state by /api/tags and /api/ps, chat by /api/chat, texts by /api/generate and /api/embed.

Ollama loads a model when it is asked for, so an installed one may be named although it is not in memory.  What runs on
Ollama's own servers (a "cloud" model) is not offered: it would let data leave this machine under a local name.  Neither
is a model before /api/show has said that it is here.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Iterable
from dataclasses import dataclass
from typing import ClassVar, Final

from services.inference.backend import (
    BackendFailure,
    Capability,
    Identity,
    LoadState,
    ModelInfo,
    Status,
)
from services.inference.backends.http import ModelServerClient, Reply
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
from services.inference.backends.ollama_task_wire import embed_body, generate_body, read_embed
from services.inference.backends.ollama_wire import AnswerReader, request_body
from services.inference.backends.openai_tasks import TaskServer
from services.inference.backends.task_wire import batches, joined
from services.inference.chat import ChatCall, Event, Opened
from services.inference.failures import failure_of_body
from services.inference.ndjson import LineReader, LineTooLongError
from services.inference.pull.progress import Pulled
from services.inference.pull.servers import pull_by_ollama
from services.inference.tasks import CompleteCall, EmbedCall, Vectors

VERSION_PATH: Final = "/api/version"
TAGS_PATH: Final = "/api/tags"
RUNNING_PATH: Final = "/api/ps"
SHOW_PATH: Final = "/api/show"
CHAT_PATH: Final = "/api/chat"
GENERATE_PATH: Final = "/api/generate"
EMBED_PATH: Final = "/api/embed"

UNLOAD_POLLS: Final = 40

SHOWN_AT_ONCE: Final = 4
MAX_SHOWN: Final = 64
"""Models that are asked about in one look; the rest follow with the next ones, and are not offered before."""

_TELLING: Final = frozenset(
    {"capabilities", "details", "model_info", "modelfile", "remote_host", "remote_model"}
)
"""One of these is in every answer about a model; without them nobody knows where it runs."""

_LATEST: Final = ":latest"
_CLOUD: Final = (":cloud", "-cloud")

_CAPABILITIES: Final = {
    "completion": frozenset({Capability.CHAT, Capability.COMPLETE, Capability.JSON_SCHEMA}),
    "vision": frozenset({Capability.VISION}),
    "tools": frozenset({Capability.TOOLS}),
    "embedding": frozenset({Capability.EMBED}),
}


def is_ollama(reply: Reply) -> bool:
    """Tell whether an answer to VERSION_PATH is Ollama's."""
    parsed = reply.json()
    return isinstance(parsed, dict) and isinstance(parsed.get("version"), str) and len(parsed) == 1


@dataclass(frozen=True, slots=True)
class _Shown:
    """What /api/show tells of a model; the same as long as its digest is."""

    capabilities: frozenset[Capability] | None = None
    max_context_tokens: int | None = None
    is_remote: bool = False


class OllamaBackend(TaskServer):
    """A running Ollama."""

    carries_on: bool = True
    off_cure: ClassVar[str] = "start it with `ollama serve`"

    def __init__(self, identity: Identity, http: ModelServerClient, *, max_output_tokens: int) -> None:
        super().__init__(identity, http, max_output_tokens=max_output_tokens)
        self._shown: dict[tuple[str, str], _Shown] = {}
        self._asked: dict[tuple[str, str], int] = {}
        """How often a model that is not known yet was asked about."""
        self._kept: dict[str, int | None] = {}
        """Models that were loaded on demand, with the context asked for: they stay so until they are unloaded."""

    def load_cure(self, model: str) -> str:
        return f"run `ollama run {model or '<model>'}`, or set OLLAMA_MODEL"

    def answers_as(self, answered: str, model: ModelInfo) -> bool:
        return answered.removesuffix(_LATEST) == model.id.removesuffix(_LATEST)

    def chat(self, call: ChatCall, model: ModelInfo, begin: Callable[[], None]) -> AsyncGenerator[Event]:
        """Generate; see Backend.chat."""
        body = request_body(
            call,
            model=model.id,
            max_output_tokens=self._max_output_tokens,
            context_tokens=self._context_of(model),
            keep=model.id in self._kept,
        )
        return self._events(CHAT_PATH, body, model, begin)

    def complete(
        self, call: CompleteCall, model: ModelInfo, begin: Callable[[], None]
    ) -> AsyncGenerator[Event]:
        """Continue a text, or fill the gap before its suffix; see Completer."""
        body = generate_body(
            call,
            model=model.id,
            max_output_tokens=self._max_output_tokens,
            context_tokens=self._context_of(model),
            keep=model.id in self._kept,
        )
        return self._events(GENERATE_PATH, body, model, begin, is_text=True)

    async def embed(self, call: EmbedCall, model: ModelInfo, begin: Callable[[], None]) -> Vectors:
        """Embed in batches, one after the other; see Embedder."""
        parts: list[Vectors] = []
        for texts in batches(call.inputs):
            body = embed_body(texts, model=model.id, dimensions=call.dimensions, keep=model.id in self._kept)
            answered, part = read_embed(
                await self._answer_to(EMBED_PATH, body, begin, is_first=not parts), texts=len(texts)
            )
            self._check_model(Opened(answered), model)
            parts.append(part)
        return joined(parts, dimensions=call.dimensions)

    async def _events(
        self,
        path: str,
        body: bytes,
        model: ModelInfo,
        begin: Callable[[], None],
        *,
        is_text: bool = False,
    ) -> AsyncGenerator[Event]:
        """Send a request and read its answer; leaving early closes the exchange."""
        async with self._http.post(path, body, begin, streams=True) as answer:
            if answer.status != OK or "html" in answer.content_type:
                raise self.failure_of(answer.status, await answer.error_body())
            lines, reader = LineReader(), AnswerReader(is_text=is_text)
            while not reader.is_done and (data := await answer.read()):
                for event in reader.read(_fed(lines, data)):
                    self._check_model(event, model)
                    yield event
            if not reader.is_done:
                for event in reader.read(lines.finish()):
                    self._check_model(event, model)
                    yield event
            if not reader.is_done:
                raise reader.cut()
            await answer.drain()

    def _context_of(self, model: ModelInfo) -> int | None:
        return self._kept.get(model.id) or model.context_tokens

    async def load(self, model: str, context_tokens: int | None) -> ModelInfo:
        """Load a model and keep it; see ModelManager."""
        info = await self._installed(model)
        check_context(info, context_tokens)
        fits = context_tokens is None or info.context_tokens == context_tokens
        if info.state is not LoadState.LOADED or not fits or info.id not in self._kept:
            options = {} if context_tokens is None else {"options": {"num_ctx": context_tokens}}
            await self._tell({"model": info.id, "stream": False, "keep_alive": -1, **options})
            info = await self._installed(info.id)
        check_loaded(info, context_tokens, server=self.identity.name)
        self._kept[info.id] = context_tokens
        return info

    async def unload(self, model: str) -> ModelInfo:
        """Unload a model; see ModelManager."""
        info = await self._installed(model)
        self._kept.pop(info.id, None)
        if info.state is LoadState.LOADED:
            await self._tell({"model": info.id, "stream": False, "keep_alive": 0})
        for _ in range(UNLOAD_POLLS):
            if info.state is not LoadState.LOADED:
                return info
            await asyncio.sleep(POLL_SECONDS)
            info = await self._installed(info.id)
        raise BackendFailure("UNLOAD_FAILED", f"still has {info.id} in memory")

    def pull(self, source: str) -> AsyncGenerator[Pulled]:
        """Get a model from Ollama's library; see Puller."""
        return pull_by_ollama(self._http, source)

    async def _look(self) -> Status:
        models = await self._models()
        return status_of_models(models, no_model=self.load_cure(""))

    async def _models(self) -> tuple[ModelInfo, ...]:
        installed = json_list(await self._get(TAGS_PATH), "models")
        if installed is None:
            raise BackendFailure("NOT_OLLAMA", "something answers there, but it is not Ollama")
        running = {
            str(item.get("name")): item for item in json_list(await self._get(RUNNING_PATH), "models") or []
        }
        here = [item for item in installed if item.get("name") and not _is_remote(item)]
        await self._learn(here)
        present = {_key(item) for item in here}
        # What is gone is forgotten: names and digests may change without end.
        self._shown = {key: shown for key, shown in self._shown.items() if key in present}
        self._asked = {key: times for key, times in self._asked.items() if key in present - set(self._shown)}
        shown = [(item, known) for item in here if (known := self._shown.get(_key(item)))]
        return tuple(_model(item, running, known) for item, known in shown if not known.is_remote)

    async def _installed(self, model: str) -> ModelInfo:
        cure = f"get it with `ollama pull {model}`"
        return find_installed(await self._models(), model, server=self.identity.name, cure=cure)

    async def _learn(self, installed: Iterable[dict[str, object]]) -> None:
        """Ask about models that are not known yet, the least often asked first; what cannot be learnt stays unknown."""
        new = dict.fromkeys(key for item in installed if (key := _key(item)) not in self._shown)
        slots = asyncio.Semaphore(SHOWN_AT_ONCE)

        async def show(key: tuple[str, str]) -> None:
            self._asked[key] = self._asked.get(key, 0) + 1
            async with slots:
                with contextlib.suppress(BackendFailure):
                    reply = await self._http.tell(SHOW_PATH, {"model": key[0]})
                    parsed = reply.json()
                    if reply.status == OK and isinstance(parsed, dict) and _TELLING & parsed.keys():
                        self._shown[key] = _read_shown(parsed)

        due = sorted(new, key=lambda key: self._asked.get(key, 0))
        await asyncio.gather(*(show(key) for key in due[:MAX_SHOWN]))

    async def _tell(self, value: dict[str, object]) -> None:
        reply = await self._http.tell(GENERATE_PATH, value, within_seconds=LOAD_SECONDS)
        if reply.status != OK:
            raise failure_of_body(reply.status, reply.body)


def _key(item: dict[str, object]) -> tuple[str, str]:
    return str(item["name"]), str(item.get("digest") or "")


def _is_remote(item: dict[str, object]) -> bool:
    return bool(item.get("remote_host") or item.get("remote_model")) or str(item["name"]).endswith(_CLOUD)


def _read_shown(parsed: dict[str, object]) -> _Shown:
    named, info = parsed.get("capabilities"), parsed.get("model_info")
    found: frozenset[Capability] | None = None
    if isinstance(named, list):
        found = frozenset().union(*(_CAPABILITIES.get(str(name), frozenset()) for name in named))
    contexts = (
        [positive(value) for name, value in info.items() if str(name).endswith(".context_length")]
        if isinstance(info, dict)
        else []
    )
    return _Shown(
        # A list without one known name says nothing: a later Ollama may call them otherwise.
        capabilities=found or None,
        max_context_tokens=next((tokens for tokens in contexts if tokens), None),
        is_remote=bool(parsed.get("remote_host") or parsed.get("remote_model")),
    )


def _model(item: dict[str, object], running: dict[str, dict[str, object]], shown: _Shown) -> ModelInfo:
    name, details = str(item["name"]), item.get("details")
    loaded = running.get(name)
    return ModelInfo(
        id=name,
        state=LoadState.NOT_LOADED if loaded is None else LoadState.LOADED,
        aliases=(name.removesuffix(_LATEST),) if name.endswith(_LATEST) else (),
        context_tokens=positive(loaded.get("context_length")) if loaded else None,
        max_context_tokens=shown.max_context_tokens,
        capabilities=shown.capabilities,
        quantization=str(details.get("quantization_level") or "") if isinstance(details, dict) else "",
    )


def _fed(lines: LineReader, data: bytes) -> list[bytes]:
    try:
        return lines.feed(data)
    except LineTooLongError as error:
        raise BackendFailure("MALFORMED_ANSWER", str(error)) from error
