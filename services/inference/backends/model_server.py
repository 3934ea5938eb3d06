"""One model server behind HTTP: how it is looked at, tested and closed, whatever protocol it chats in."""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable
from dataclasses import replace
from typing import ClassVar, Final

from services.inference import diagnosis
from services.inference.backend import (
    BackendFailure,
    Check,
    Identity,
    LoadState,
    ModelInfo,
    State,
    Status,
)
from services.inference.backends.elsewhere import AWAY, Elsewhere
from services.inference.backends.http import ModelServerClient, Reply
from services.inference.base_url import BaseUrl
from services.inference.chat import PROBE, ChatCall, Event, Opened
from services.inference.failures import failure_of_body

OK: Final = 200

STATE_SECONDS: Final = 20.0
"""Longest look at a server, which is several questions, one for each model of some: all others' next look waits for it."""


MAX_NAME_CHARS: Final = 256
"""As of ChatAction.model: a longer name cannot be asked for."""


class ModelServerBackend(ABC):
    """One model server; what differs between servers is how they tell their state, and a few habits."""

    names_its_model: ClassVar[bool] = True
    """Whether `model` in an answer says which model answered, rather than repeating what was asked."""

    carries_on: bool = False
    """Whether it goes on with a last message of the assistant's as it stands, instead of answering after it."""

    off_cure: ClassVar[str] = "start the server"

    def __init__(self, identity: Identity, http: ModelServerClient, *, max_output_tokens: int) -> None:
        self._identity = identity
        self._http = http
        self._max_output_tokens = max_output_tokens
        self.clock: Callable[[], float] = time.monotonic
        self.elsewhere: Elsewhere | None = None
        """Where it may be besides its own address."""
        self.state_seconds = STATE_SECONDS
        self.launch: Callable[[], Status | None] = lambda: None
        """Says why a server that is started here is not to be asked; None where it is."""

    def move(self, base: BaseUrl) -> None:
        """Ask at another address from now on."""
        self._http.use(base)

    @property
    def identity(self) -> Identity:
        return self._identity

    async def look(self) -> Status:
        """See the backend's state; its faults become a status with their reason and cure."""
        launched = self.launch()
        if launched is not None:
            return launched
        elsewhere = self.elsewhere
        if elsewhere is not None and elsewhere.is_away and await elsewhere.return_if_back():
            self._http.use(elsewhere.place)
        try:
            return self._seen(await self._told())
        except BackendFailure as failure:
            if elsewhere is None or failure.reason not in AWAY:
                return self._status_of(failure)
            is_found = await elsewhere.find()
            self._http.use(elsewhere.place)
            if not is_found:
                return self._status_of(failure)
        try:
            return self._seen(await self._told())
        except BackendFailure as failure:
            return self._status_of(failure)

    async def _told(self) -> Status:
        try:
            async with asyncio.timeout(self.state_seconds):
                return _nameable(await self._look())
        except TimeoutError:
            told = f"did not tell its whole state within {self.state_seconds:g} s"
            raise BackendFailure("STATE_TIMED_OUT", told) from None

    def _seen(self, status: Status) -> Status:
        if self.elsewhere is None or not self.elsewhere.is_away:
            return status
        place = f"found at {self.elsewhere.place}, since nothing answers at {self.elsewhere.own}"
        return replace(status, detail=f"{status.detail}; {place}")

    @abstractmethod
    def chat(self, call: ChatCall, model: ModelInfo, begin: Callable[[], None]) -> AsyncGenerator[Event]:
        """Generate; see Backend.chat."""

    async def diagnose(self, model: str) -> tuple[Check, ...]:
        """Connect, identify, list, compare the context, generate one token and time it."""
        status, identity = await self.look(), self.identity
        if status.state is State.OFF:
            cure = diagnosis.connect_cure(identity, status.reason)
            return (Check("connect", passed=False, detail=status.detail, cure=cure),)
        checks = [Check("connect", passed=True, detail=f"{self._http.url} answers")]
        if status.state is State.ERROR:
            cure = diagnosis.identify_cure(identity, status.reason)
            return (*checks, Check("identify", passed=False, detail=status.detail, cure=cure))
        checks.append(Check("identify", passed=True, detail=f"is {identity.kind.value}"))
        found, chosen = diagnosis.model_check(identity, status, model)
        checks.append(found)
        if chosen is None:
            return tuple(checks)
        context = diagnosis.context_check(identity, chosen)
        checks += [] if context is None else [context]
        if not all(check.passed for check in checks) or not chosen.can_chat:
            return tuple(checks)
        return (*checks, *await self._test_answer(chosen))

    async def aclose(self) -> None:
        """Close every connection."""
        await self._http.aclose()

    def wire_model(self, model: ModelInfo) -> str:
        """Give the name to send for a model."""
        return model.id

    def failure_of(self, status: int, body: bytes) -> BackendFailure:
        """Explain an answer that is not 200."""
        return failure_of_body(status, body)

    def load_cure(self, model: str) -> str:
        """Say how a model gets loaded here."""
        return f"load {model or 'a model'} in the server"

    @abstractmethod
    async def _look(self) -> Status:
        """Ask the server for its state; may raise BackendFailure."""

    async def _get(self, path: str) -> Reply:
        reply = await self._http.get(path)
        if reply.status in {401, 403}:
            raise BackendFailure("AUTHENTICATION_FAILED", f"answered {reply.status}")
        return reply

    def _status_of(self, failure: BackendFailure) -> Status:
        if failure.reason == "AUTHENTICATION_FAILED":
            setting = f"KALA_INFERENCE_{self.identity.kind.name}_API_KEY"
            return Status(State.ERROR, f"refuses the API key; set {setting}", reason=failure.reason)
        state = State.OFF if failure.reason in AWAY else State.ERROR
        return Status(state, f"{failure.detail}; {self.off_cure}", reason=failure.reason)

    def _check_model(self, event: Event, model: ModelInfo) -> None:
        if not isinstance(event, Opened) or not self.names_its_model or not event.model:
            return
        if not self.answers_as(event.model, model):
            raise BackendFailure("WRONG_MODEL", f"answered as another model than {model.id}")

    def answers_as(self, answered: str, model: ModelInfo) -> bool:
        """Tell whether the name in an answer is one of the model's."""
        return answered == model.id or answered in model.aliases

    async def _test_answer(self, model: ModelInfo) -> tuple[Check, ...]:
        started = self.clock()
        try:
            async for _event in self.chat(PROBE, model, lambda: None):
                pass
        except BackendFailure as failure:
            cure = diagnosis.answer_cure(self.identity, model, failure)
            return (Check("answer", passed=False, detail=failure.detail, cure=cure),)
        generates = Check("answer", passed=True, detail=f"{model.id} generates")
        return (generates, diagnosis.speed_check(self.identity, model, self.clock() - started))


