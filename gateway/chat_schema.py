"""What `POST /v1/chat/completions` accepts: OpenAI's request, strictly typed, with this platform's limits.

A parameter that would change the answer and cannot be honoured is refused by name; hints that cannot change it
(`service_tier`, `prompt_cache_key`, `metadata`) are accepted and do nothing.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError

from gateway.errors import UNSUPPORTED_PARAMETER
from gateway.validation import first_error, refuse_unknown
from kala.errors import InvalidArgumentError

MAX_MESSAGES: Final = 10_000
MAX_PARTS: Final = 256
MAX_TOOLS: Final = 128
MAX_NAME_CHARS: Final = 64
MAX_DESCRIPTION_CHARS: Final = 4096
MAX_STOPS: Final = 16
MAX_STOP_CHARS: Final = 256
MAX_OUTPUT_TOKENS: Final = 1_048_576
MAX_MODEL_CHARS: Final = 256
MAX_ID_CHARS: Final = 128
MAX_METADATA: Final = 16
"""The limits of `kala.inference.v1.ChatAction`; OpenAI's where it has a stricter one (metadata)."""

_FUNCTION_NAME: Final = r"^[A-Za-z0-9_-]{1,64}$"
_WORKSPACE: Final = r"^workspaces/[A-Za-z0-9._-]{1,128}$"
_SESSION: Final = r"^sessions/[0-9a-f]{32}$"
_APPROVAL: Final = r"^approvals/[A-Za-z0-9._-]{1,128}$"
_IMAGE_DATA_URI: Final = r"^data:image/(?:png|jpeg|webp|gif);base64,[A-Za-z0-9+/]"

_UNSUPPORTED: Final = {
    "audio": "audio output is not produced",
    "frequency_bias": "remove it",
    "function_call": "it was replaced by `tool_choice`; use that",
    "functions": "it was replaced by `tools`; use that",
    "logit_bias": "local backends disagree about token ids; remove it",
    "prediction": "remove it",
    "verbosity": "say in a message how long the answer should be",
    "web_search_options": "this platform does not search the web; remove it",
}
"""Parameters of OpenAI that are known here and not served, with the cure."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class TextPart(_Strict):
    """Text."""

    type: Literal["text"]
    text: str


class ImageUrl(_Strict):
    """An image inside the request."""

    url: Annotated[str, Field(pattern=_IMAGE_DATA_URI)]
    detail: Literal["low", "high", "auto"] | None = None


class ImagePart(_Strict):
    """An image."""

    type: Literal["image_url"]
    image_url: ImageUrl


class InputAudio(_Strict):
    """Audio inside the request."""

    data: Annotated[str, Field(min_length=1)]
    format: Literal["wav", "mp3"]


class AudioPart(_Strict):
    """Audio."""

    type: Literal["input_audio"]
    input_audio: InputAudio


class RefusalPart(_Strict):
    """An earlier refusal of the model, as a part."""

    type: Literal["refusal"]
    refusal: str


def _content_kind(value: object) -> str | None:
    if isinstance(value, str):
        return "<text>"
    return "<parts>" if isinstance(value, list) else None


def _text_or(parts: Any) -> Any:  # Any: builds a type for pydantic
    return Annotated[
        Annotated[str, Tag("<text>")]
        | Annotated[list[parts], Tag("<parts>"), Field(min_length=1, max_length=MAX_PARTS)],
        Discriminator(
            _content_kind,
            custom_error_type="content_type",
            custom_error_message="must be a string or a list of content parts",
        ),
    ]


_UserPart = Annotated[TextPart | ImagePart | AudioPart, Field(discriminator="type")]
_AssistantPart = Annotated[TextPart | RefusalPart, Field(discriminator="type")]
_Name = Annotated[str, Field(min_length=1, max_length=MAX_NAME_CHARS)]


class SystemMessage(_Strict):
    """The operator's instructions."""

    role: Literal["system", "developer"]
    content: _text_or(TextPart)  # type: ignore[valid-type]  # built by a function to say it once
    name: _Name | None = None


class UserMessage(_Strict):
    """What the person says."""

    role: Literal["user"]
    content: _text_or(_UserPart)  # type: ignore[valid-type]
    name: _Name | None = None


class FunctionCall(_Strict):
    """The function of an earlier call."""

    name: Annotated[str, Field(min_length=1, max_length=MAX_NAME_CHARS)]
    arguments: str


