"""What protects one backend: a breaker for its address, one for each of its models, and its bulkhead.  Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from services.inference.backend import Capability
from services.inference.protection.breaker import WAIT_SECONDS, Breaker, BreakerState
from services.inference.protection.bulkhead import Bulkhead

Served = tuple[str, Capability]
"""A model's id and what it is asked for."""

PLACES: Final = 128
"""The connections to a backend and as many requests that wait for one."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a guard allows."""

    places: int = PLACES
    wait_seconds: float = WAIT_SECONDS


@dataclass(slots=True)
class Guard:
    """One backend's protection; it lives as long as the backend is known."""

    limits: Limits = field(default_factory=Limits)
    looks: int = 0
    """Looks at the backend so far that found it answering."""
    _reach: Breaker = field(init=False)
    _models: dict[Served, Breaker] = field(default_factory=dict)
    _answered: dict[str, int] = field(default_factory=dict)
    _tested: dict[str, int] = field(default_factory=dict)
    bulkhead: Bulkhead = field(init=False)

    def __post_init__(self) -> None:
        self._reach = Breaker(failures_in_a_row=1, wait_seconds=self.limits.wait_seconds)
        self.bulkhead = Bulkhead(self.limits.places)

    @property
    def in_flight(self) -> int:
        """Requests that hold a place now."""
        return self.bulkhead.taken

    @property
    def reach(self) -> Breaker:
        """The breaker of its address: open while no connection can be made."""
        return self._reach

    def model(self, name: str, task: Capability = Capability.CHAT) -> Breaker:
        """Give the breaker of a model for one task: a server that chats may be unable to embed."""
        breaker = self._models.get((name, task))
        if breaker is None:
            breaker = self._models[name, task] = Breaker(wait_seconds=self.limits.wait_seconds)
        return breaker

    def shut_models(self) -> Iterator[tuple[Served, Breaker]]:
        """Give the models and tasks that requests are kept away from."""
        return ((served, breaker) for served, breaker in list(self._models.items()) if not breaker.is_closed)

    def forget(self, name: str) -> None:
        """Drop the breakers of a model that is no longer there."""
        for task in Capability:
            self._models.pop((name, task), None)

    def looked(self, *, answers: bool) -> None:
        """Take note of a look: one that was answered shows that connections can be made again."""
        if not answers:
            return
        self.looks += 1
        if not self._reach.is_closed:
            self._reach.close()

    def answered(self, model: str) -> None:
        """Take note that a model gave a whole answer."""
        self._answered[model] = self.looks

    def tested(self, model: str) -> None:
        """Take note that an idle model is being tested."""
        self._tested[model] = self.looks

    def is_test_due(self, model: str, idle_looks: int) -> bool:
        """Tell whether a model was silent for so many looks, counted from the start, and not tested since the last one."""
        silent = self.looks - self._answered.get(model, 0)
        return silent >= idle_looks and self.looks > self._tested.get(model, -1)

    @property
    def state(self) -> BreakerState:
        """The worst of its breakers: OPEN before HALF_OPEN before CLOSED."""
        states = {self._reach.state, *(breaker.state for _, breaker in self.shut_models())}
        return next(
            state
            for state in (BreakerState.OPEN, BreakerState.HALF_OPEN, BreakerState.CLOSED)
            if state in states
        )

    def shut(self, model: str, task: Capability = Capability.CHAT) -> Breaker | None:
        """Give the breaker that keeps requests for a task from a model, or None."""
        if not self._reach.is_closed:
            return self._reach
        breaker = self._models.get((model, task))
        return None if breaker is None or breaker.is_closed else breaker

    def shut_for_anything(self, model: str) -> Breaker | None:
        """Give a breaker that keeps requests for some task from a model, or None."""
        shut = (self.shut(model, task) for task in Capability)
        return next((breaker for breaker in shut if breaker is not None), None)

    def words(self) -> str:
        """Say what requests are kept from and why; empty where nothing is."""
        if not self._reach.is_closed:
            return f"it gets no requests until a look finds it again (last failure: {self._reach.why})"
        return "; ".join(f"it {left_alone(*served, breaker)}" for served, breaker in self.shut_models())


def left_alone(model: str, task: Capability, breaker: Breaker) -> str:
    """Say why requests are kept from a model."""
    what = f"{model!r}" if task is Capability.CHAT else f"{task.value} by {model!r}"
    return f"gets no requests for {what} until a test of it succeeds (last failure: {breaker.why})"
