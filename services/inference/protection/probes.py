"""Proves that backends answer: tests what a breaker keeps requests from, and now and then what has been idle.

A look at a server shows that it runs and what it says of itself; only a generated token shows that it answers.
Requests of users are no tests: a dead backend gets none until a test of ours has succeeded.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import partial
from typing import Final

import structlog

from services.inference.backend import (
    BackendFailure,
    Capability,
    Kind,
    LoadState,
    ModelInfo,
    State,
    find_model,
)
from services.inference.chat import PROBE
from services.inference.protection.breaker import BreakerState, Leave
from services.inference.protection.limits import IDLE_LOOKS, LATENCY_SECONDS
from services.inference.protection.outcomes import Weight, weigh
from services.inference.protection.protection import Protection
from services.inference.registry.registry import Entry, Registry

log: Final = structlog.get_logger()

COLD_SECONDS: Final = 300.0
"""The same for a model that is busy, or may have to be loaded first."""

PLANNING_SECONDS: Final = 1.0
"""How often idle models are thought of."""

NEVER_IDLY_TESTED: Final = frozenset({Kind.OLLAMA, Kind.PYTHIA})
"""A test would keep Ollama from giving back the memory of a model that nobody uses; a model in process cannot pretend."""


@dataclass(slots=True)
class Prober:
    """Tests backends in the background."""

    registry: Registry
    protection: Protection
    idle_looks: int = IDLE_LOOKS
    """0 never tests an idle model."""
    latency_seconds: float = LATENCY_SECONDS
    cold_seconds: float = COLD_SECONDS
    _running: dict[tuple[str, str], asyncio.Task[None]] = field(default_factory=dict)

    async def run(self) -> None:
        """Test what is due as long as the process runs; ends when cancelled."""
        try:
            while True:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._pause()):
                        await self.protection.shut.wait()
                self.protection.shut.clear()
                self.start_due()
        finally:
            for task in self._running.values():
                task.cancel()
            await asyncio.gather(*self._running.values(), return_exceptions=True)

    async def test_due(self) -> None:
        """Test what is due now and return when all of it is done."""
        self.start_due()
        await asyncio.gather(*self._running.values())

    def start_due(self) -> None:
        """Start a task for every test that is due; one at a time for each model."""
        for entry in self.registry.entries():
            for model, leave in self._due(entry):
                key = (entry.backend.identity.name, "" if model is None else model.id)
                task = asyncio.create_task(self._test(entry, model, leave))
                self._running[key] = task
                task.add_done_callback(partial(self._done, key))

    def _done(self, key: tuple[str, str], task: asyncio.Task[None]) -> None:
        del self._running[key]
        if not task.cancelled() and (bug := task.exception()) is not None:
            log.error("test_broke", exc_info=bug)

    def _pause(self) -> float:
        """Give the seconds until the next test is due, at most PLANNING_SECONDS."""
        now = self.protection.clock()
        dues = [
            breaker.due_at - now
            for entry in self.registry.entries()
            for breaker in (entry.guard.reach, *(shut for _, shut in entry.guard.shut_models()))
            if breaker.state is BreakerState.OPEN and not breaker.takes_trials
        ]
        # Not below a moment: what is due and cannot be tested yet must not keep the loop busy.
        return min([PLANNING_SECONDS, *(max(due, 0.01) for due in dues)])

    def _due(self, entry: Entry) -> Iterator[tuple[ModelInfo | None, Leave | None]]:
        """Give the tests that are due at a backend: (None, leave) is a look, (model, leave) a token, and without leave idly."""
        now, guard, name = self.protection.clock(), entry.guard, entry.backend.identity.name
        if not guard.reach.is_closed:
            if (leave := guard.reach.probe(now)) is not None:
                yield None, leave
            return
        for (model_id, task), breaker in guard.shut_models():
            if breaker.takes_trials or now < breaker.due_at or (name, model_id) in self._running:
                continue
            model = find_model(entry.status.models, model_id)
            if model is None:
                guard.forget(model_id)
            elif task is not Capability.CHAT or not _is_testable(entry, model):
                breaker.takes_trials = True
            elif (leave := breaker.probe(now)) is not None:
                yield model, leave
        for model in entry.status.models:
            if (name, model.id) not in self._running and self._is_due_idly(entry, model):
                yield model, None
                return

    def _is_due_idly(self, entry: Entry, model: ModelInfo) -> bool:
        guard, identity = entry.guard, entry.backend.identity
        return (
            self.idle_looks > 0
            and identity.kind not in NEVER_IDLY_TESTED
            and entry.status.state is State.READY
            and guard.in_flight == 0
            and model.state is LoadState.LOADED
            and _is_testable(entry, model)
            and guard.shut(model.id) is None
            and guard.is_test_due(model.id, self.idle_looks)
        )

    async def _test(self, entry: Entry, model: ModelInfo | None, leave: Leave | None) -> None:
        if model is None:
            await self._look(entry)
            return
        guard, served = entry.guard, (model.id, Capability.CHAT)
        breaker = guard.model(*served)
        if leave is None:
            guard.tested(model.id)
            leave = breaker.admit(self.protection.clock())
        if leave is None:
            return
        try:
            failure = await self._failure(entry, model)
        except BaseException as stopped:
            self.protection.learn(entry, served, leave, stopped)
            raise
        self.protection.learn(entry, served, leave, failure)
        if failure is None:
            return
        self.registry.report(entry, failure)
        name = entry.backend.identity.name
        log.debug("test_failed", backend=name, model=model.id, reason=failure.reason)
        if weigh(failure) is Weight.NOTHING:
            # It turned our question away, so it is there, and only a request of a user can show whether it answers.
            guard.answered(model.id)
            breaker.takes_trials = not breaker.is_closed

    async def _look(self, entry: Entry) -> None:
        reach = entry.guard.reach
        try:
            await self.registry.look(entry)
        finally:
            if not reach.is_closed:
                reach.open(self.protection.clock(), reach.why)

    async def _failure(self, entry: Entry, model: ModelInfo) -> BackendFailure | None:
        """Generate one token and throw it away."""
        is_warm = model.state is LoadState.LOADED and entry.guard.in_flight == 0
        limit = self.latency_seconds if is_warm else self.cold_seconds
        try:
            async with asyncio.timeout(limit), aclosing(entry.backend.chat(PROBE, model, _begin)) as events:
                async for _event in events:
                    pass
        except BackendFailure as failure:
            return failure
        except TimeoutError:
            return BackendFailure(
                "TOO_SLOW",
                f"took longer than {limit:g} s for one token; for a machine as slow as that raise "
                "KALA_INFERENCE_HEALTH_SECONDS",
            )
        return None


def _is_testable(entry: Entry, model: ModelInfo) -> bool:
    """Tell whether a test of ours can prove a model; else the next request of a user has to.

    One that cannot chat is not asked by PROBE, a remote one costs money, and one that is not in memory would be loaded.
    """
    is_in_memory = model.state is not LoadState.NOT_LOADED
    return model.can_chat and is_in_memory and not entry.backend.identity.is_remote


def _begin() -> None:
    """Need no clearance: the text is ours, and nobody gets the answer."""
