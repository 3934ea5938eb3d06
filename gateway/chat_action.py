"""Turns a validated chat request into the `ChatAction` that is judged and executed.  Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from gateway import chat_schema as schema
from gateway.destination import Destination
from kala.errors import InvalidArgumentError
from kala.inference.v1 import inference_pb2 as pb
from services.common.images import check_image

MAX_SCHEMA_BYTES: Final = 64 * 1024
"""The contract's limit for a JSON Schema."""

MAX_REQUEST_TEXT_BYTES: Final = 64 * 1024
"""The contract's limit for the request's text beside an output check; the tail is kept."""

AUTO_MODEL: Final = "auto"

ANYWHERE_HERE: Final = Destination()

_ROLES: Final = {
    "system": pb.ROLE_SYSTEM,
    "developer": pb.ROLE_SYSTEM,
    "user": pb.ROLE_USER,
    "assistant": pb.ROLE_ASSISTANT,
    "tool": pb.ROLE_TOOL,
}

_MODES: Final = {
    "none": pb.TOOL_CHOICE_MODE_NONE,
    "auto": pb.TOOL_CHOICE_MODE_AUTO,
    "required": pb.TOOL_CHOICE_MODE_REQUIRED,
}

_FORMATS: Final = {
    "text": pb.RESPONSE_FORMAT_TYPE_TEXT,
    "json_object": pb.RESPONSE_FORMAT_TYPE_JSON_OBJECT,
}


def build_action(request: schema.ChatRequest, destination: Destination = ANYWHERE_HERE) -> pb.ChatAction:
    """Build the action, bound for this destination."""
    model = request.model or AUTO_MODEL
    action = pb.ChatAction(
        model=model,
        messages=[_message(message, f"messages[{index}]") for index, message in enumerate(request.messages)],
        sampling=_sampling(request),
        tools=[_tool(tool, index) for index, tool in enumerate(request.tools or ())],
        stream=request.wants_stream,
        provider=destination.provider,
        role=destination.role,
        allow_remote=destination.allow_remote,
        reasoning_effort=request.reasoning_effort or "",
    )
    if request.tool_choice is not None:
        action.tool_choice.CopyFrom(_tool_choice(request.tool_choice))
    if request.parallel_tool_calls is not None:
        action.parallel_tool_calls = request.parallel_tool_calls
    if request.response_format is not None:
        action.response_format.CopyFrom(_response_format(request.response_format))
    return action


def has_untrusted_content(action: pb.ChatAction) -> bool:
    """Tell whether the conversation holds what a tool brought in."""
    return any(message.role == pb.ROLE_TOOL for message in action.messages)


def request_text(action: pb.ChatAction) -> str:
    """Give the last user text, its tail where it is long; context for the judges of the answer."""
    for message in reversed(action.messages):
        if message.role == pb.ROLE_USER:
            return tail_of("\n".join(part.text for part in message.content if part.text))
    return ""


def tail_of(text: str) -> str:
    """Give as much of a text's end as the contract takes beside an output check."""
    encoded = text.encode()
    if len(encoded) <= MAX_REQUEST_TEXT_BYTES:
        return text
    return encoded[-MAX_REQUEST_TEXT_BYTES:].decode("utf-8", "ignore")


def _message(message: schema.Message, where: str) -> pb.ChatMessage:
    built = pb.ChatMessage(role=_ROLES[message.role], name=message.name or "")
    content = message.content
    if isinstance(content, str):
        built.content.add(text=content)
    elif content is not None:
        built.content.extend(_part(part, f"{where}.content[{place}]") for place, part in enumerate(content))
    if isinstance(message, schema.ToolMessage):
        built.tool_call_id = message.tool_call_id
    elif isinstance(message, schema.AssistantMessage):
        if message.refusal:
            built.content.add(text=message.refusal)
        built.tool_calls.extend(
            pb.ToolCall(id=call.id, name=call.function.name, arguments=call.function.arguments, index=index)
            for index, call in enumerate(message.tool_calls or ())
        )
    return built


def _part(part: object, where: str) -> pb.ContentPart:
    match part:
        case schema.TextPart():
            return pb.ContentPart(text=part.text)
        case schema.RefusalPart():
            return pb.ContentPart(text=part.refusal)
        case schema.ImagePart():
            check_image(part.image_url.url, f"{where}.image_url.url")
            return pb.ContentPart(image_data_uri=part.image_url.url, image_detail=part.image_url.detail or "")
        case schema.AudioPart():
            return pb.ContentPart(audio_base64=part.input_audio.data, audio_format=part.input_audio.format)
        case _:
            raise InvalidArgumentError(where, "is a content part of an unknown kind")


def _sampling(request: schema.ChatRequest) -> pb.Sampling:
    stop = request.stop
    # None leaves a field unset, so that the role's or the backend's default applies.
    return pb.Sampling(
        temperature=request.temperature,
        top_p=request.top_p,
        top_k=request.top_k,
        seed=request.seed,
        presence_penalty=request.presence_penalty,
        frequency_penalty=request.frequency_penalty,
        max_output_tokens=request.max_completion_tokens or request.max_tokens,
        stop=[stop] if isinstance(stop, str) else stop,
        logprobs=request.logprobs,
        top_logprobs=request.top_logprobs,
    )


def _tool(tool: schema.Tool, index: int) -> pb.ToolDefinition:
    function = tool.function
    return pb.ToolDefinition(
        name=function.name,
        description=function.description or "",
        parameters_json=_schema_text(function.parameters, f"tools[{index}].function.parameters"),
        strict=function.strict,
    )


def _tool_choice(choice: object) -> pb.ToolChoice:
    if isinstance(choice, schema.NamedToolChoice):
        return pb.ToolChoice(mode=pb.TOOL_CHOICE_MODE_NAMED, function_name=choice.function.name)
    return pb.ToolChoice(mode=_MODES[str(choice)])


def _response_format(form: schema.TextFormat | schema.SchemaFormat) -> pb.ResponseFormat:
    if isinstance(form, schema.TextFormat):
        return pb.ResponseFormat(type=_FORMATS[form.type])
    return pb.ResponseFormat(
        type=pb.RESPONSE_FORMAT_TYPE_JSON_SCHEMA,
        schema_name=form.json_schema.name,
        json_schema=_schema_text(form.json_schema.schema_, "response_format.json_schema.schema"),
        strict=form.json_schema.strict,
    )


def _schema_text(value: Mapping[str, Any] | None, field: str) -> str:  # Any: JSON Schema
    if value is None:
        return ""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    if len(text.encode()) > MAX_SCHEMA_BYTES:
        raise InvalidArgumentError(
            field, f"must have at most {MAX_SCHEMA_BYTES} bytes as JSON; simplify the schema"
        )
    return text
