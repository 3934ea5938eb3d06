"""What every backend is to the router, whether a model server or the model in process.  Pure."""

from __future__ import annotations

import enum
import re
from collections.abc import AsyncGenerator, Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol, runtime_checkable

from services.inference.chat import ChatCall, Event, Sampling
from services.inference.tasks import CompleteCall, EmbedCall, RerankCall, Scores, Vectors

if TYPE_CHECKING:
    from services.common.adapter_manifest import VerifiedAdapter

LOCAL_MODEL: Final = "local-model"
"""The seeds' name for "the model that is loaded"; it is never sent to a server."""

AUTO_MODEL: Final = "auto"


class Kind(enum.Enum):
    """The kinds of backends, in the order in which `auto` prefers them."""

    MLX = "mlx"
    LLAMACPP = "llamacpp"
    LMSTUDIO = "lmstudio"
    OLLAMA = "ollama"
    PYTHIA = "pythia"
    OPENAI = "openai"
    ANTHROPIC = "anthropic"

    @property
    def is_remote(self) -> bool:
        """Whether what is sent there leaves the machines of whoever runs this."""
        return self in _REMOTE


_REMOTE: Final = frozenset({Kind.OPENAI, Kind.ANTHROPIC})


class Capability(enum.Enum):
    """What a model can do."""

    CHAT = "chat"
    COMPLETE = "text completion"
    EMBED = "embeddings"
    RERANK = "reranking"
    VISION = "vision"
    TOOLS = "tools"
    JSON_SCHEMA = "JSON schema"


class LoadState(enum.Enum):
    """Whether a model is in memory."""

    LOADED = "loaded"
    NOT_LOADED = "not loaded"
    LOADING = "loading"
    UNKNOWN = "unknown"


class State(enum.Enum):
    """Whether a backend can be used."""

    READY = "ready"
    NO_MODEL = "no model is loaded"
    OFF = "off"
    ERROR = "error"
    LOADING = "loading"


@dataclass(frozen=True, slots=True)
class AppliedAdapter:
    """An adapter that a model can apply; `digest` is its 32-byte adapter digest."""

    name: str
    digest: bytes


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """A model of one backend; `capabilities` is None where the backend does not say."""

    id: str
    state: LoadState = LoadState.UNKNOWN
    aliases: tuple[str, ...] = ()
    context_tokens: int | None = None
    max_context_tokens: int | None = None
    capabilities: frozenset[Capability] | None = None
    quantization: str = ""
    is_demo: bool = False
    base_digest: bytes = b""
    adapters: tuple[AppliedAdapter, ...] = ()
    """Adapters in service for single requests."""

    @property
    def can_chat(self) -> bool:
        return self.may(Capability.CHAT)

    def may(self, capability: Capability) -> bool:
        """Tell whether it can do this, as far as is known."""
        return self.capabilities is None or capability in self.capabilities


def find_model(models: Iterable[ModelInfo], name: str) -> ModelInfo | None:
    """Give the model of this id, else the one with this alias."""
    listed = tuple(models)
    by_id = next((model for model in listed if model.id == name), None)
    return by_id or next((model for model in listed if name in model.aliases), None)


@dataclass(frozen=True, slots=True)
class Status:
    """What one look at a backend saw; `detail` is in words, with the cure, and holds no content."""

    state: State
    detail: str
    models: tuple[ModelInfo, ...] = ()
    reason: str = ""
    """Stable UPPER_SNAKE_CASE reason where the state is not READY."""


@dataclass(frozen=True, slots=True)
class ContextLengths:
    """Contexts to load models with, in tokens: one for all, or for one model by its name's slug."""

    default: int | None = None
    by_slug: tuple[tuple[str, int], ...] = ()

    def of(self, model: str) -> int | None:
        """Give a model's context, None where nothing is said; `qwen/qwen3-4b` is found as `qwen_qwen3_4b` and `qwen3_4b`."""
        known = dict(self.by_slug)
        for name in (model, model.rpartition("/")[2]):
            tokens = known.get(slug(name))
            if tokens is not None:
                return tokens
        return self.default


