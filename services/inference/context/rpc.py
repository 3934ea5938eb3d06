"""CountTokens' messages as values and back."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Final

from kala.errors import InvalidArgumentError
from kala.inference.v1 import inference_pb2 as pb
from services.inference.answers import NAME_PREFIX
from services.inference.chat import Audio, Image, Message, Part, Role, Text
from services.inference.context.counting import Counted, Strategy
from services.inference.router import Candidate, Route

_STRATEGIES: Final = {
    pb.FIT_STRATEGY_UNSPECIFIED: Strategy.NONE,
    pb.FIT_STRATEGY_NONE: Strategy.NONE,
    pb.FIT_STRATEGY_KEEP_SYSTEM_AND_TAIL: Strategy.KEEP_SYSTEM_AND_TAIL,
    pb.FIT_STRATEGY_CONTENT_BUDGET: Strategy.CONTENT_BUDGET,
}

_ROLES: Final = {
    Role.SYSTEM: pb.ROLE_SYSTEM,
    Role.USER: pb.ROLE_USER,
    Role.ASSISTANT: pb.ROLE_ASSISTANT,
    Role.TOOL: pb.ROLE_TOOL,
}


def action_of(request: pb.CountTokensRequest) -> pb.ChatAction:
    """Give the chat whose prompt is counted."""
    return pb.ChatAction(
        model=request.model,
        messages=request.messages,
        tools=request.tools,
        provider=request.provider,
        role=request.role,
        allow_remote=request.allow_remote,
    )


def strategy_of(request: pb.CountTokensRequest) -> Strategy:
    """Give the strategy; raises InvalidArgumentError for one that this release does not know."""
    strategy = _STRATEGIES.get(request.fit)
    if strategy is None:
        raise InvalidArgumentError("fit", "must be NONE, KEEP_SYSTEM_AND_TAIL or CONTENT_BUDGET")
    return strategy


def first_of(route: Route) -> Candidate:
    """Give the candidate that is tried first, with the least context of those that share its model and its work."""
    first, *others = route.candidates
    contexts = [
        candidate.model.context_tokens
        for candidate in (first, *others)
        if candidate.model.id == first.model.id
    ]
    known = [context for context in contexts if context is not None]
    if first.model.context_tokens is None or not known:
        return first
    return replace(first, model=replace(first.model, context_tokens=min(known)))


def counted_response(counted: Counted, candidate: Candidate) -> pb.CountTokensResponse:
    """Write the count, and the fitted conversation where there is one."""
    response = pb.CountTokensResponse(
        tokens=counted.tokens,
        estimated=counted.is_estimated,
        context_tokens=counted.context_tokens,
        backend=NAME_PREFIX + candidate.backend,
        backend_model=candidate.model.id,
    )
    if counted.fitted is not None:
        response.fitted.extend(_messages(counted.fitted.messages))
        response.fitted_tokens = counted.fitted.tokens
    return response


def _messages(messages: Iterable[Message]) -> list[pb.ChatMessage]:
    return [
        pb.ChatMessage(
            role=_ROLES[message.role],
            content=[_part(part) for part in message.parts],
            name=message.name,
            tool_calls=[
                pb.ToolCall(id=call.id, name=call.name, arguments=call.arguments, index=call.index)
                for call in message.tool_calls
            ],
            tool_call_id=message.tool_call_id,
        )
        for message in messages
    ]


def _part(part: Part) -> pb.ContentPart:
    match part:
        case Text(text):
            return pb.ContentPart(text=text)
        case Image(data_uri, detail):
            return pb.ContentPart(image_data_uri=data_uri, image_detail=detail)
        case Audio(base64, audio_format):
            return pb.ContentPart(audio_base64=base64, audio_format=audio_format)