def _nameable(status: Status) -> Status:
    """Leave out models whose names cannot be asked for, or would break the lines, headers and records that show them."""
    models = tuple(
        model for model in status.models if len(model.id) <= MAX_NAME_CHARS and model.id.isprintable()
    )
    return status if len(models) == len(status.models) else replace(status, models=models)


def status_of_models(models: tuple[ModelInfo, ...], *, no_model: str) -> Status:
    """Sum up a model list; `no_model` says what to do when none is in memory."""
    chat_models = [model for model in models if model.can_chat]
    if any(model.state in {LoadState.LOADED, LoadState.UNKNOWN} for model in chat_models):
        return Status(State.READY, "answers and has a model", models)
    if any(model.state is LoadState.LOADING for model in chat_models):
        return Status(State.LOADING, "is loading a model; wait for it", models, reason="BACKEND_LOADING")
    return Status(State.NO_MODEL, f"no model is loaded; {no_model}", models, reason="NO_MODEL_LOADED")


def json_list(reply: Reply, key: str) -> list[dict[str, object]] | None:
    """Give the list of objects under a key of a 200 answer, or None where the answer is something else."""
    parsed = reply.json()
    values = parsed.get(key) if reply.status == OK and isinstance(parsed, dict) else None
    if not isinstance(values, list):
        return None
    return [value for value in values if isinstance(value, dict)]


def positive(value: object) -> int | None:
    """Give a positive whole number as it is, anything else as None."""
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None
