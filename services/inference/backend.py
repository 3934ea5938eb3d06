"""What every backend is to the router, whether a model server or the model in process.  Pure."""

from __future__ import annotations

import enum
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from typing import Final, Protocol, runtime_checkable

from services.inference.chat import ChatCall, Event

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

    @property
    def can_chat(self) -> bool:
        return self.may(Capability.CHAT)

    def may(self, capability: Capability) -> bool:
        """Tell whether it can do this, as far as is known."""
        return self.capabilities is None or capability in self.capabilities


@dataclass(frozen=True, slots=True)
class Status:
    """What one look at a backend saw; `detail` is in words, with the cure, and holds no content."""

    state: State
    detail: str
    models: tuple[ModelInfo, ...] = ()
    reason: str = ""
    """Stable UPPER_SNAKE_CASE reason where the state is not READY."""


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

    @property
    def is_remote(self) -> bool:
        """Whether what is sent there leaves the machines of whoever runs this."""
        return self.kind.is_remote


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


class BackendFailure(Exception):  # noqa: N818 - a fact about a backend; dispatch decides whether it is an error
    """A backend did not give an answer; `reason` is stable, `detail` is in words without content.

    `told` is the backend's own text for the person who asked; it may quote the request and never enters a record.
    `retry_after_seconds` is how long the backend asked to be left alone; None where it did not.
    """

    def __init__(
        self,
        reason: str,
        detail: str,
        *,
        blame: Blame = Blame.BACKEND,
        told: str = "",
        retry_after_seconds: float | None = None,
    ) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail
        self.blame = blame
        self.told = told
        self.retry_after_seconds = retry_after_seconds


class ContextOverflow(BackendFailure):
    """The prompt is longer than the context; numbers are None where the backend did not tell them."""

    def __init__(self, *, prompt_tokens: int | None, context_tokens: int | None) -> None:
        super().__init__(
            "CONTEXT_LENGTH_EXCEEDED", "the prompt is longer than the context", blame=Blame.CALLER
        )
        self.prompt_tokens = prompt_tokens
        self.context_tokens = context_tokens


class Backend(Protocol):
    """A model server, or the model in process."""

    @property
    def identity(self) -> Identity:
        """Who it is."""
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
