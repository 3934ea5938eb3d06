"""A backend that does what a test says, to force what a real one will not do on demand."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable

from services.inference.backend import (
    BackendFailure,
    Check,
    Identity,
    Kind,
    LoadState,
    ModelInfo,
    State,
    Status,
)
from services.inference.chat import PROBE, ChatCall, Delta, Event, Finish, FinishReason, Opened


class FakeBackend:
    """Answers "Hello", unless `failure` is set; waits for `gate` before it does."""

    carries_on = False

    def __init__(
        self, name: str = "llamacpp", *models: ModelInfo, kind: Kind = Kind.LLAMACPP, weight: float = 1.0
    ) -> None:
        self._identity = Identity(name, kind, weight=weight)
        self.models = models or (ModelInfo("tiny", LoadState.LOADED),)
        self.failure: BackendFailure | None = None
        self.state = State.READY
        self.gate = asyncio.Event()
        self.gate.set()
        self.asked = 0
        """Requests of users."""
        self.tested = 0
        """Tests of the service itself."""
        self.looked = 0

    @property
    def identity(self) -> Identity:
        return self._identity

    def was_asked(self, times: int) -> bool:
        """Tell whether so many requests of users have come."""
        return self.asked == times

    async def look(self) -> Status:
        """Give the state that the test has set."""
        self.looked += 1
        return Status(self.state, f"is {self.state.value}", self.models)

    async def chat(
        self, call: ChatCall, model: ModelInfo, begin: Callable[[], None]
    ) -> AsyncGenerator[Event]:
        """Answer or fail."""
        begin()
        if call is PROBE:
            self.tested += 1
        else:
            self.asked += 1
        await self.gate.wait()
        if self.failure is not None:
            raise self.failure
        yield Opened(model.id)
        yield Delta("Hello")
        yield Finish(FinishReason.STOP)

    async def diagnose(self, model: str) -> tuple[Check, ...]:
        """Find nothing."""
        return ()

    async def aclose(self) -> None:
        """Hold nothing."""
