"""What `POST /v1/responses` accepts: OpenAI's request, strictly typed, with this platform's limits.

A parameter that would change the answer and cannot be honoured is refused by name; hints that cannot change it
(`service_tier`, `prompt_cache_key`) are accepted and do nothing.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

import orjson
from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError

from gateway.chat_schema import (
    MAX_DESCRIPTION_CHARS,
    MAX_ID_CHARS,
    MAX_MESSAGES,
    MAX_METADATA,
    MAX_MODEL_CHARS,
    MAX_OUTPUT_TOKENS,
    MAX_PARTS,
    MAX_TOOLS,
    ToolLimits,
)
from gateway.errors import UNSUPPORTED_PARAMETER
from gateway.responses.input_schema import FUNCTION_NAME, InputItem
from gateway.validation import first_error, refuse_unknown
from kala.errors import InvalidArgumentError

LOGPROBS: Final = "message.output_text.logprobs"

_UNSUPPORTED: Final = {
    "access_programs": "remove it",
    "context_management": "use `truncation`",
    "conversation": "use `previous_response_id`, or sessions with chat completions",
    "image": "images are not generated",
    "moderation": "every response is judged; remove it",
    "prompt": "send `instructions` and `input`",
    "prompt_cache_options": "remove it",
}
"""Parameters of OpenAI that are known here and not served, with the cure."""

_WORKSPACE: Final = r"^workspaces/[A-Za-z0-9._-]{1,128}$"
_APPROVAL: Final = r"^approvals/[A-Za-z0-9._-]{1,128}$"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class FunctionTool(_Strict):
    """A function of the client's that the model may call."""

    type: Literal["function"]
    name: Annotated[str, Field(pattern=FUNCTION_NAME)]
    description: Annotated[str, Field(max_length=MAX_DESCRIPTION_CHARS)] | None = None
    parameters: dict[str, Any] | None = None  # Any: JSON Schema, passed on as it is
    strict: bool | None = None


class FunctionChoice(_Strict):
    """A demand for one function, or one of the functions that are allowed."""

    type: Literal["function"]
    name: Annotated[str, Field(min_length=1, max_length=64)]


class AllowedTools(_Strict):
    """A choice among some of the tools."""

    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: Annotated[list[FunctionChoice], Field(min_length=1, max_length=MAX_TOOLS)]


class PlainFormat(_Strict):
    """Free text, or any JSON object."""

    type: Literal["text", "json_object"]


class SchemaFormat(_Strict):
    """JSON by a schema."""

    type: Literal["json_schema"]
    name: Annotated[str, Field(pattern=FUNCTION_NAME)]
    description: Annotated[str, Field(max_length=MAX_DESCRIPTION_CHARS)] | None = None
    schema_: Annotated[dict[str, Any], Field(alias="schema")]  # Any: JSON Schema, passed on as it is
    strict: bool | None = None


class TextConfig(_Strict):
    """What kind of text is wanted."""

    format: Annotated[PlainFormat | SchemaFormat, Field(discriminator="type")] | None = None
    verbosity: Literal["medium"] | None = None


class Reasoning(_Strict):
    """How much the model is to think."""

    effort: Literal["none", "minimal", "low", "medium", "high"] | None = None
    summary: Literal["auto"] | None = None
    generate_summary: Literal["auto"] | None = None


class StreamOptions(_Strict):
    """Options of a stream."""

    include_obfuscation: bool | None = None


def _choice_kind(value: object) -> str | None:
    if isinstance(value, str):
        return "<mode>"
    if not isinstance(value, dict):
        return None
    return "<allowed>" if value.get("type") == "allowed_tools" else "<named>"


_ToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("<mode>")]
    | Annotated[AllowedTools, Tag("<allowed>")]
    | Annotated[FunctionChoice, Tag("<named>")],
    Discriminator(
        _choice_kind,
        custom_error_type="tool_choice_type",
        custom_error_message='must be "none", "auto", "required" or an object that names functions',
    ),
]


def _input_kind(value: object) -> str | None:
    if isinstance(value, str):
        return "<text>"
    return "<items>" if isinstance(value, list) else None


_Input = Annotated[
    Annotated[str, Tag("<text>")]
    | Annotated[list[InputItem], Tag("<items>"), Field(max_length=MAX_MESSAGES)],
    Discriminator(
        _input_kind,
        custom_error_type="input_type",
        custom_error_message="must be a string or a list of items",
    ),
]

_Identifier = Annotated[str, Field(min_length=1, max_length=256)]
_MetadataKey = Annotated[str, Field(max_length=64)]
_MetadataValue = Annotated[str, Field(max_length=512)]
_Include = Literal[
    "message.output_text.logprobs",
    "reasoning.encrypted_content",
    "message.input_image.image_url",
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "code_interpreter_call.outputs",
    "computer_call_output.output.image_url",
]
"""OpenAI's words. All but the first are of items that do not come here, or of what is always there."""


