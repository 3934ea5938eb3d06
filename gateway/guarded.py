"""Carries out a guarded RPC for the REST bridge: judge → intent → act → check of the whole output → outcome.

The answer is held until all of it is checked; who wants words as they come uses `/v1/chat/completions`.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import sys
import time
from array import array
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Literal

import grpc
import orjson

from gateway.acts import Act, Ending, Logged, Served, refusal_text
from gateway.answer import Answer
from gateway.bridge_routes import Binding
from gateway.call_facts import response_chars
from gateway.generation import attempts_of, served_by
from gateway.judge import EthicsClient
from gateway.output_check import check_texts, in_checked_words
from gateway.output_texts import output_texts
from gateway.pipeline import CLIENT_CLOSED, REJUDGED, Allowed, NotAllowed, Pipeline, Recorded
from gateway.run_record import RUN_FORM, exit_of, require_exit, run_ending
from gateway.transcoding import write_message
from kala.common.v1 import clearance_pb2, decision_pb2, usage_pb2
from kala.errors import ClearanceError, KalaError, PermissionDeniedError, ResourceExhaustedError
from kala.inference.v1 import inference_pb2
from services.common.audit_client import new_key, receipt_id
from services.common.status import from_error

if TYPE_CHECKING:
    from google.protobuf.message import Message

MAX_HELD_BYTES: Final = 36 * 1024 * 1024
"""As much as one message of the suite may hold; more cannot be held back whole."""

Call = Callable[["Message"], AsyncIterator["Message"]]
"""Makes the call and gives its one or many responses; raises grpc.RpcError."""


EMBEDDINGS_FORM: Final = "embeddings"
"""How the log names an answer of vectors, which is committed to by its digest and not kept."""


@dataclass(frozen=True, slots=True)
class Acted:
    """What a guarded RPC answered, checked and logged."""

    responses: list[Message]
    receipt: Logged
    served: Served
    decision: decision_pb2.Decision
    intent_id: str
    elsewhere_seconds: float
    """Between the call of the actor and its last word."""

    @property
    def usage(self) -> usage_pb2.Usage | None:
        """Give what the backend counted, or None where it counted nothing."""
        return _usage(self.responses)


class RefusedError(PermissionDeniedError):
    """Ethics did not allow an act or its output; carries the decision and the receipt."""

    default_reason = "REFUSED"

    def __init__(
        self,
        decision: decision_pb2.Decision,
        receipt: Logged,
        *,
        stage: Literal["request", "output"] = "output",
    ) -> None:
        outcome = decision_pb2.Outcome.Name(decision.outcome).removeprefix("OUTCOME_")
        super().__init__(refusal_text(decision), reason=outcome)
        self.decision = decision
        self.receipt = receipt
        self.stage = stage


class ActFailedError(Recorded):
    """An act that began and failed; carries its receipt and who was tried."""

    def __init__(self, error: KalaError, receipt: Logged, served: Served) -> None:
        super().__init__(error, receipt)
        self.served = served


class GuardedCalls:
    """Carries out guarded RPCs; one per process."""

    def __init__(
        self, *, pipeline: Pipeline, ethics: EthicsClient, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._pipeline = pipeline
        self._ethics = ethics
        self._clock = clock

    async def carry_out(self, act: Act, binding: Binding, call: Call) -> Acted:
        """Carry out one act; raises RefusedError, or the KalaError of whatever failed, always with a record.

        What failed after its intent was logged is an ActFailedError.
        """
        allowed = await self.admit(act)
        key = new_key()
        intent = self._pipeline.log_intent(act, allowed.decision, key=key)
        responses: list[Message] = []
        began = ended = self._clock()
        try:
            await asyncio.shield(intent)
            began = self._clock()
            try:
                allowed = await self._act(act, allowed, binding, call, responses)
            finally:
                ended = self._clock()
            said = output_texts(responses)
            decision = await check_texts(
                self._ethics,
                act,
                allowed.decision.id,
                said.texts,
                channel=said.channel,
                tracks=said.tracks,
            )
        except KalaError as error:
            if not intent.done() or intent.exception() is not None:
                raise await self._as_may_leave(act, allowed, error) from error
            tried = Served(attempts=_attempts_of(error))
            failure = Ending("error", error.reason, served=tried, elsewhere_seconds=ended - began)
            receipt = await self._log(act, failure, responses, None, intent=key)
            try:
                told = await self._as_may_leave(act, allowed, error)
            except KalaError as unjudged:
                told = unjudged
            if isinstance(told, RefusedError):
                raise told from error
            raise ActFailedError(told, receipt, failure.served) from error
        except asyncio.CancelledError:
            broken_off = Ending("cancelled", CLIENT_CLOSED, elsewhere_seconds=ended - began)
            ending = _ending(broken_off, responses, Answer())
            self._pipeline.log_cancelled(act, ending, intent=intent, key=key)
            raise
        if decision.outcome != decision_pb2.OUTCOME_ALLOW:
            words = Answer(text=refusal_text(decision))
            refusal = Ending("refused", decision=decision, elsewhere_seconds=ended - began)
            raise RefusedError(decision, await self._log(act, refusal, responses, words, intent=key))
        done = replace(_done(decision, responses), elsewhere_seconds=ended - began)
        receipt = await self._log(act, done, responses, _written(responses), intent=key)
        return Acted(
            responses,
            receipt,
            _served(responses),
            decision,
            receipt_id(key),
            elsewhere_seconds=ended - began,
        )

    async def _as_may_leave(self, act: Act, allowed: Allowed, error: KalaError) -> KalaError:
        if isinstance(error, RefusedError):
            return error  # in the constitution's own words
        return await in_checked_words(self._ethics, act, allowed.decision.id, error)

    async def admit(self, act: Act) -> Allowed:
        """Have an act judged; raises RefusedError, recorded, for one that is not allowed."""
        admitted = await self._pipeline.admit(act)
        if isinstance(admitted, NotAllowed):
            raise RefusedError(admitted.decision, admitted.receipt, stage="request")
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
            allowed = await self.admit(act)
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
    require_exit(responses)


def _done(decision: decision_pb2.Decision, responses: list[Message]) -> Ending:
    exit_event = exit_of(responses)
    return Ending("ok", decision=decision) if exit_event is None else run_ending(exit_event, decision)


def _sealed(binding: Binding, sealed: clearance_pb2.SealedAction) -> Message:
    request = binding.request_class()
    getattr(request, binding.sealed_field).CopyFrom(sealed)
    return request


def _written(responses: list[Message]) -> Answer:
    """Give the answer's bytes as the client gets them, one JSON object per line; of vectors what commits to them."""
    if len(responses) == 1 and isinstance(responses[0], inference_pb2.EmbedResponse):
        return Answer(text=vectors_commitment(responses[0]), text_form=EMBEDDINGS_FORM)
    if (exit_event := exit_of(responses)) is not None:
        # Its output stands there by its digests, and in the tool's result.
        return Answer(text=orjson.dumps(write_message(exit_event)).decode(), text_form=RUN_FORM)
    lines = [orjson.dumps(write_message(response)) for response in responses]
    return Answer(text=b"\n".join(lines).decode())


