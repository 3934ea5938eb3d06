"""Brings models into a backend's memory and takes them out, one at a time per backend."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

from kala.errors import (
    DeadlineExceededError,
    FailedPreconditionError,
    InvalidArgumentError,
    KalaError,
    NotFoundError,
    UnavailableError,
)
from services.inference.backend import BackendFailure, Blame, Identity, Kind, ModelInfo, ModelManager
from services.inference.registry.registry import Entry, Registry

MAX_MODEL_CHARS: Final = 256
"""As of ChatAction.model."""

_HOW_ELSE: Final = {
    Kind.MLX: "mlx_lm.server serves the model it was started with: start it with --model {model}",
    Kind.OPENAI: "OpenAI keeps its models in memory itself",
    Kind.ANTHROPIC: "Anthropic keeps its models in memory itself",
}


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model as it is after the change, and the seconds that the change took."""

    model: ModelInfo
    elapsed_seconds: float


@dataclass(slots=True)
class ModelLoading:
    """Loads and unloads; the backend is looked at afterwards, however it ended, so that routing knows."""

    registry: Registry
    max_act_seconds: float
    clock: Callable[[], float] = time.monotonic
    _turns: defaultdict[str, asyncio.Lock] = field(default_factory=lambda: defaultdict(asyncio.Lock))

    async def load(
        self, entry: Entry, model: str, context_tokens: int | None, begin: Callable[[], None]
    ) -> Loaded:
        """Load a model, with the configured context where none is given; `begin` as of Backend.chat; raises KalaError."""
        manager = _manager(entry, model)
        _require_name(model)
        if context_tokens == 0:
            raise InvalidArgumentError("context_tokens", "must be at least 1; leave it out for the default")
        wanted = context_tokens or entry.backend.identity.preferences.contexts.of(model)
        async with self._turn(entry):
            begin()
            started = self.clock()
            loaded = await manager.load(model, wanted)
            return Loaded(loaded, self.clock() - started)

    async def unload(self, entry: Entry, model: str) -> Loaded:
        """Take a model out of memory; raises KalaError."""
        manager = _manager(entry, model)
        _require_name(model)
        async with self._turn(entry):
            started = self.clock()
            unloaded = await manager.unload(model)
            return Loaded(unloaded, self.clock() - started)

    @asynccontextmanager
    async def _turn(self, entry: Entry) -> AsyncIterator[None]:
        identity = entry.backend.identity
        limit = asyncio.timeout(self.max_act_seconds)
        try:
            async with limit, self._turns[identity.name]:
                try:
                    yield
                except BackendFailure as failure:
                    raise _error(identity, failure) from failure
                finally:
                    await self.registry.look(entry)
        except TimeoutError:
            if not limit.expired():
                raise
            raise DeadlineExceededError(
                f"{identity.name} was not done after {self.max_act_seconds:g} s", reason="MAX_ACT_SECONDS"
            ) from None


def _manager(entry: Entry, model: str) -> ModelManager:
    if isinstance(entry.backend, ModelManager):
        return entry.backend
    identity = entry.backend.identity
    how = _HOW_ELSE.get(identity.kind, "load it in the server itself").format(model=model or "<model>")
    raise FailedPreconditionError(f"{identity.name} takes no orders to load: {how}", reason="LOAD_NOT_SERVED")


def _require_name(model: str) -> None:
    if not 1 <= len(model) <= MAX_MODEL_CHARS:
        raise InvalidArgumentError("model", f"must be 1 to {MAX_MODEL_CHARS} characters")


def _error(identity: Identity, failure: BackendFailure) -> KalaError:
    told = f": {failure.told}" if failure.told else ""
    text = f"{identity.name} {failure.detail}{told}"
    if failure.reason == "MODEL_NOT_FOUND":
        return NotFoundError(text, reason=failure.reason)
    if failure.blame is Blame.CALLER:
        return InvalidArgumentError("", text, reason=failure.reason)
    return UnavailableError(text, reason=failure.reason)