class ResponseRequest(_Strict):
    """The body of a response."""

    model: Annotated[str, Field(max_length=MAX_MODEL_CHARS)] | None = None
    input: _Input | None = None
    instructions: str | None = None
    previous_response_id: Annotated[str, Field(min_length=1, max_length=MAX_ID_CHARS)] | None = None
    store: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    background: bool | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    max_output_tokens: Annotated[int, Field(ge=1, le=MAX_OUTPUT_TOKENS)] | None = None
    max_tool_calls: Annotated[int, Field(ge=0)] | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    tools: Annotated[list[FunctionTool], Field(max_length=MAX_TOOLS)] | None = None
    tool_choice: _ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    text: TextConfig | None = None
    reasoning: Reasoning | None = None
    include: Annotated[list[_Include], Field(max_length=MAX_PARTS)] | None = None
    truncation: Literal["auto", "disabled"] | None = None
    metadata: Annotated[dict[_MetadataKey, _MetadataValue], Field(max_length=MAX_METADATA)] | None = None
    user: _Identifier | None = None
    safety_identifier: _Identifier | None = None
    service_tier: Literal["auto", "default"] | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: Literal["in_memory", "24h"] | None = None
    kala_tools: Literal["auto", "none"] | None = None
    kala_workspace: Annotated[str, Field(pattern=_WORKSPACE)] | None = None
    kala_approvals: (
        Annotated[
            dict[
                Annotated[str, Field(min_length=1, max_length=MAX_ID_CHARS)],
                Annotated[str, Field(pattern=_APPROVAL)],
            ],
            Field(max_length=MAX_TOOLS),
        ]
        | None
    ) = None

    kala_tool_limits: ToolLimits | None = None

    @property
    def is_stored(self) -> bool:
        """Tell whether it can be asked for later."""
        return self.store is not False

    @property
    def wants_logprobs(self) -> bool:
        """Tell whether log probabilities are wanted."""
        return bool(self.top_logprobs) or LOGPROBS in (self.include or ())

    @property
    def wants_kala_tools(self) -> bool:
        """Tell whether the gateway is to run KALA's tools."""
        return self.kala_tools == "auto"

    @property
    def person(self) -> str:
        """Name the person that the request is about; empty where it names none."""
        return self.safety_identifier or self.user or ""


def parse_response_request(body: dict[str, Any]) -> ResponseRequest:  # Any: JSON
    """Validate a request, or raise InvalidArgumentError that names the field, the limit and the cure."""
    for name, cure in _UNSUPPORTED.items():
        # null, {} and [] ask for nothing, and generated clients send them.
        if body.get(name):
            raise InvalidArgumentError(name, f"is not supported: {cure}", reason=UNSUPPORTED_PARAMETER)
        body.pop(name, None)
    refuse_unknown(body, ResponseRequest.model_fields)
    _check_numbers(body)
    try:
        request = ResponseRequest.model_validate(body)
    except ValidationError as error:
        raise first_error(error, body) from error
    _check_together(request)
    return request


def _check_numbers(body: dict[str, Any]) -> None:  # Any: JSON
    """Refuse what could not be written back: a response repeats the schemas of its request."""
    for name, value in body.items():
        try:
            orjson.dumps(value)
        except TypeError as error:
            raise InvalidArgumentError(
                name, "holds an integer of more than 64 bits; write it with an exponent, as in 1e20"
            ) from error


def _check_together(request: ResponseRequest) -> None:
    if not request.input and request.previous_response_id is None:
        raise InvalidArgumentError("input", "is required: a text or a list of items")
    if request.stream_options is not None and not request.stream:
        raise InvalidArgumentError("stream_options", "is only allowed with `stream: true`")
    if request.background and request.store is False:
        raise InvalidArgumentError(
            "store", "must not be false with `background: true`: it is asked for later"
        )
    if request.background and request.stream:
        raise InvalidArgumentError(
            "stream",
            "is not supported with `background: true`; ask for the response with `GET …?stream=true`",
            reason=UNSUPPORTED_PARAMETER,
        )
    _check_tools(request)


def _check_tools(request: ResponseRequest) -> None:
    for name in ("kala_workspace", "kala_approvals", "kala_tool_limits", "max_tool_calls"):
        if getattr(request, name) is not None and not request.wants_kala_tools:
            raise InvalidArgumentError(name, 'is only allowed with `kala_tools: "auto"`')
    if request.max_tool_calls is not None and request.kala_tool_limits is not None:
        raise InvalidArgumentError("max_tool_calls", "is `calls` of kala_tool_limits; send only one of them")
    choice, known = request.tool_choice, {tool.name for tool in request.tools or ()}
    if isinstance(choice, AllowedTools):
        for index, tool in enumerate(choice.tools):
            _require_known(tool.name, known, f"tool_choice.tools[{index}].name")
    if request.wants_kala_tools:
        return  # the rest is known once KALA's tools are
    if isinstance(choice, FunctionChoice):
        _require_known(choice.name, known, "tool_choice.name")
    elif choice == "required" and not known:
        raise InvalidArgumentError("tool_choice", "needs `tools`")


def _require_known(name: str, known: set[str], field: str) -> None:
    if name not in known:
        raise InvalidArgumentError(field, f"{name[:64]!r} is not among the tools")
