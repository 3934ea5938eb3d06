"""Carries out a guarded RPC for the REST bridge: judge → intent → act → check of the whole output → outcome.

The answer is held until all of it is checked; who wants words as they come uses `/v1/chat/completions`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import grpc
import orjson

from gateway.acts import Act, Ending, Logged, Served, refusal_text
from gateway.answer import Answer
from gateway.bridge_routes import Binding
from gateway.generation import served_by
from gateway.judge import EthicsClient
from gateway.output_check import check_texts, in_checked_words
from gateway.pipeline import CLIENT_CLOSED, REJUDGED, Allowed, NotAllowed, Pipeline
from gateway.transcoding import texts_of, write_message
from kala.common.v1 import clearance_pb2, decision_pb2, usage_pb2
from kala.errors import ClearanceError, KalaError, PermissionDeniedError, ResourceExhaustedError
from kala.inference.v1 import inference_pb2
from services.common.audit_client import new_key
from services.common.status import from_error

if TYPE_CHECKING:
    from google.protobuf.message import Message

MAX_HELD_BYTES: Final = 36 * 1024 * 1024
"""As much as one message of the suite may hold; more cannot be held back whole."""

Call = Callable[["Message"], AsyncIterator["Message"]]
"""Makes the call and gives its one or many responses; raises grpc.RpcError."""


@dataclass(frozen=True, slots=True)
class Acted:
    """What a guarded RPC answered, checked and logged."""

    responses: list[Message]
    receipt: Logged
    served: Served


class RefusedError(PermissionDeniedError):
    """Ethics did not allow an act or its output; carries the decision and the receipt."""

    default_reason = "REFUSED"

    def __init__(self, decision: decision_pb2.Decision, receipt: Logged) -> None:
        outcome = decision_pb2.Outcome.Name(decision.outcome).removeprefix("OUTCOME_")
        super().__init__(refusal_text(decision), reason=outcome)
        self.decision = decision
        self.receipt = receipt


class GuardedCalls:
    """Carries out guarded RPCs; one per process."""

    def __init__(self, *, pipeline: Pipeline, ethics: EthicsClient) -> None:
        self._pipeline = pipeline
        self._ethics = ethics

    async def carry_out(self, act: Act, binding: Binding, call: Call) -> Acted:
        """Carry out one act; raises RefusedError, or the KalaError of whatever failed, always with a record."""
        allowed = await self._admit(act)
        key = new_key()
        intent = self._pipeline.log_intent(act, allowed.decision, key=key)
        responses: list[Message] = []
        try:
            await asyncio.shield(intent)
            allowed = await self._act(act, allowed, binding, call, responses)
            decision = await check_texts(self._ethics, act, allowed.decision.id, texts_of(responses))
        except KalaError as error:
            if intent.done() and intent.exception() is None:
                await self._log(act, Ending("error", error.reason), responses, None, intent=key)
            raise await self._as_may_leave(act, allowed, error) from error
        except asyncio.CancelledError:
            ending = _ending(Ending("cancelled", CLIENT_CLOSED), responses, Answer())
            self._pipeline.log_cancelled(act, ending, intent=intent, key=key)
            raise
        if decision.outcome != decision_pb2.OUTCOME_ALLOW:
            words = Answer(text=refusal_text(decision))
            refusal = Ending("refused", decision=decision)
            raise RefusedError(decision, await self._log(act, refusal, responses, words, intent=key))
        receipt = await self._log(
            act, Ending("ok", decision=decision), responses, _written(responses), intent=key
        )
        return Acted(responses, receipt, _served(responses))

    async def _as_may_leave(self, act: Act, allowed: Allowed, error: KalaError) -> KalaError:
        if isinstance(error, RefusedError):
            return error  # in the constitution's own words
        return await in_checked_words(self._ethics, act, allowed.decision.id, error)

    async def _admit(self, act: Act) -> Allowed:
        admitted = await self._pipeline.admit(act)
        if isinstance(admitted, NotAllowed):
            raise RefusedError(admitted.decision, admitted.receipt)
        return admitted

    async def _act(
        self, act: Act, allowed: Allowed, binding: Binding, call: Call, responses: list[Message]
    ) -> Allowed:
        try:
            await _collect(call(_sealed(binding, allowed.sealed)), responses)
        except ClearanceError as error:
            # Refused before anything happened, so it may be asked once more.
            if error.reason not in REJUDGED or responses:
                raise
            allowed = await self._admit(act)
            await _collect(call(_sealed(binding, allowed.sealed)), responses)
        return allowed

    async def _log(
        self, act: Act, ending: Ending, responses: list[Message], released: Answer | None, *, intent: bytes
    ) -> Logged:
        return await self._pipeline.log_outcome(
            act, _ending(ending, responses, released or Answer()), intent=intent
        )


async def _collect(stream: AsyncIterator[Message], responses: list[Message]) -> None:
    size = 0
    try:
        async for response in stream:
            size += response.ByteSize()
            if size > MAX_HELD_BYTES:
                raise ResourceExhaustedError(f"the answer is larger than {MAX_HELD_BYTES} bytes")
            responses.append(response)
    except grpc.RpcError as error:
        raise from_error(error) from error


def _sealed(binding: Binding, sealed: clearance_pb2.SealedAction) -> Message:
    request = binding.request_class()
    getattr(request, binding.sealed_field).CopyFrom(sealed)
    return request


def _written(responses: list[Message]) -> Answer:
    """Give the answer's bytes as the client gets them: one JSON object per line."""
    lines = [orjson.dumps(write_message(response)) for response in responses]
    return Answer(text=b"\n".join(lines).decode())


def _ending(ending: Ending, responses: list[Message], released: Answer) -> Ending:
    return Ending(
        status=ending.status,
        code=ending.code,
        decision=ending.decision,
        served=_served(responses),
        usage=_usage(responses),
        generated=_written(responses),
        released=released,
    )


def _served(responses: list[Message]) -> Served:
    for response in responses:
        route = getattr(response, "route", None)
        if isinstance(route, inference_pb2.RouteInfo) and route.backend:
            return served_by(route)
    return Served()


def _usage(responses: list[Message]) -> usage_pb2.Usage | None:
    for response in reversed(responses):
        for holder in (response, getattr(response, "finish", None)):
            usage = getattr(holder, "usage", None)
            if isinstance(usage, usage_pb2.Usage) and usage.ListFields():
                return usage
    return None