def slug(name: str) -> str:
    """Write a model's name as part of a variable's name, in lower case."""
    return _NO_SLUG.sub("_", name.lower()).strip("_")


_NO_SLUG: Final = re.compile(r"[^a-z0-9]+")


@dataclass(frozen=True, slots=True)
class Preferences:
    """What the configuration says about the use of a backend."""

    sampling: Sampling = field(default_factory=Sampling)
    """How tokens are drawn where neither the request nor its role says it."""
    models: tuple[tuple[Capability, str], ...] = ()
    """Its model for a task other than chat, or for what a chat needs."""
    only_for: frozenset[Capability] = frozenset()
    """The tasks that it serves; empty for all."""
    contexts: ContextLengths = field(default_factory=ContextLengths)


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a backend is; `name` is unique among the backends of this process."""

    name: str
    kind: Kind
    url: str = ""
    default_model: str = ""
    """The configured model, empty where the loaded one is meant."""
    is_discovered: bool = False
    is_demo: bool = False
    number: int = 1
    """Place among the configured hosts of its kind, 1 first."""

    weight: float = 1.0
    """Share of the work among hosts of one kind that serve the same model; above 0."""

    preferences: Preferences = field(default_factory=Preferences)

    def model_for(self, task: Capability, needs: frozenset[Capability] = frozenset()) -> str:
        """Give the configured model for a task, empty where the loaded one is meant."""
        models = dict(self.preferences.models)
        for capability in (*sorted(needs, key=lambda need: need.value), task):
            if capability in models:
                return models[capability]
        return self.default_model if task in _DEFAULT_TASKS else ""

    @property
    def is_remote(self) -> bool:
        """Whether what is sent there leaves the machines of whoever runs this."""
        return self.kind.is_remote


_DEFAULT_TASKS: Final = frozenset({Capability.CHAT, Capability.COMPLETE})
"""What "the model" of a backend is for; whoever embeds with it says so."""


@dataclass(frozen=True, slots=True)
class Check:
    """One step of a test: what was seen and, where it failed, the cure."""

    step: str
    passed: bool
    detail: str
    cure: str = ""


class Blame(enum.Enum):
    """Whose fault a failure is, which decides what happens next."""

    BACKEND = "backend"
    """The next backend may do better."""
    CALLER = "caller"
    """No backend will: the request itself is wrong."""
    MODEL = "model"
    """The backend works; what its model wrote is not what was asked for."""


class BackendFailure(Exception):  # noqa: N818 - a fact about a backend; dispatch decides whether it is an error
    """A backend did not give an answer; `reason` is stable, `detail` is in words without content.

    `told` is the backend's own text for the person who asked; it may quote the request and never enters a record.
    `field` is the one of the request that is wrong, where that is known.
    `retry_after_seconds` is how long the backend asked to be left alone; None where it did not.
    """

    def __init__(
        self,
        reason: str,
        detail: str,
        *,
        blame: Blame = Blame.BACKEND,
        told: str = "",
        field: str = "",
        retry_after_seconds: float | None = None,
    ) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail
        self.blame = blame
        self.told = told
        self.field = field
        self.retry_after_seconds = retry_after_seconds


def cannot_do(problem: str) -> BackendFailure:
    """Say that the request asks what this backend has no way to do; `problem` names the field and the cure."""
    return BackendFailure(
        "BACKEND_REJECTED", "cannot do what the request asks", blame=Blame.CALLER, told=problem
    )


class ContextOverflow(BackendFailure):
    """The prompt is longer than the context; numbers are None where the backend did not tell them."""

    def __init__(self, *, prompt_tokens: int | None, context_tokens: int | None) -> None:
        super().__init__(
            "CONTEXT_LENGTH_EXCEEDED", "takes no prompt longer than its context", blame=Blame.CALLER
        )
        self.prompt_tokens = prompt_tokens
        self.context_tokens = context_tokens


class Backend(Protocol):
    """A model server, or the model in process."""

    @property
    def identity(self) -> Identity:
        """Who it is."""
        ...

    @property
    def carries_on(self) -> bool:
        """Whether it goes on with a last message of the assistant's as it stands, instead of answering after it."""
        ...

    async def look(self) -> Status:
        """Say what can be asked of it now; never raises for the backend's own faults."""
        ...

    def chat(self, call: ChatCall, model: ModelInfo, begin: Callable[[], None]) -> AsyncGenerator[Event]:
        """Generate: one Opened, Deltas, one Finish; raises BackendFailure.  Closing it stops the generation.

        `begin` is called when the request's turn has come, right before its first byte reaches the model; what it
        raises ends the generation before it began.
        """
        ...

    async def diagnose(self, model: str) -> tuple[Check, ...]:
        """Test it step by step, for a person; the first step that failed is the last."""
        ...

    async def aclose(self) -> None:
        """Give back connections and memory."""
        ...


