"""Carries one routed request through its candidates: the next one before the first released token, never after it."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Final

from kala.errors import (
    FailedPreconditionError,
    InvalidArgumentError,
    KalaError,
    NotFoundError,
    UnavailableError,
)
from services.inference.backend import (
    BackendFailure,
    Blame,
    Completer,
    ContextOverflow,
    Identity,
    LoadState,
    ModelInfo,
)
from services.inference.chat import ChatCall, Delta, Event, Finish, FinishReason, Opened, Usage, join_deltas
from services.inference.protection.outcomes import REFUSED_HERE, TASK_NOT_SERVED
from services.inference.protection.protection import Protection
from services.inference.registry.registry import Entry, Registry
from services.inference.router import Candidate, PassedOver, Route
from services.inference.tasks import CompleteCall

_TOO_LONG: Final = {
    "messages": ("the prompt", "shorten the conversation"),
    "prompt": ("the prompt", "shorten it"),
    "inputs": ("a text", "shorten or split it"),
    "documents": ("a document with the query", "shorten or split it"),
}
"""What is over the context, and what to do about it, by field."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """One try at one backend; `reason` is empty on success."""

    backend: str
    model: str
    reason: str
    detail: str
    elapsed_seconds: float


@dataclass(frozen=True, slots=True)
class Routed:
    """Who answers; comes before the first text."""

    identity: Identity
    model: str
    base_digest: bytes
    attempts: tuple[Attempt, ...]


@dataclass(frozen=True, slots=True)
class Ended:
    """The answer ended in order."""

    reason: FinishReason
    usage: Usage
    attempts: tuple[Attempt, ...]


Step = Routed | Delta | Ended


@dataclass(slots=True)
class _Try:
    """The state of the present attempt."""

    entry: Entry
    model: ModelInfo
    started: float
    is_released: bool = False
    held: list[Delta] = field(default_factory=list)


@dataclass(slots=True)
class Dispatch:
    """One request on its way; `attempts` grows as backends fail and is what the outcome record shows."""

    registry: Registry
    call: ChatCall | CompleteCall
    route: Route
    recheck: Callable[[], None]
    """Raises when the clearance has ended; asked right before every first upstream byte."""
    protection: Protection = field(default_factory=Protection)
    clock: Callable[[], float] = time.monotonic
    attempts: list[Attempt] = field(default_factory=list)
    _waits: list[float] = field(default_factory=list)

    async def run(self) -> AsyncGenerator[Step]:
        """Give Routed, Deltas and Ended, or raise the KalaError that says why there is no answer.

        A call that does not stream gets one Delta with the whole answer.
        """
        self.protection.begin_request()
        has_reached_one = False
        for candidate in self.route.candidates:
            entry = self.registry.get(candidate.backend)
            if entry is None:
                continue
            if has_reached_one and not self.protection.may_retry():
                raise over_budget(self.attempts)
            attempt = _Try(entry, candidate.model, self.clock())
            try:
                async with (
                    self.protection.attempt(entry, candidate.model),
                    aclosing(self._try(attempt)) as steps,
                ):
                    async for step in steps:
                        yield step
            except BackendFailure as failure:
                self._record(attempt, failure)
                if attempt.is_released:
                    raise _failed_mid_stream(entry.backend.identity, failure) from failure
                if failure.blame is Blame.CALLER:
                    field = "messages" if isinstance(self.call, ChatCall) else "prompt"
                    raise callers_error(
                        entry.backend.identity, candidate.model, failure, field=field
                    ) from failure
                has_reached_one = has_reached_one or failure.reason not in REFUSED_HERE
            else:
                return
        raise all_failed(self.route, self.attempts, retry_after_seconds=min(self._waits, default=None))

    async def _try(self, attempt: _Try) -> AsyncGenerator[Step]:
        has_ended = False
        async with aclosing(self._events(attempt)) as events:
            # Goes on after the finish: the backend then puts its connection away for the next request.
            async for event in events:
                match event:
                    case Opened():
                        pass
                    case Delta() if not self.call.stream:
                        attempt.held.append(event)
                    case Delta():
                        if not attempt.is_released:
                            yield self._released(attempt)
                        yield event
                    case Finish():
                        has_ended = True
                        for step in self._end(attempt, event):
                            yield step
        if not has_ended:
            raise BackendFailure("STREAM_CUT", "ended its answer without a finish")

    def _events(self, attempt: _Try) -> AsyncGenerator[Event]:
        backend = attempt.entry.backend
        call = self.call.filled(backend.identity.preferences.sampling)
        if isinstance(call, ChatCall):
            return backend.chat(call, attempt.model, self.recheck)
        if isinstance(backend, Completer):
            return backend.complete(call, attempt.model, self.recheck)
        raise BackendFailure(TASK_NOT_SERVED, "continues no texts")

    def _released(self, attempt: _Try) -> Routed:
        attempt.is_released = True
        identity = attempt.entry.backend.identity
        present = Attempt(identity.name, attempt.model.id, "", "", self.clock() - attempt.started)
        # The model's id here, not a server's pet name for it: "default_model" would tell nobody anything.
        return Routed(identity, attempt.model.id, attempt.model.base_digest, (*self.attempts, present))

    def _end(self, attempt: _Try, finish: Finish) -> list[Step]:
        if attempt.model.state is LoadState.NOT_LOADED:
            self.registry.look_soon()
        steps: list[Step] = []
        if not attempt.is_released:
            steps.append(self._released(attempt))
        if attempt.held:
            steps.append(join_deltas(attempt.held))
        self.attempts.append(
            Attempt(
                attempt.entry.backend.identity.name, attempt.model.id, "", "", self.clock() - attempt.started
            )
        )
        steps.append(Ended(finish.reason, finish.usage, tuple(self.attempts)))
        return steps

    def _record(self, attempt: _Try, failure: BackendFailure) -> None:
        elapsed = self.clock() - attempt.started
        name = attempt.entry.backend.identity.name
        self.attempts.append(Attempt(name, attempt.model.id, failure.reason, failure.detail, elapsed))
        if failure.retry_after_seconds is not None:
            self._waits.append(failure.retry_after_seconds)
        self.registry.report(attempt.entry, failure)


def callers_error(
    identity: Identity, model: ModelInfo, failure: BackendFailure, *, field: str = "messages"
) -> InvalidArgumentError:
    """Tell the caller what is wrong with the request and what to do; `field` is the one that may be too long."""
    if isinstance(failure, ContextOverflow):
        return _overflow_error(identity, model, failure, field)
    told = f": {failure.told}" if failure.told else ""
    return InvalidArgumentError("", f"{identity.name} {failure.detail}{told}", reason=failure.reason)


def _overflow_error(
    identity: Identity, model: ModelInfo, overflow: ContextOverflow, field: str
) -> InvalidArgumentError:
    subject, cure = _TOO_LONG[field]
    prompt = "is longer" if overflow.prompt_tokens is None else f"has {overflow.prompt_tokens} tokens, more"
    context = overflow.context_tokens or model.context_tokens
    limit = "its context" if context is None else f"its context of {context} tokens"
    return InvalidArgumentError(
        field,
        f"{subject} {prompt} than {model.id!r} on {identity.name} takes, {limit}; "
        f"{cure} or load the model with a longer context",
        reason=overflow.reason,
    )


def _failed_mid_stream(identity: Identity, failure: BackendFailure) -> UnavailableError:
    return UnavailableError(
        f"{identity.name} {failure.detail}; the text so far is incomplete", reason="BACKEND_FAILED_MID_STREAM"
    )


def over_budget(attempts: list[Attempt]) -> UnavailableError:
    """Say that no further backend was tried, to spare those that still work."""
    reasons = "; ".join(f"{attempt.backend} {attempt.detail}" for attempt in attempts)
    return UnavailableError(
        f"no backend answered: {reasons}; no other was tried, because too many requests have failed lately",
        reason="RETRY_BUDGET_SPENT",
    )


def all_failed(route: Route, attempts: list[Attempt], *, retry_after_seconds: float | None) -> KalaError:
    """Say why no backend answered, with one reason each."""
    if len(route.candidates) == 1 and len(attempts) == 1 and not _others(route.passed_over):
        return _only_one_failed(route.candidates[0], attempts[0], retry_after_seconds)
    reasons = [f"{attempt.backend} {attempt.detail}" for attempt in attempts]
    reasons += [f"{passed.backend}: {passed.detail}" for passed in _others(route.passed_over)]
    return UnavailableError(
        f"no backend answered: {'; '.join(reasons)}",
        reason="ALL_BACKENDS_FAILED",
        retry_after_seconds=retry_after_seconds,
    )


def _others(passed_over: tuple[PassedOver, ...]) -> list[PassedOver]:
    silent = {"NOT_ASKED", "DEMO_ONLY_BY_NAME", "MODEL_NOT_FOUND"}
    return [passed for passed in passed_over if passed.reason not in silent]


def _only_one_failed(candidate: Candidate, attempt: Attempt, retry_after_seconds: float | None) -> KalaError:
    text = f"{attempt.backend} {attempt.detail}"
    if attempt.reason == "NO_MODEL_LOADED" or (
        attempt.reason == "MODEL_NOT_FOUND" and candidate.model.state is LoadState.NOT_LOADED
    ):
        return FailedPreconditionError(
            f"{attempt.backend} has {candidate.model.id!r} not loaded; load it there first",
            reason="NO_MODEL_LOADED",
        )
    if attempt.reason == "MODEL_NOT_FOUND":
        return NotFoundError(text, reason=attempt.reason)
    return UnavailableError(
        f"no backend answered: {text}",
        reason="ALL_BACKENDS_FAILED",
        retry_after_seconds=retry_after_seconds,
    )
