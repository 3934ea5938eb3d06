"""Values of this service as messages of the contract."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from kala.common.v1.reference_pb2 import ContentReference
from kala.common.v1.usage_pb2 import Usage as UsageMessage
from kala.inference.v1 import inference_pb2 as pb
from services.inference.attempts import Attempt
from services.inference.backend import Capability, Check, LoadState, ModelInfo, State
from services.inference.chat import Delta, FinishReason, TokenLogprob, Usage
from services.inference.dispatch import Ended, Routed, Step
from services.inference.protection.breaker import BreakerState

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, AsyncIterator, Iterable

    from services.inference.registry.registry import Entry
    from services.inference.router import Route

NAME_PREFIX: Final = "backends/"

_FINISH_REASONS: Final = {
    FinishReason.STOP: pb.FINISH_REASON_STOP,
    FinishReason.LENGTH: pb.FINISH_REASON_LENGTH,
    FinishReason.TOOL_CALLS: pb.FINISH_REASON_TOOL_CALLS,
    FinishReason.CONTENT_FILTER: pb.FINISH_REASON_CONTENT_FILTER,
}
_STATES: Final = {
    State.READY: pb.BACKEND_STATE_READY,
    State.NO_MODEL: pb.BACKEND_STATE_NO_MODEL,
    State.OFF: pb.BACKEND_STATE_OFF,
    State.ERROR: pb.BACKEND_STATE_ERROR,
    State.LOADING: pb.BACKEND_STATE_LOADING,
}
_LOAD_STATES: Final = {
    LoadState.LOADED: pb.LOAD_STATE_LOADED,
    LoadState.NOT_LOADED: pb.LOAD_STATE_NOT_LOADED,
    LoadState.LOADING: pb.LOAD_STATE_LOADING,
    LoadState.UNKNOWN: pb.LOAD_STATE_UNKNOWN,
}
_BREAKERS: Final = {
    BreakerState.CLOSED: pb.BREAKER_STATE_CLOSED,
    BreakerState.OPEN: pb.BREAKER_STATE_OPEN,
    BreakerState.HALF_OPEN: pb.BREAKER_STATE_HALF_OPEN,
}
CAPABILITIES: Final = {
    Capability.CHAT: pb.CAPABILITY_CHAT,
    Capability.COMPLETE: pb.CAPABILITY_COMPLETE,
    Capability.EMBED: pb.CAPABILITY_EMBED,
    Capability.RERANK: pb.CAPABILITY_RERANK,
    Capability.VISION: pb.CAPABILITY_VISION,
    Capability.TOOLS: pb.CAPABILITY_TOOLS,
    Capability.JSON_SCHEMA: pb.CAPABILITY_JSON_SCHEMA,
}


def chat_response(step: Step) -> pb.ChatResponse:
    """Write one message of Chat's stream."""
    match step:
        case Delta():
            return pb.ChatResponse(delta=_delta(step))
        case Routed():
            return pb.ChatResponse(route=route_info(step))
        case Ended():
            return pb.ChatResponse(finish=finish(step))


async def together(steps: AsyncIterable[Step], *, is_whole: bool) -> AsyncIterator[pb.ChatResponse]:
    """Write Chat's stream in as few messages as it may have: a whole answer in one, a route with the first words."""
    waiting: pb.ChatResponse | None = None
    async for step in steps:
        response = chat_response(step)
        if waiting is not None and response.HasField("delta") and waiting.HasField("delta"):
            yield waiting
            waiting = None
        if waiting is not None:
            waiting.MergeFrom(response)
            response = waiting
        waiting = response if is_whole or isinstance(step, Routed) else None
        if waiting is None:
            yield response
    if waiting is not None:
        yield waiting


def finish(ended: Ended) -> pb.ChatFinish:
    """Write the end of an answer."""
    return pb.ChatFinish(
        reason=_FINISH_REASONS[ended.reason],
        usage=usage_message(ended.usage),
        attempts=attempts(ended.attempts),
        derived_digest=ended.derived_digest,
    )


def attempts(tried: Iterable[Attempt]) -> list[pb.Attempt]:
    """Write the attempts of a request."""
    return [
        pb.Attempt(
            backend=NAME_PREFIX + attempt.backend,
            model=attempt.model,
            reason=attempt.reason,
            detail=attempt.detail,
            elapsed=duration(attempt.elapsed_seconds),
            spliced=attempt.is_spliced,
        )
        for attempt in tried
    ]


