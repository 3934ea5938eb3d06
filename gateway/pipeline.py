"""The life of one guarded act: judge → intent → act → check of the output → outcome (design section 2).

The invariants that are kept here: nothing acts that ethics did not allow; nothing leaves before its intent is durable
and its check has passed; every act that began ends with an outcome record, also when its client went away.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Final

from gateway.acts import (
    FINISH_REASONS,
    Act,
    Conclusion,
    Ending,
    Logged,
    Served,
    refusal_finish_reason,
    refusal_text,
)  # fmt: skip
from gateway.answer import Answer, AnswerBuffer, Release
from gateway.background import Background
from gateway.generation import WHOLE, Generation, GenerationState, HoldBounds
from gateway.judge import EthicsClient
from gateway.ledger import Ledger
from kala.common.v1 import clearance_pb2, decision_pb2
from kala.errors import ClearanceError, KalaError
from services.common.audit_client import new_key, receipt_id

if TYPE_CHECKING:
    from kala.inference.v1.inference_pb2_grpc import InferenceServiceAsyncStub

REJUDGED: Final = frozenset({"CLEARANCE_EXPIRED", "CLEARANCE_BEFORE_START"})
"""Refusals of a clearance that a new judgement mends: it grew old in a queue, or the actor restarted."""


CLIENT_CLOSED: Final = "CLIENT_CLOSED_REQUEST"


@dataclass(frozen=True, slots=True)
class Progress:
    """What a stream's headers can say before its end."""

    intent_id: str
    served: Served
    overhead_ms: float


