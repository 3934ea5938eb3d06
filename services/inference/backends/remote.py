"""What lies outside this machine: state without asking, tests only on demand, names with and without their date.

Nothing is sent there before a request allows it, not even a look: what the settings say stands until then.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from typing import ClassVar, Final

from services.inference.backend import (
    BackendFailure,
    Capability,
    Check,
    Identity,
    LoadState,
    ModelInfo,
    State,
    Status,
)
from services.inference.backends.http import ModelServerClient
from services.inference.backends.model_server import ModelServerBackend, json_list
from services.inference.backends.openai_compatible import MODELS_PATH
from services.inference.chat import ChatCall, Event
from services.inference.protection.outcomes import UNREACHABLE

CAPABILITIES: Final = frozenset(
    {Capability.CHAT, Capability.VISION, Capability.TOOLS, Capability.JSON_SCHEMA}
)

_DATE: Final = re.compile(r"-(?:\d{8}|\d{4}-\d{2}-\d{2})$")
_LATEST: Final = "-latest"


class RemoteBackend(ModelServerBackend):
    """A service of somebody else's."""

    off_cure: ClassVar[str] = "check this machine's way to the internet"

    def __init__(
        self,
        identity: Identity,
        http: ModelServerClient,
        *,
        max_output_tokens: int,
        models: Sequence[str],
    ) -> None:
        super().__init__(identity, http, max_output_tokens=max_output_tokens)
        self._is_away = False
        """Set when a request that was allowed found nobody there: from then on looks go there until somebody answers."""
        self._models = tuple(
            ModelInfo(name, state=LoadState.LOADED, capabilities=self.abilities(name))
            for name in dict.fromkeys((identity.default_model, *models))
        )

    def abilities(self, name: str) -> frozenset[Capability]:  # noqa: ARG002 - the same for all, unless a service knows more
        """Give what a model is for, by its name: nobody is asked before a request allows it."""
        return CAPABILITIES

    @property
    @abstractmethod
    def key_cure(self) -> str:
        """Say where the key is set."""

    async def chat(
        self, call: ChatCall, model: ModelInfo, begin: Callable[[], None]
    ) -> AsyncGenerator[Event]:
        """Generate; see Backend.chat."""
        async with aclosing(self.answer(call, model, begin)) as events:
            try:
                async for event in events:
                    yield event
            except BackendFailure as failure:
                self.note(failure)
                raise

    def note(self, failure: BackendFailure) -> None:
        """Take note of a request that failed."""
        self._is_away = failure.reason in UNREACHABLE

    @abstractmethod
    def answer(self, call: ChatCall, model: ModelInfo, begin: Callable[[], None]) -> AsyncGenerator[Event]:
        """Generate in the service's protocol."""

    def answers_as(self, answered: str, model: ModelInfo) -> bool:
        """Compare without the date of a model's version, which the service adds to the name that was asked for."""
        return _undated(answered) == _undated(model.id)

    def load_cure(self, model: str) -> str:  # noqa: ARG002 - whatever the model is
        return "name a model that the service has and your key may use"

    async def diagnose(self, model: str) -> tuple[Check, ...]:
        """Test it now: the way there, the key, the model and one token; only a fixed text of ours is sent."""
        wanted = model or self.identity.default_model
        try:
            reply = await self._get(MODELS_PATH)
        except BackendFailure as failure:
            status = self._status_of(failure)
            step, cure = (
                ("connect", self.off_cure) if status.state is State.OFF else ("identify", self.key_cure)
            )
            return (Check(step, passed=False, detail=status.detail, cure=cure),)
        listed = json_list(reply, "data")
        if listed is None:
            cure = "check the base URL"
            detail = f"something answers there, but it is not {self.identity.kind.value}"
            return (Check("identify", passed=False, detail=detail, cure=cure),)
        checks = (
            Check("connect", passed=True, detail=f"{self._http.url} answers"),
            Check("identify", passed=True, detail="accepts the key"),
        )
        chosen = next((known for known in self._models if known.id == wanted), None)
        if chosen is None:
            names = ", ".join(known.id for known in self._models)
            detail, cure = f"model {wanted!r} is not configured", f"configured are: {names}"
            return (*checks, Check("models", passed=False, detail=detail, cure=cure))
        return (*checks, *await self._test_answer(chosen))

    async def _look(self) -> Status:
        if self._is_away:
            await self._get(MODELS_PATH)
            self._is_away = False
        detail = "is configured; nothing is sent there, not even a look, before a request allows it"
        return Status(State.READY, detail, self._models)


def _undated(name: str) -> str:
    return _DATE.sub("", name).removesuffix(_LATEST)