class ToolCall(_Strict):
    """An earlier call by the model."""

    id: Annotated[str, Field(min_length=1, max_length=MAX_ID_CHARS)]
    type: Literal["function"] = "function"
    function: FunctionCall
    index: int | None = None


class AssistantMessage(_Strict):
    """What the model said before; fields that clients echo and that carry nothing to the model are let through."""

    role: Literal["assistant"]
    content: _text_or(_AssistantPart) | None = None  # type: ignore[valid-type]
    refusal: str | None = None
    name: _Name | None = None
    tool_calls: Annotated[list[ToolCall], Field(max_length=MAX_TOOLS)] | None = None
    audio: None = None
    function_call: None = None
    annotations: list[Any] | None = None  # Any: never read
    reasoning_content: str | None = None
    reasoning: str | None = None


class ToolMessage(_Strict):
    """A tool's result."""

    role: Literal["tool"]
    content: _text_or(TextPart)  # type: ignore[valid-type]
    tool_call_id: Annotated[str, Field(min_length=1, max_length=MAX_ID_CHARS)]
    name: _Name | None = None


Message = Annotated[SystemMessage | UserMessage | AssistantMessage | ToolMessage, Field(discriminator="role")]


class FunctionDefinition(_Strict):
    """A function that the model may call."""

    name: Annotated[str, Field(pattern=_FUNCTION_NAME)]
    description: Annotated[str, Field(max_length=MAX_DESCRIPTION_CHARS)] | None = None
    parameters: dict[str, Any] | None = None  # Any: JSON Schema, passed on as it is
    strict: bool | None = None


class Tool(_Strict):
    """A tool of the client's."""

    type: Literal["function"]
    function: FunctionDefinition


class NamedFunction(_Strict):
    """Which function."""

    name: str


class NamedToolChoice(_Strict):
    """A demand for one function."""

    type: Literal["function"]
    function: NamedFunction


class JsonSchema(_Strict):
    """A named schema."""

    name: Annotated[str, Field(pattern=_FUNCTION_NAME)]
    description: Annotated[str, Field(max_length=MAX_DESCRIPTION_CHARS)] | None = None
    schema_: Annotated[dict[str, Any], Field(alias="schema")]  # Any: JSON Schema, passed on as it is
    strict: bool | None = None


class TextFormat(_Strict):
    """Free text, or any JSON object."""

    type: Literal["text", "json_object"]


class SchemaFormat(_Strict):
    """JSON by a schema."""

    type: Literal["json_schema"]
    json_schema: JsonSchema


class StreamOptions(_Strict):
    """Options of a stream."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


_Stop = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARS)]
_Tokens = Annotated[int, Field(ge=1, le=MAX_OUTPUT_TOKENS)]
_Identifier = Annotated[str, Field(min_length=1, max_length=256)]
_CallId = Annotated[str, Field(min_length=1, max_length=MAX_ID_CHARS)]
_Approval = Annotated[str, Field(pattern=_APPROVAL)]
_MetadataKey = Annotated[str, Field(max_length=64)]
_MetadataValue = Annotated[str, Field(max_length=512)]


def _choice_kind(value: object) -> str | None:
    if isinstance(value, str):
        return "<mode>"
    return "<named>" if isinstance(value, dict) else None


_ToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("<mode>")]
    | Annotated[NamedToolChoice, Tag("<named>")],
    Discriminator(
        _choice_kind,
        custom_error_type="tool_choice_type",
        custom_error_message='must be "none", "auto", "required" or an object that names a function',
    ),
]


def _stop_kind(value: object) -> str | None:
    if isinstance(value, str):
        return "<one>"
    return "<list>" if isinstance(value, list) else None


_Stops = Annotated[
    Annotated[_Stop, Tag("<one>")] | Annotated[list[_Stop], Tag("<list>"), Field(max_length=MAX_STOPS)],
    Discriminator(
        _stop_kind,
        custom_error_type="stop_type",
        custom_error_message="must be a string or a list of strings",
    ),
]


class ToolLimits(_Strict):
    """How far a request with KALA's tools may go; the gateway's own limits hold besides."""

    turns: Annotated[int, Field(ge=1)] | None = None
    calls: Annotated[int, Field(ge=0)] | None = None
    tokens: Annotated[int, Field(ge=1)] | None = None


class ChatRequest(_Strict):
    """The body of a chat completion."""

    model: Annotated[str, Field(max_length=MAX_MODEL_CHARS)] | None = None
    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES)]
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0, le=1000)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), le=2**63 - 1)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    max_tokens: _Tokens | None = None
    max_completion_tokens: _Tokens | None = None
    stop: _Stops | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    n: Annotated[int, Field(ge=1, le=1)] | None = None
    tools: Annotated[list[Tool], Field(max_length=MAX_TOOLS)] | None = None
    tool_choice: _ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    response_format: Annotated[TextFormat | SchemaFormat, Field(discriminator="type")] | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high"] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: _Identifier | None = None
    safety_identifier: _Identifier | None = None
    modalities: list[Literal["text"]] | None = None
    store: Literal[False] | None = None
    metadata: Annotated[dict[_MetadataKey, _MetadataValue], Field(max_length=MAX_METADATA)] | None = None
    service_tier: Literal["auto", "default"] | None = None
    prompt_cache_key: str | None = None
    kala_session: Annotated[str, Field(pattern=_SESSION)] | None = None
    kala_tools: Literal["auto", "none"] | None = None
    kala_workspace: Annotated[str, Field(pattern=_WORKSPACE)] | None = None
    kala_approvals: Annotated[dict[_CallId, _Approval], Field(max_length=MAX_TOOLS)] | None = None
    kala_tool_limits: ToolLimits | None = None

    @property
    def wants_kala_tools(self) -> bool:
        """Tell whether the gateway is to offer KALA's tools to the model and to run what it calls."""
        return self.kala_tools == "auto"

    @property
    def wants_stream(self) -> bool:
        """Tell whether chunks are wanted as they come."""
        return bool(self.stream)

    @property
    def wants_usage(self) -> bool:
        """Tell whether a stream is to end with a chunk of usage."""
        return bool(self.stream_options and self.stream_options.include_usage)