OnChatRelease = Callable[[Release, Progress], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Allowed:
    """A judgement that lets an act happen."""

    decision: decision_pb2.Decision
    sealed: clearance_pb2.SealedAction


@dataclass(frozen=True, slots=True)
class NotAllowed:
    """A judgement that does not, and its durable record."""

    decision: decision_pb2.Decision
    receipt: Logged


class Pipeline:
    """Runs guarded acts; one per process."""

    def __init__(
        self,
        *,
        ethics: EthicsClient,
        inference: InferenceServiceAsyncStub,
        ledger: Ledger,
        background: Background,
        hold: HoldBounds,
        max_act_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ethics = ethics
        self._inference = inference
        self._ledger = ledger
        self._background = background
        self._hold = hold
        self._max_act_seconds = max_act_seconds
        self._clock = clock

    async def admit(self, act: Act) -> Allowed | NotAllowed:
        """Have an act judged; what is not allowed is logged before this returns.

        Raises UnavailableError when there is no judgement; that is logged too, and nothing was forwarded.
        """
        try:
            response = await self._ethics.check(act)
        except KalaError as error:
            receipt = await self._ledger.not_judged(act, "error", error.reason)
            raise Recorded(error, receipt) from error
        except asyncio.CancelledError:
            self._background.spawn(self._ledger.not_judged(act, "cancelled", CLIENT_CLOSED))
            raise
        decision = response.decision
        if decision.outcome == decision_pb2.OUTCOME_ALLOW:
            sealed = clearance_pb2.SealedAction(action=act.action, clearance=response.clearance)
            return Allowed(decision, sealed)
        return NotAllowed(decision, await self._ledger.refused(act, decision, refusal_text(decision)))

    async def chat(
        self,
        act: Act,
        *,
        declared_tools: frozenset[str],
        is_stream: bool,
        on_release: OnChatRelease,
        before: str = "",
    ) -> Conclusion:
        """Carry out one chat; `before` is what its reader got just before, from an earlier turn.

        Errors before anything was logged as an intent are raised (`Recorded` when they have a receipt); from then on
        they stand in the conclusion, because the reader may already hold a part of the answer.
        """
        admitted = await self.admit(act)
        if isinstance(admitted, NotAllowed):
            return self._not_allowed(act, admitted)
        turn = _Turn(
            self, act, admitted, AnswerBuffer(declared_tools, before=before), on_release, is_stream=is_stream
        )
        return await turn.run()

    def log_intent(self, act: Act, decision: decision_pb2.Decision, *, key: bytes) -> asyncio.Task[Logged]:
        """Start to log an intent, so that the act may run beside it; whoever releases anything waits for the task."""
        return self._background.keep(self._ledger.intent(act, decision, key=key))

    async def log_outcome(
        self, act: Act, ending: Ending, *, intent: bytes, after: asyncio.Task[Logged] | None = None
    ) -> Logged:
        """Log how an act ended, also when the client goes away meanwhile; `after` the intent where that is under way."""

        async def log() -> Logged:
            if after is not None:
                await asyncio.shield(after)
            return await self._ledger.outcome(act, ending, intent=intent)

        return await asyncio.shield(self._background.keep(log()))

    def log_cancelled(self, act: Act, ending: Ending, *, intent: asyncio.Task[Logged], key: bytes) -> None:
        """Log in the background that the client went away, after the intent is durable."""

        async def log() -> None:
            await intent
            await self._ledger.outcome(act, ending, intent=key)

        self._background.spawn(log())

    def generation(self, act: Act, allowed: Allowed, buffer: AnswerBuffer, *, is_stream: bool) -> Generation:
        """Prepare a generation under a judgement."""
        return Generation(
            act,
            allowed.sealed,
            allowed.decision.id,
            ethics=self._ethics,
            inference=self._inference,
            buffer=buffer,
            hold=self._hold if is_stream else WHOLE,
            max_act_seconds=self._max_act_seconds,
            clock=self._clock,
        )

    def overhead_ms(self, act: Act, state: GenerationState | None = None) -> float:
        """Give what this platform added so far: all time but that between the backend's call and its last word."""
        elsewhere = 0.0 if state is None else state.ended_at - state.began_at
        return round((self._clock() - act.started - elsewhere) * 1000, 3)

    def _not_allowed(self, act: Act, refused: NotAllowed) -> Conclusion:
        return Conclusion(
            stage="request",
            answer=Answer(text=refusal_text(refused.decision)),
            finish_reason=refusal_finish_reason(refused.decision),
            decision=refused.decision,
            receipt=refused.receipt,
            overhead_ms=self.overhead_ms(act),
        )


class Recorded(KalaError):  # noqa: N818 - an error with its receipt
    """An error that was logged; carries the receipt to the edge."""

    def __init__(self, error: KalaError, receipt: Logged) -> None:
        super().__init__(error.message, reason=error.reason, retry_after_seconds=error.retry_after_seconds)
        self.error = error
        self.receipt = receipt


class _Turn:
    """One allowed chat from its intent to its outcome."""

    def __init__(
        self,
        pipeline: Pipeline,
        act: Act,
        allowed: Allowed,
        buffer: AnswerBuffer,
        on_release: OnChatRelease,
        *,
        is_stream: bool,
    ) -> None:
        self._pipeline = pipeline
        self._act = act
        self._allowed = allowed
        self._buffer = buffer
        self._on_release = on_release
        self._is_stream = is_stream
        self._key = new_key()
        self._intent = pipeline.log_intent(act, allowed.decision, key=self._key)
        self._generation = self._prepare(allowed)
        self._rejudged_by = ""

    async def run(self) -> Conclusion:
        """Generate, and end with a durable outcome whatever happens."""
        error: KalaError | None = None
        try:
            if self._act.must_log_first:
                await self._logged_intent()
            await self._generate()
        except Recorded as recorded:
            error = recorded.error
        except KalaError as known:
            error = known
        except asyncio.CancelledError:
            ending = replace(self._ending(None), status="cancelled", code=CLIENT_CLOSED, finish_reason="")
            self._pipeline.log_cancelled(self._act, ending, intent=self._intent, key=self._key)
            raise
        return await self._conclude(error)

    def _prepare(self, allowed: Allowed) -> Generation:
        generation = self._pipeline.generation(self._act, allowed, self._buffer, is_stream=self._is_stream)
        self._intent.add_done_callback(partial(_fail_with, generation))
        return generation

    async def _generate(self) -> None:
        try:
            await self._generation.run(self._release)
        except ClearanceError as error:
            # Refused before it reached a backend, so nothing has happened yet: ask once more.
            if error.reason not in REJUDGED or self._generation.state.served.backend:
                raise
            admitted = await self._pipeline.admit(self._act)
            if isinstance(admitted, NotAllowed):
                raise
            self._rejudged_by = admitted.decision.id
            self._generation = self._prepare(admitted)
            await self._generation.run(self._release)

    async def _release(self, release: Release) -> None:
        # No durable intent, no byte.
        await self._logged_intent()
        state = self._generation.state
        progress = Progress(
            intent_id=receipt_id(self._key),
            served=state.served,
            overhead_ms=self._pipeline.overhead_ms(self._act, state),
        )
        await self._on_release(release, progress)

    @property
    def _is_intent_logged(self) -> bool:
        return self._intent.done() and not self._intent.cancelled() and self._intent.exception() is None

    async def _logged_intent(self) -> None:
        if not self._is_intent_logged:
            # Shielded: a client that goes away must not take the record with it.
            await asyncio.shield(self._intent)

    async def _conclude(self, error: KalaError | None) -> Conclusion:
        state = self._generation.state
        receipt: Logged | None = None
        ending = self._ending(error)
        try:
            receipt = await self._pipeline.log_outcome(
                self._act, ending, intent=self._key, after=self._intent
            )
        except KalaError as unlogged:
            # Without a durable record there is no answer.
            error = unlogged
        return Conclusion(
            stage="output",
            answer=ending.released or Answer(),
            closing_text=self._closing_text(),
            finish_reason=ending.finish_reason,
            decision=state.decision or self._allowed.decision,
            receipt=receipt,
            intent_id=receipt_id(self._key),
            served=state.served,
            usage=ending.usage,
            error=error,
            overhead_ms=self._pipeline.overhead_ms(self._act, state),
        )

    def _ending(self, error: KalaError | None) -> Ending:
        state, finish = self._generation.state, self._generation.state.finish
        generated = self._buffer.generated()
        return Ending(
            status="error" if error else "ok" if self._is_allowed() else "refused",
            code=error.reason if error else "",
            finish_reason="" if error else self._finish_reason(),
            decision=state.decision,
            served=state.served,
            usage=finish.usage if finish is not None and finish.HasField("usage") else None,
            generated=generated,
            released=self._left(error),
            derived_digest=state.derived_digest,
            rejudged_by=self._rejudged_by,
            response_chars=len(generated.text),
            elsewhere_seconds=state.ended_at - state.began_at,
        )

    def _left(self, error: KalaError | None) -> Answer:
        """Give what reaches the reader: a stream's reader has what was released; others get all, or only words why not."""
        closing = self._closing_text()
        if self._is_stream:
            # What waits for a durable intent has not left, although its check has passed.
            left = self._buffer.released() if self._is_intent_logged else Answer()
            return replace(left, text=left.text + closing) if closing else left
        if closing:
            return Answer(text=closing)
        return Answer() if error or not self._is_allowed() else self._buffer.released()

    def _closing_text(self) -> str:
        """Give the constitution's words for an output that was refused, unless a part of its text has left already."""
        decision = self._generation.state.decision
        if decision is None or self._is_allowed() or (self._is_stream and self._buffer.has_released_text):
            return ""
        return refusal_text(decision)

    def _is_allowed(self) -> bool:
        decision = self._generation.state.decision
        return decision is not None and decision.outcome == decision_pb2.OUTCOME_ALLOW

    def _finish_reason(self) -> str:
        state = self._generation.state
        if state.decision is not None and not self._is_allowed():
            return refusal_finish_reason(state.decision)
        default = "tool_calls" if self._buffer.has_tool_calls else "stop"
        return default if state.finish is None else FINISH_REASONS.get(state.finish.reason, default)


def _fail_with(generation: Generation, intent: asyncio.Task[Logged]) -> None:
    """Stop a generation whose intent did not become durable."""
    if not intent.cancelled() and isinstance(error := intent.exception(), KalaError):
        generation.fail(error)