@runtime_checkable
class ModelManager(Protocol):
    """A backend that brings models into memory and takes them out when it is told to."""

    async def load(self, model: str, context_tokens: int | None) -> ModelInfo:
        """Have the model in memory, with this context where one is given, and give it as it is then.

        A model that is loaded so already is left alone.  Raises KalaError for what the caller can mend and
        BackendFailure for the backend's own faults.
        """
        ...

    async def unload(self, model: str) -> ModelInfo:
        """Take every instance of the model out of memory and give it as it is then; one that is not loaded is left alone."""
        ...


@runtime_checkable
class TokenCounter(Protocol):
    """A backend that tells how many tokens its model reads; counting generates nothing and loads no model."""

    async def count_prompt(self, call: ChatCall, model: ModelInfo) -> int:
        """Count a conversation with its functions as the model would read it, head of the answer included.

        Raises BackendFailure, also where the model is not in memory and counting would load it.
        """
        ...

    async def count_text(self, text: str, model: ModelInfo) -> int:
        """Count a text by itself; raises BackendFailure as `count_prompt` does."""
        ...


@runtime_checkable
class Completer(Protocol):
    """A backend that continues texts."""

    def complete(
        self, call: CompleteCall, model: ModelInfo, begin: Callable[[], None]
    ) -> AsyncGenerator[Event]:
        """Continue the prompt; events, errors and `begin` as of Backend.chat."""
        ...


@runtime_checkable
class Embedder(Protocol):
    """A backend that turns texts into vectors."""

    async def embed(self, call: EmbedCall, model: ModelInfo, begin: Callable[[], None]) -> Vectors:
        """Embed every input, in order; raises BackendFailure, also for a text over the context: none is ever cut.

        `begin` as of Backend.chat.
        """
        ...


@runtime_checkable
class Reranker(Protocol):
    """A backend that has models made for ranking."""

    async def rerank(self, call: RerankCall, model: ModelInfo, begin: Callable[[], None]) -> Scores:
        """Score every document against the query; raises BackendFailure.  `begin` as of Backend.chat."""
        ...


@runtime_checkable
class AdapterHost(Protocol):
    """A backend that applies verified adapters to single requests."""

    @property
    def identity(self) -> Identity:
        """Who it is."""
        ...

    async def base_digest(self) -> bytes:
        """Give the digest of its base model's files, computing it where nothing vouches for them; raises KalaError."""
        ...

    async def load_adapter(self, adapter: VerifiedAdapter) -> None:
        """Hold an adapter ready from its verified bytes; raises KalaError and BackendFailure."""
        ...

    async def unload_adapter(self, name: str) -> bool:
        """Take an adapter out; False where it was not there.  Answers under way keep it to their end."""
        ...
