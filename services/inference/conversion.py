"""Between the contract's messages and this service's values; checks every limit that the contract states."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Final

import orjson

from kala.errors import InvalidArgumentError
from kala.inference.v1 import inference_pb2 as pb
from services.common.images import check_image
from services.inference.backend import Capability
from services.inference.chat import (
    AnswerForm,
    Audio,
    ChatCall,
    Form,
    Image,
    Message,
    Part,
    Role,
    Sampling,
    Text,
    Tool,
    ToolCall,
    ToolMode,
)
from services.inference.router import Wanted

if TYPE_CHECKING:
    from collections.abc import Sequence

MAX_MESSAGES: Final = 10_000
MAX_PARTS: Final = 256
MAX_TOOLS: Final = 128
MAX_STOPS: Final = 16
MAX_STOP_CHARS: Final = 256
MAX_MODEL_CHARS: Final = 256
MAX_SCHEMA_BYTES: Final = 64 * 1024
MAX_OUTPUT_TOKENS: Final = 1_048_576
MAX_TOP_K: Final = 1000
MAX_TOP_LOGPROBS: Final = 20

MAX_ADAPTERS: Final = 4

_ADAPTER_NAME: Final = re.compile(r"adapters/[a-z0-9-]{1,64}@[1-9][0-9]{0,9}")
_TOOL_NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
_AUDIO_FORMATS: Final = frozenset({"wav", "mp3"})
_EFFORTS: Final = frozenset({"", "none", "minimal", "low", "medium", "high"})

_ROLES: Final = {
    pb.ROLE_SYSTEM: Role.SYSTEM,
    pb.ROLE_USER: Role.USER,
    pb.ROLE_ASSISTANT: Role.ASSISTANT,
    pb.ROLE_TOOL: Role.TOOL,
}
_TOOL_MODES: Final = {
    pb.TOOL_CHOICE_MODE_UNSPECIFIED: ToolMode.DEFAULT,
    pb.TOOL_CHOICE_MODE_NONE: ToolMode.NONE,
    pb.TOOL_CHOICE_MODE_AUTO: ToolMode.AUTO,
    pb.TOOL_CHOICE_MODE_REQUIRED: ToolMode.REQUIRED,
    pb.TOOL_CHOICE_MODE_NAMED: ToolMode.NAMED,
}
_FORMS: Final = {
    pb.RESPONSE_FORMAT_TYPE_UNSPECIFIED: Form.TEXT,
    pb.RESPONSE_FORMAT_TYPE_TEXT: Form.TEXT,
    pb.RESPONSE_FORMAT_TYPE_JSON_OBJECT: Form.JSON_OBJECT,
    pb.RESPONSE_FORMAT_TYPE_JSON_SCHEMA: Form.JSON_SCHEMA,
}
_MID_STREAM: Final = {
    pb.MID_STREAM_POLICY_UNSPECIFIED: False,
    pb.MID_STREAM_POLICY_ERROR: False,
    pb.MID_STREAM_POLICY_CONTINUE: True,
}
_RANGES: Final = {
    "temperature": (0.0, 2.0),
    "top_p": (0.0, 1.0),
    "presence_penalty": (-2.0, 2.0),
    "frequency_penalty": (-2.0, 2.0),
}


def chat_call(action: pb.ChatAction) -> ChatCall:
    """Read a ChatAction; raises InvalidArgumentError naming the field."""
    require(1 <= len(action.messages) <= MAX_MESSAGES, "messages", f"must be 1 to {MAX_MESSAGES}")
    require(len(action.tools) <= MAX_TOOLS, "tools", f"must be at most {MAX_TOOLS}")
    require(
        action.reasoning_effort in _EFFORTS, "reasoning_effort", "must be none, minimal, low, medium or high"
    )
    tools = tuple(_tool(index, tool) for index, tool in enumerate(action.tools))
    mode, name = _tool_choice(action, {tool.name for tool in tools})
    return ChatCall(
        messages=tuple(_message(index, message) for index, message in enumerate(action.messages)),
        sampling=read_sampling(action.sampling),
        tools=tools,
        tool_mode=mode,
        tool_name=name,
        parallel_tool_calls=action.parallel_tool_calls if action.HasField("parallel_tool_calls") else None,
        answer_form=_answer_form(action.response_format),
        stream=action.stream,
        reasoning_effort=action.reasoning_effort,
        goes_on=_goes_on(action),
        adapters=_adapters(action),
    )


def wanted(action: pb.ChatAction, call: ChatCall) -> Wanted:
    """Say where a ChatAction itself wants to go."""
    require(len(action.model) <= MAX_MODEL_CHARS, "model", f"must be at most {MAX_MODEL_CHARS} characters")
    needs = {Capability.VISION} if call.has_images else set()
    return Wanted(
        action.model,
        action.provider,
        frozenset(needs),
        allow_remote=action.allow_remote,
        adapters=call.adapters,
    )


def _goes_on(action: pb.ChatAction) -> bool:
    goes_on = _MID_STREAM.get(action.mid_stream)
    if goes_on is None:
        raise InvalidArgumentError("mid_stream", "must be error or continue")
    return goes_on


def _adapters(action: pb.ChatAction) -> tuple[str, ...]:
    require(len(action.adapters) <= MAX_ADAPTERS, "adapters", f"must be at most {MAX_ADAPTERS}")
    for index, name in enumerate(action.adapters):
        require(
            _ADAPTER_NAME.fullmatch(name) is not None,
            f"adapters[{index}]",
            "must be adapters/<name>@<version>",
        )
    require(len(set(action.adapters)) == len(action.adapters), "adapters", "must name each once")
    return tuple(action.adapters)


def _message(index: int, message: pb.ChatMessage) -> Message:
    where = f"messages[{index}]"
    role = _ROLES.get(message.role)
    if role is None:
        raise InvalidArgumentError(f"{where}.role", "must be system, user, assistant or tool")
    require(len(message.content) <= MAX_PARTS, f"{where}.content", f"must be at most {MAX_PARTS} parts")
    require(len(message.tool_calls) <= MAX_TOOLS, f"{where}.tool_calls", f"must be at most {MAX_TOOLS}")
    require(
        bool(message.content) or (role is Role.ASSISTANT and bool(message.tool_calls)),
        f"{where}.content",
        "is empty",
    )
    require(
        role is not Role.TOOL or bool(message.tool_call_id), f"{where}.tool_call_id", "must name the call"
    )
    return Message(
        role=role,
        parts=tuple(_part(f"{where}.content[{place}]", part) for place, part in enumerate(message.content)),
        name=message.name,
        tool_calls=tuple(
            ToolCall(call.id, call.name, call.arguments, call.index) for call in message.tool_calls
        ),
        tool_call_id=message.tool_call_id,
    )


def _part(where: str, part: pb.ContentPart) -> Part:
    match part.WhichOneof("part"):
        case "text":
            return Text(part.text)
        case "image_data_uri":
            check_image(part.image_data_uri, where)
            return Image(part.image_data_uri, part.image_detail)
        case "audio_base64":
            require(part.audio_format in _AUDIO_FORMATS, f"{where}.audio_format", "must be wav or mp3")
            return Audio(part.audio_base64, part.audio_format)
        case _:
            raise InvalidArgumentError(where, "holds nothing")


def _tool(index: int, tool: pb.ToolDefinition) -> Tool:
    where = f"tools[{index}]"
    require(
        _TOOL_NAME.fullmatch(tool.name) is not None, f"{where}.name", "must be 1 to 64 of A-Z a-z 0-9 _ -"
    )
    if tool.parameters_json:
        _require_schema(tool.parameters_json, f"{where}.parameters_json")
    return Tool(
        tool.name, tool.description, tool.parameters_json, tool.strict if tool.HasField("strict") else None
    )


def _tool_choice(action: pb.ChatAction, names: set[str]) -> tuple[ToolMode, str]:
    mode = _TOOL_MODES.get(action.tool_choice.mode)
    if mode is None:
        raise InvalidArgumentError("tool_choice.mode", "must be none, auto, required or named")
    name = action.tool_choice.function_name if mode is ToolMode.NAMED else ""
    require(
        mode is not ToolMode.NAMED or name in names, "tool_choice.function_name", "is not one of the tools"
    )
    require(
        mode is not ToolMode.REQUIRED or bool(names), "tool_choice.mode", "requires a tool and there are none"
    )
    return mode, name


def _answer_form(given: pb.ResponseFormat) -> AnswerForm:
    form = _FORMS.get(given.type)
    if form is None:
        raise InvalidArgumentError("response_format.type", "must be text, json_object or json_schema")
    if form is Form.JSON_SCHEMA:
        _require_schema(given.json_schema, "response_format.json_schema")
    return AnswerForm(
        form, given.schema_name, given.json_schema, given.strict if given.HasField("strict") else None
    )


def _require_schema(text: str, field: str) -> None:
    require(len(text.encode()) <= MAX_SCHEMA_BYTES, field, f"must be at most {MAX_SCHEMA_BYTES} bytes")
    try:
        is_object = isinstance(orjson.loads(text), dict)
    except orjson.JSONDecodeError:
        is_object = False
    require(is_object, field, "must be a JSON object")


def read_sampling(given: pb.Sampling) -> Sampling:
    """Read how tokens are drawn; raises InvalidArgumentError naming the field."""
    for name, (low, high) in _RANGES.items():
        if given.HasField(name):  # type: ignore[arg-type]  # the stub lists the names as literals
            value = getattr(given, name)
            require(
                math.isfinite(value) and low <= value <= high,
                f"sampling.{name}",
                f"must be {low:g} to {high:g}",
            )
    require(not given.HasField("top_p") or given.top_p > 0, "sampling.top_p", "must be above 0")
    require(given.top_k <= MAX_TOP_K, "sampling.top_k", f"must be at most {MAX_TOP_K}")
    if given.HasField("max_output_tokens"):
        require(
            1 <= given.max_output_tokens <= MAX_OUTPUT_TOKENS,
            "sampling.max_output_tokens",
            f"must be 1 to {MAX_OUTPUT_TOKENS}",
        )
    require(
        given.top_logprobs <= MAX_TOP_LOGPROBS, "sampling.top_logprobs", f"must be at most {MAX_TOP_LOGPROBS}"
    )
    return Sampling(
        temperature=given.temperature if given.HasField("temperature") else None,
        top_p=given.top_p if given.HasField("top_p") else None,
        top_k=given.top_k if given.HasField("top_k") else None,
        seed=given.seed if given.HasField("seed") else None,
        presence_penalty=given.presence_penalty if given.HasField("presence_penalty") else None,
        frequency_penalty=given.frequency_penalty if given.HasField("frequency_penalty") else None,
        max_output_tokens=given.max_output_tokens if given.HasField("max_output_tokens") else None,
        stop=_stops(given.stop),
        logprobs=given.logprobs,
        top_logprobs=given.top_logprobs if given.HasField("top_logprobs") else None,
    )


def _stops(given: Sequence[str]) -> tuple[str, ...]:
    require(len(given) <= MAX_STOPS, "sampling.stop", f"must be at most {MAX_STOPS}")
    for index, stop in enumerate(given):
        require(
            1 <= len(stop) <= MAX_STOP_CHARS,
            f"sampling.stop[{index}]",
            f"must be 1 to {MAX_STOP_CHARS} characters",
        )
    return tuple(given)


def require(holds: bool, field: str, problem: str) -> None:  # noqa: FBT001 - reads as a sentence at every call
    """Raise InvalidArgumentError unless a limit of the contract holds."""
    if not holds:
        raise InvalidArgumentError(field, problem)
