"""Admits attempts at backends and learns from how they end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import structlog

from services.inference.backend import BackendFailure, Capability
from services.inference.protection.balance import Host, Turns, balanced
from services.inference.protection.guard import left_alone
from services.inference.protection.outcomes import BREAKER_OPEN, BULKHEAD_FULL, Weight, weigh
from services.inference.protection.retry_budget import RetryBudget
from services.inference.router import Candidate, PassedOver, Route

if TYPE_CHECKING:
    from services.inference.backend import ModelInfo
    from services.inference.protection.breaker import Breaker, Leave
    from services.inference.protection.guard import Served
    from services.inference.registry.registry import Entry

log: Final = structlog.get_logger()

OK: Final = "OK"
"""What `observe` is told of an attempt that went well."""

UNDECIDED: Final = "UNDECIDED"
"""The same of one that the backend did not end: the client left, or the clearance had run out."""


@dataclass(slots=True)
class Protection:
    """The protection of all backends of a process; what it knows of each is in the entry's guard."""

    clock: Callable[[], float] = time.monotonic
    """Monotonic seconds."""
    budget: RetryBudget = field(default_factory=RetryBudget)
    observe: Callable[[str, str], None] = lambda _backend, _reason: None
    """Told of the end of every attempt: the backend's name, and OK, UNDECIDED or the failure's reason."""
    shut: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when a breaker opens, so that its probe is planned."""
    _turns: Turns = field(default_factory=Turns)

    @asynccontextmanager
    async def attempt(
        self, entry: Entry, model: ModelInfo, task: Capability = Capability.CHAT
    ) -> AsyncIterator[None]:
        """Hold a place at this backend for one attempt with this model, around all of it.

        Entering raises BackendFailure BREAKER_OPEN or BULKHEAD_FULL where it may not be made.  Leaving in order counts
        as an answer, leaving by a BackendFailure as what `weigh` says; anything else, such as a client that left,
        counts as nothing.
        """
        leave = self._admitted(entry, model, task)
        error: BaseException | None = None
        try:
            yield
        except BaseException as raised:
            error = raised
            raise
        finally:
            entry.guard.bulkhead.leave()
            self.learn(entry, (model.id, task), leave, error)
            self.observe(entry.backend.identity.name, _reason(error))

    def begin_request(self) -> None:
        """Note that a request is about to make its first attempt."""
        self.budget.request(self.clock())

    def may_retry(self) -> bool:
        """Take leave for a further attempt of a request whose last one did reach a backend."""
        return self.budget.may_retry(self.clock())

    def arranged(self, route: Route, get: Callable[[str], Entry | None]) -> Route:
        """Share the work: candidates that can stand in for each other by load and turn, all others where they are."""
        if len(route.candidates) < 2:  # noqa: PLR2004 - one candidate is its own order
            return route
        by_name = {candidate.backend: candidate for candidate in route.candidates}
        hosts = [
            self._host(candidate, entry)
            for candidate in route.candidates
            if (entry := get(candidate.backend)) is not None
        ]
        return Route(tuple(by_name[host.name] for host in balanced(hosts)), route.passed_over)

    def explained(
        self, route: Route, get: Callable[[str], Entry | None], task: Capability = Capability.CHAT
    ) -> Route:
        """Show a route as requests would take it now: arranged, without the backends that a breaker keeps them from."""
        chosen: list[Candidate] = []
        passed: list[PassedOver] = []
        for candidate in self.arranged(route, get).candidates:
            entry = get(candidate.backend)
            model = candidate.model.id
            shut = None if entry is None else entry.guard.shut(model, task)
            if shut is None or shut.takes_trials:
                chosen.append(candidate)
            else:
                passed.append(PassedOver(candidate.backend, BREAKER_OPEN, left_alone(model, task, shut)))
        return Route(tuple(chosen), (*passed, *route.passed_over))

    def learn(self, entry: Entry, served: Served, leave: Leave, error: BaseException | None) -> None:
        """Let a breaker know how an attempt or a probe with `leave` ended."""
        guard, name = entry.guard, entry.backend.identity.name
        model, task = served
        breaker = guard.model(model, task)
        was_closed = breaker.is_closed
        if error is None:
            breaker.succeeded(leave)
            guard.answered(model)
        elif not isinstance(error, BackendFailure):
            breaker.undecided(leave)
        else:
            self._failed(entry, breaker, leave, error)
        if breaker.is_closed is not was_closed:
            log.info(
                "breaker",
                backend=name,
                model=model,
                task=task.value,
                state=breaker.state.name,
                why=breaker.why,
            )
            self.shut.set()

    def _admitted(self, entry: Entry, model: ModelInfo, task: Capability) -> Leave:
        now, guard = self.clock(), entry.guard
        if not guard.reach.is_closed:
            raise _refused(guard.reach, (model.id, task), now)
        breaker = guard.model(model.id, task)
        if not guard.bulkhead.enter():
            raise BackendFailure(BULKHEAD_FULL, f"has {guard.in_flight} requests running or waiting already")
        leave = breaker.admit(now)
        if leave is None:
            guard.bulkhead.leave()
            raise _refused(breaker, (model.id, task), now)
        identity = entry.backend.identity
        self._turns.taken(identity.name, _group(entry, model.id), identity.weight)
        return leave

    def _failed(self, entry: Entry, breaker: Breaker, leave: Leave, failure: BackendFailure) -> None:
        now = self.clock()
        match weigh(failure):
            case Weight.NOTHING:
                breaker.undecided(leave)
            case Weight.FAULT:
                breaker.failed(leave, now, failure.detail, retry_after_seconds=failure.retry_after_seconds)
            case Weight.AWAY:
                # A probe of the model has not come to the model, and is due again once the address answers.
                breaker.undecided(leave)
                self._cut_off(entry, now, failure)

    def _cut_off(self, entry: Entry, now: float, failure: BackendFailure) -> None:
        if entry.guard.reach.is_closed:
            log.info("breaker", backend=entry.backend.identity.name, state="OPEN", why=failure.detail)
            entry.guard.reach.open(now, failure.detail)
            self.shut.set()

    def _host(self, candidate: Candidate, entry: Entry) -> Host:
        group = _group(entry, candidate.model.id)
        return Host(
            candidate.backend,
            group,
            weight=entry.backend.identity.weight,
            in_flight=entry.guard.in_flight,
            turn=self._turns.of(candidate.backend, group),
        )


def _reason(error: BaseException | None) -> str:
    if error is None:
        return OK
    return error.reason if isinstance(error, BackendFailure) else UNDECIDED


def _group(entry: Entry, model: str) -> tuple[str, ...]:
    identity = entry.backend.identity
    # A configured host goes before one that was found, and another model is another answer.
    return (identity.kind.value, "found" if identity.is_discovered else "configured", model)


def _refused(breaker: Breaker, served: Served, now: float) -> BackendFailure:
    return BackendFailure(
        BREAKER_OPEN,
        left_alone(*served, breaker),
        retry_after_seconds=max(0.0, breaker.due_at - now),
    )