def backend(entry: Entry, position: int) -> pb.Backend:
    """Write a backend's state."""
    identity, status = entry.backend.identity, entry.status
    message = pb.Backend(
        name=NAME_PREFIX + identity.name,
        kind=identity.kind.value,
        url=identity.url,
        state=_STATES[status.state],
        detail="; ".join(words for words in (status.detail, entry.guard.words()) if words),
        breaker=_BREAKERS[entry.guard.state],
        in_flight=entry.guard.in_flight,
        position=position,
        discovered=identity.is_discovered,
        remote=identity.is_remote,
    )
    if entry.checked_at is not None and entry.latency_seconds is not None:
        nanos = round(entry.checked_at * 1e9)
        message.checked_at.CopyFrom(Timestamp(seconds=nanos // 10**9, nanos=nanos % 10**9))
        message.latency.CopyFrom(duration(entry.latency_seconds))
    return message


def models(entries: Iterable[Entry]) -> list[pb.Model]:
    """Write every model that can be asked for, in chain order, then by id; ids are unique."""
    listed = [
        (entry, model)
        for entry in entries
        if entry.view.is_answering
        for model in sorted(entry.status.models, key=lambda model: model.id)
    ]
    times = Counter(model.id for _, model in listed)
    return [_model(entry, model, is_unique=times[model.id] == 1) for entry, model in listed]


def model(entries: Iterable[Entry], entry: Entry, found: ModelInfo) -> pb.Model:
    """Write one model as the list shows it, and one that the list does not show as it was found."""
    name = NAME_PREFIX + entry.backend.identity.name
    for listed in models(entries):
        if (listed.backend, listed.backend_model) == (name, found.id):
            return listed
    return _model(entry, found, is_unique=True)


def candidates(route: Route) -> list[pb.RouteCandidate]:
    """Write a route as ExplainRoute shows it: the eligible ones first, in the order of trying."""
    eligible = [
        pb.RouteCandidate(
            backend=NAME_PREFIX + candidate.backend,
            model=candidate.model.id,
            eligible=True,
            reason=candidate.reason,
        )
        for candidate in route.candidates
    ]
    passed = [
        pb.RouteCandidate(backend=NAME_PREFIX + passed.backend, eligible=False, reason=passed.detail)
        for passed in route.passed_over
    ]
    return eligible + passed


def checks(steps: Iterable[Check]) -> list[pb.BackendCheck]:
    """Write the steps of a test."""
    return [
        pb.BackendCheck(step=step.step, passed=step.passed, detail=step.detail, cure=step.cure)
        for step in steps
    ]


def duration(seconds: float) -> Duration:
    """Write a span of time."""
    nanos = round(seconds * 1e9)
    return Duration(seconds=nanos // 10**9, nanos=nanos % 10**9)


def route_info(routed: Routed) -> pb.RouteInfo:
    """Write who answers."""
    return pb.RouteInfo(
        backend=NAME_PREFIX + routed.identity.name,
        kind=routed.identity.kind.value,
        model=routed.model,
        attempts=attempts(routed.attempts),
        base_digest=routed.base_digest,
        remote=routed.identity.is_remote,
        adapters=[ContentReference(name=adapter.name, sha256=adapter.digest) for adapter in routed.adapters],
    )


def _delta(delta: Delta) -> pb.ChatDelta:
    if not (delta.tool_calls or delta.logprobs):
        return pb.ChatDelta(text=delta.text, reasoning=delta.reasoning, refusal=delta.refusal)
    return pb.ChatDelta(
        text=delta.text,
        reasoning=delta.reasoning,
        refusal=delta.refusal,
        tool_calls=[
            pb.ToolCall(id=call.id, name=call.name, arguments=call.arguments, index=call.index)
            for call in delta.tool_calls
        ],
        logprobs=[_logprob(logprob) for logprob in delta.logprobs],
    )


def _logprob(logprob: TokenLogprob) -> pb.TokenLogprob:
    return pb.TokenLogprob(
        token=logprob.token,
        logprob=logprob.logprob,
        token_bytes=logprob.token_bytes,
        top=[_logprob(other) for other in logprob.top],
    )


def usage_message(usage: Usage) -> UsageMessage:
    """Write what an answer cost."""
    return UsageMessage(
        input_tokens=usage.input_tokens,
        output_tokens=usage.output_tokens,
        cached_input_tokens=usage.cached_input_tokens,
        reasoning_tokens=usage.reasoning_tokens,
    )


def _model(entry: Entry, model: ModelInfo, *, is_unique: bool) -> pb.Model:
    name = entry.backend.identity.name
    shut = entry.guard.shut_for_anything(model.id)
    return pb.Model(
        id=model.id if is_unique else f"{name}/{model.id}",
        backend=NAME_PREFIX + name,
        backend_model=model.id,
        state=_LOAD_STATES[model.state],
        context_tokens=model.context_tokens,
        max_context_tokens=model.max_context_tokens,
        capabilities=[
            CAPABILITIES[capability] for capability in Capability if capability in (model.capabilities or ())
        ],
        quantization=model.quantization,
        demo=model.is_demo,
        breaker=_BREAKERS[BreakerState.CLOSED if shut is None else shut.state],
    )