def vectors_commitment(response: inference_pb2.EmbedResponse) -> str:
    """Spell what the log commits to: how many vectors of which length, and SHA-256 over all their numbers.

    The numbers are little-endian IEEE 754 singles, one vector after the other; the JSON has sorted keys and no spaces.
    """
    digest = hashlib.sha256()
    for embedding in response.embeddings:
        digest.update(singles(embedding.values))
    said = {
        "count": len(response.embeddings),
        "dimensions": len(response.embeddings[0].values) if response.embeddings else 0,
        "sha256": digest.hexdigest(),
    }
    return json.dumps(said, sort_keys=True, separators=(",", ":"))


def singles(values: Iterable[float]) -> bytes:
    """Give a vector's numbers as little-endian IEEE 754 singles."""
    packed = array("f", values)
    if sys.byteorder == "big":
        packed.byteswap()
    return packed.tobytes()


def _attempts_of(error: KalaError) -> tuple[inference_pb2.Attempt, ...]:
    return attempts_of(error.__cause__) if isinstance(error.__cause__, grpc.RpcError) else ()


def _ending(ending: Ending, responses: list[Message], released: Answer) -> Ending:
    return replace(
        ending,
        served=_served(responses) if responses else ending.served,
        usage=_usage(responses),
        generated=_written(responses),
        released=released,
        response_chars=response_chars(responses),
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