def parse_chat_request(body: dict[str, Any], *, max_messages: int = MAX_MESSAGES) -> ChatRequest:  # Any: JSON
    """Validate a request, or raise InvalidArgumentError that names the field, the limit and the cure."""
    _refuse_unsupported(body)
    try:
        request = ChatRequest.model_validate(body)
    except ValidationError as error:
        raise first_error(error, body) from error
    if len(request.messages) > max_messages:
        raise InvalidArgumentError(
            "messages", f"must have at most {max_messages} entries; shorten the conversation"
        )
    _check_together(request)
    return request


def _refuse_unsupported(body: dict[str, Any]) -> None:  # Any: JSON
    for name, cure in _UNSUPPORTED.items():
        # null, {} and [] ask for nothing, and generated clients send them.
        if body.get(name):
            raise InvalidArgumentError(name, f"is not supported: {cure}", reason=UNSUPPORTED_PARAMETER)
        body.pop(name, None)
    if body.get("store") is True:
        raise InvalidArgumentError(
            "store",
            "is not supported: use `kala_session`, or /v1/responses; leave it out or send false",
            reason=UNSUPPORTED_PARAMETER,
        )
    count = body.get("n")
    if type(count) is int and count > 1:
        raise InvalidArgumentError(
            "n", "only 1 is supported; send several requests", reason=UNSUPPORTED_PARAMETER
        )
    refuse_unknown(body, ChatRequest.model_fields)


def _check_together(request: ChatRequest) -> None:
    limits = {request.max_tokens, request.max_completion_tokens} - {None}
    if len(limits) > 1:
        raise InvalidArgumentError("max_tokens", "differs from max_completion_tokens; send only one of them")
    if request.top_logprobs and not request.logprobs:
        raise InvalidArgumentError("top_logprobs", "needs `logprobs: true`")
    if request.stream_options is not None and not request.wants_stream:
        raise InvalidArgumentError("stream_options", "is only allowed with `stream: true`")
    if request.wants_kala_tools:
        return  # the rest is known once KALA's tools are
    for name in ("kala_workspace", "kala_approvals", "kala_tool_limits"):
        if getattr(request, name) is not None:
            raise InvalidArgumentError(name, 'is only allowed with `kala_tools: "auto"`')
    if isinstance(request.tool_choice, NamedToolChoice):
        wanted = request.tool_choice.function.name
        if wanted not in {tool.function.name for tool in request.tools or ()}:
            raise InvalidArgumentError("tool_choice.function.name", f"{wanted[:64]!r} is not among the tools")
    elif request.tool_choice is not None and request.tool_choice != "none" and not request.tools:
        raise InvalidArgumentError("tool_choice", "is only allowed with `tools`")
