"""Carries one routed request through its candidates, and holds what they answer against what was asked.

Before the first released token the next backend takes over; after it only where the request says that the answer may
be carried on.  An answer that is not what was asked for is told to its model once.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from kala.errors import KalaError
from services.inference.attempts import (
    Attempt,
    all_failed,
    callers_error,
    failed_mid_stream,
    over_budget,
    untrue_error,
)
from services.inference.backend import (
    AppliedAdapter,
    BackendFailure,
    Blame,
    Capability,
    Completer,
    Identity,
    LoadState,
    ModelInfo,
)
from services.inference.chat import ChatCall, Delta, Event, Finish, FinishReason, Opened, Usage, join_deltas
from services.inference.context.estimate import estimate_call
from services.inference.continuation import Seam, SoFar, carried_on, digest
from services.inference.protection.outcomes import REFUSED_HERE, TASK_NOT_SERVED
from services.inference.protection.protection import Protection
from services.inference.registry.registry import Entry, Registry
from services.inference.router import Candidate, Route
from services.inference.tasks import CompleteCall
from services.inference.truth import Demands, Untrue, demands, has_schema, told_so

_COMPLETE: Final = frozenset({"STREAM_UNTERMINATED", "FINISH_UNTRUE"})
"""Failures after the last word: there is nothing left to go on with."""


@dataclass(frozen=True, slots=True)
class Routed:
    """Who answers; comes before the first text."""

    identity: Identity
    model: str
    base_digest: bytes
    attempts: tuple[Attempt, ...]
    adapters: tuple[AppliedAdapter, ...] = ()
    """Those that the request named, in its order."""


@dataclass(frozen=True, slots=True)
class Ended:
    """The answer ended in order."""

    reason: FinishReason
    usage: Usage
    attempts: tuple[Attempt, ...]
    derived_digest: bytes = b""
    """Of the texts that were added to the judged request; see continuation.digest."""


Step = Routed | Delta | Ended


@dataclass(frozen=True, slots=True)
class _Turn:
    """A candidate whose turn it is, and how it is asked."""

    candidate: Candidate
    hint: str = ""
    """What it is told of the answer that it gave before."""
    in_words: bool = False
    """Whether it is asked in words to go on, because it would not take an unfinished answer."""


@dataclass(slots=True)
class _Try:
    """The state of the present attempt."""

    turn: _Turn
    entry: Entry
    started: float
    is_continuation: bool
    seam: Seam
    has_released: bool = False
    held: list[Delta] = field(default_factory=list)

    @property
    def model(self) -> ModelInfo:
        return self.turn.candidate.model

    @property
    def identity(self) -> Identity:
        return self.entry.backend.identity


@dataclass(slots=True)
class Dispatch:
    """One request on its way; `attempts` grows as backends fail and is what the outcome record shows."""

    registry: Registry
    call: ChatCall | CompleteCall
    route: Route
    recheck: Callable[[], None]
    """Raises when the clearance has ended; asked right before every first upstream byte until text is released."""
    protection: Protection = field(default_factory=Protection)
    clock: Callable[[], float] = time.monotonic
    attempts: list[Attempt] = field(default_factory=list)
    _waits: list[float] = field(default_factory=list)
    _waiting: deque[_Turn] = field(default_factory=deque)
    _so_far: SoFar = field(default_factory=SoFar)
    _is_released: bool = False
    _began_away: bool = False
    _break: KalaError | None = None
    _was_told: bool = False
    _added: list[str] = field(default_factory=list)

    @property
    def derived_digest(self) -> bytes:
        """Commit to the texts that were added to the judged request; empty when none were."""
        return digest(self._added)

    async def run(self) -> AsyncGenerator[Step]:
        """Give Routed, Deltas and Ended, or raise the KalaError that says why there is no answer.

        A call that does not stream gets one Delta with the whole answer.
        """
        wanted = await _demands_of(self.call)
        self.protection.begin_request()
        task = Capability.CHAT if isinstance(self.call, ChatCall) else Capability.COMPLETE
        self._waiting.extend(_Turn(candidate) for candidate in self.route.candidates)
        has_reached_one, ending = False, None
        while self._waiting:
            turn = self._waiting.popleft()
            entry = self.registry.get(turn.candidate.backend)
            if entry is None or self._would_leave(entry):
                continue
            if has_reached_one and not self.protection.may_retry():
                raise ending or over_budget(self.attempts)
            seam = Seam(self._so_far.whole().text)
            attempt = _Try(turn, entry, self.clock(), self._is_released, seam)
            try:
                async with (
                    self.protection.attempt(entry, attempt.model, task),
                    aclosing(self._try(attempt, wanted)) as steps,
                ):
                    async for step in steps:
                        yield step
            except BackendFailure as failure:
                self._record(attempt, failure)
                ending = self._ending(attempt, failure)
                if not self._ask_again(attempt, failure) and ending and not self._may_go_on(failure):
                    raise ending from failure
                has_reached_one = has_reached_one or failure.reason not in REFUSED_HERE
            else:
                return
        raise ending or all_failed(
            self.route, self.attempts, retry_after_seconds=min(self._waits, default=None)
        )

    async def _try(self, attempt: _Try, wanted: Demands | None) -> AsyncGenerator[Step]:
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
                        if not self._is_released:
                            yield self._released(attempt)
                        attempt.has_released = True
                        delta = attempt.seam.join(event)
                        self._so_far.add(delta)
                        if not delta.is_empty:
                            yield delta
                    case Finish():
                        has_ended = True
                        for step in await self._end(attempt, event, wanted):
                            yield step
        if not has_ended:
            raise BackendFailure("STREAM_CUT", "ended its answer without a finish")

    def _events(self, attempt: _Try) -> AsyncGenerator[Event]:
        backend, sampling = attempt.entry.backend, attempt.identity.preferences.sampling
        if isinstance(self.call, ChatCall):
            call, added = self._derived(self.call.filled(sampling), attempt)
            return backend.chat(call, attempt.model, partial(self._begin, added))
        if isinstance(backend, Completer):
            return backend.complete(self.call.filled(sampling), attempt.model, self.recheck)
        raise BackendFailure(TASK_NOT_SERVED, "continues no texts")

    def _derived(self, call: ChatCall, attempt: _Try) -> tuple[ChatCall, tuple[str, ...]]:
        """Give the call to send, and the texts in it that are not in the judged one."""
        hint = attempt.turn.hint
        if hint:
            return told_so(call, hint), (hint,)
        if not attempt.is_continuation:
            return call, ()
        in_words = attempt.turn.in_words or not attempt.entry.backend.carries_on
        return carried_on(call, self._so_far.whole().text, in_words=in_words)

    def _begin(self, added: tuple[str, ...]) -> None:
        # What was released began under a valid clearance; from then on max_act_seconds ends the act (design section 4).
        if not self._is_released:
            self.recheck()
        self._added += added

    def _would_leave(self, entry: Entry) -> bool:
        """Keep text that was made here at home: ethics may not have passed its end yet when its backend breaks off."""
        return self._is_released and not self._began_away and entry.backend.identity.is_remote

    def _released(self, attempt: _Try) -> Routed:
        self._is_released = True
        self._began_away = attempt.identity.is_remote
        present = self._attempt(attempt)
        # The model's id here, not a server's pet name for it: "default_model" would tell nobody anything.
        return Routed(
            attempt.identity,
            attempt.model.id,
            attempt.model.base_digest,
            (*self.attempts, present),
            self._adapters_of(attempt.model),
        )

    def _adapters_of(self, model: ModelInfo) -> tuple[AppliedAdapter, ...]:
        names = self.call.adapters if isinstance(self.call, ChatCall) else ()
        return tuple(adapter for name in names for adapter in model.adapters if adapter.name == name)

    async def _end(self, attempt: _Try, finish: Finish, wanted: Demands | None) -> list[Step]:
        whole = self._so_far.whole() if self.call.stream else _joined(attempt.held)
        reason = await _verified(wanted, whole, finish.reason)
        if attempt.model.state is LoadState.NOT_LOADED:
            self.registry.look_soon()
        steps: list[Step] = []
        if not self._is_released:
            steps.append(self._released(attempt))
        if attempt.held:
            steps.append(whole)
        attempt.has_released = True
        self.attempts.append(self._attempt(attempt))
        steps.append(Ended(reason, finish.usage, tuple(self.attempts), self.derived_digest))
        return steps

    def _record(self, attempt: _Try, failure: BackendFailure) -> None:
        self.attempts.append(self._attempt(attempt, failure))
        if failure.retry_after_seconds is not None:
            self._waits.append(failure.retry_after_seconds)
        self.registry.report(attempt.entry, failure)

    def _attempt(self, attempt: _Try, failure: BackendFailure | None = None) -> Attempt:
        return Attempt(
            attempt.identity.name,
            attempt.model.id,
            failure.reason if failure else "",
            failure.detail if failure else "",
            self.clock() - attempt.started,
            is_spliced=attempt.is_continuation and attempt.has_released,
        )

    def _ending(self, attempt: _Try, failure: BackendFailure) -> KalaError | None:
        """Say what ends the request if nobody goes on; None where the next backend may begin anew."""
        if failure.blame is Blame.MODEL:
            return untrue_error(attempt.identity, failure, is_released=self._is_released)
        if self._is_released:
            # The first break is the news; that others could not go on either, the attempts say.
            self._break = self._break or failed_mid_stream(attempt.identity, failure)
            return self._break
        if failure.blame is Blame.CALLER:
            field = "messages" if isinstance(self.call, ChatCall) else "prompt"
            estimate = partial(estimate_call, self.call)
            return callers_error(attempt.identity, attempt.model, failure, field=field, estimate=estimate)
        return None

    def _ask_again(self, attempt: _Try, failure: BackendFailure) -> bool:
        """Give the same backend another turn where the way of asking may help."""
        turn = attempt.turn
        if isinstance(failure, Untrue) and failure.hint and not self._is_released and not self._was_told:
            self._was_told = True
            self._waiting.appendleft(_Turn(turn.candidate, hint=failure.hint))
            return True
        takes_no_prefix = failure.blame is Blame.CALLER and attempt.is_continuation
        if takes_no_prefix and attempt.entry.backend.carries_on and not turn.in_words:
            self._waiting.appendleft(_Turn(turn.candidate, in_words=True))
            return True
        return False

    def _may_go_on(self, failure: BackendFailure) -> bool:
        """Tell whether the next backend may carry on what was released."""
        is_broken_off = failure.blame is not Blame.MODEL and failure.reason not in _COMPLETE
        goes_on = isinstance(self.call, ChatCall) and self.call.goes_on
        return self._is_released and goes_on and is_broken_off and self._so_far.is_only_text


async def _demands_of(call: ChatCall | CompleteCall) -> Demands | None:
    if not isinstance(call, ChatCall):
        return None
    return await asyncio.to_thread(demands, call) if has_schema(call) else demands(call)


async def _verified(wanted: Demands | None, answer: Delta, reason: FinishReason) -> FinishReason:
    if wanted is None:
        return reason
    if has_schema(wanted.call):
        return await asyncio.to_thread(wanted.verified, answer, reason)
    return wanted.verified(answer, reason)


def _joined(held: list[Delta]) -> Delta:
    return join_deltas(held) if held else Delta()
