"""Carries a call that has one answer, and no stream, through its candidates: the next one until one has answered."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from services.inference.attempts import Attempt, all_failed, callers_error, over_budget
from services.inference.backend import Backend, BackendFailure, Blame, Capability, LoadState, ModelInfo
from services.inference.dispatch import Routed
from services.inference.protection.outcomes import REFUSED_HERE
from services.inference.protection.protection import Protection
from services.inference.registry.registry import Entry, Registry
from services.inference.router import Candidate, Route

T = TypeVar("T")

Ask = Callable[[Backend, ModelInfo], Awaitable[T]]
"""Puts the question to one backend; raises BackendFailure."""


@dataclass(frozen=True, slots=True)
class Answered(Generic[T]):
    """An answer and who gave it."""

    value: T
    routed: Routed


@dataclass(slots=True)
class OneAnswer:
    """One call on its way; `attempts` grows as backends fail."""

    registry: Registry
    route: Route
    subject: str
    """The field of the request that may be over a context, for the error's words."""
    task: Capability
    """What backends are asked for; one that cannot do it may still do other things."""
    protection: Protection = field(default_factory=Protection)
    clock: Callable[[], float] = time.monotonic
    attempts: list[Attempt] = field(default_factory=list)
    _waits: list[float] = field(default_factory=list)

    async def of(self, ask: Ask[T]) -> Answered[T]:
        """Give the first answer, or raise the KalaError that says why there is none."""
        self.protection.begin_request()
        has_reached_one = False
        for candidate in self.route.candidates:
            entry = self.registry.get(candidate.backend)
            if entry is None:
                continue
            if has_reached_one and not self.protection.may_retry():
                raise over_budget(self.attempts)
            started = self.clock()
            try:
                async with self.protection.attempt(entry, candidate.model, self.task):
                    value = await ask(entry.backend, candidate.model)
            except BackendFailure as failure:
                self._record(entry, candidate, started, failure)
                if failure.blame is Blame.CALLER:
                    raise callers_error(
                        entry.backend.identity, candidate.model, failure, field=self.subject
                    ) from failure
                has_reached_one = has_reached_one or failure.reason not in REFUSED_HERE
            else:
                return Answered(value, self._answered(entry, candidate, started))
        raise all_failed(self.route, self.attempts, retry_after_seconds=min(self._waits, default=None))

    def _answered(self, entry: Entry, candidate: Candidate, started: float) -> Routed:
        if candidate.model.state is LoadState.NOT_LOADED:
            self.registry.look_soon()
        identity, model = entry.backend.identity, candidate.model
        self.attempts.append(Attempt(identity.name, model.id, "", "", self.clock() - started))
        return Routed(identity, model.id, model.base_digest, tuple(self.attempts))

    def _record(self, entry: Entry, candidate: Candidate, started: float, failure: BackendFailure) -> None:
        name = entry.backend.identity.name
        elapsed = self.clock() - started
        self.attempts.append(Attempt(name, candidate.model.id, failure.reason, failure.detail, elapsed))
        if failure.retry_after_seconds is not None:
            self._waits.append(failure.retry_after_seconds)
        self.registry.report(entry, failure)
