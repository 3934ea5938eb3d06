"""The items of a response's input: messages, calls of functions and their results, and what clients send back."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag

from gateway.chat_schema import MAX_ID_CHARS, MAX_NAME_CHARS, MAX_PARTS

FUNCTION_NAME: Final = r"^[A-Za-z0-9_-]{1,64}$"
_IMAGE_DATA_URI: Final = r"^data:image/(?:png|jpeg|webp|gif);base64,[A-Za-z0-9+/]"

MESSAGE: Final = "message"
CALL: Final = "function_call"
CALL_OUTPUT: Final = "function_call_output"
KALA_CALL: Final = "mcp_call"
APPROVAL_REQUEST: Final = "mcp_approval_request"
APPROVAL_RESPONSE: Final = "mcp_approval_response"
REASONING: Final = "reasoning"
REFERENCE: Final = "item_reference"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class InputText(_Strict):
    """Text."""

    type: Literal["input_text"]
    text: str
    prompt_cache_breakpoint: Any = None  # Any: never read


class InputImage(_Strict):
    """An image inside the request."""

    type: Literal["input_image"]
    image_url: Annotated[str, Field(pattern=_IMAGE_DATA_URI)]
    detail: Literal["low", "high", "auto"] | None = None
    file_id: None = None


class OutputText(_Strict):
    """Text of an earlier answer."""

    type: Literal["output_text"]
    text: str
    annotations: list[Any] | None = None  # Any: never read
    logprobs: list[Any] | None = None  # Any: never read


class Refusal(_Strict):
    """An earlier refusal of the model."""

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


_Status = Literal["in_progress", "completed", "incomplete"]
_Id = Annotated[str, Field(min_length=1, max_length=MAX_ID_CHARS)]
_InputPart = Annotated[InputText | InputImage, Field(discriminator="type")]
_OutputPart = Annotated[OutputText | Refusal | InputText, Field(discriminator="type")]


class InputMessage(_Strict):
    """What a person or an operator says."""

    type: Literal["message"] = "message"
    role: Literal["user", "system", "developer"]
    content: _text_or(_InputPart)  # type: ignore[valid-type]  # built by a function to say it once
    id: _Id | None = None
    status: _Status | None = None
    phase: Any = None  # Any: never read


class OutputMessage(_Strict):
    """What the model said before."""

    type: Literal["message"] = "message"
    role: Literal["assistant"]
    content: Annotated[
        Annotated[str, Tag("<text>")]
        | Annotated[list[_OutputPart], Tag("<parts>"), Field(max_length=MAX_PARTS)],
        Discriminator(_content_kind, custom_error_type="content_type",
                      custom_error_message="must be a string or a list of content parts"),
    ]  # fmt: skip
    id: _Id | None = None
    status: _Status | None = None
    phase: Any = None  # Any: never read


class FunctionCall(_Strict):
    """An earlier call by the model."""

    type: Literal["function_call"]
    call_id: _Id
    name: Annotated[str, Field(min_length=1, max_length=MAX_NAME_CHARS)]
    arguments: str
    id: _Id | None = None
    status: _Status | None = None
    namespace: None = None
    caller: Any = None  # Any: never read


class FunctionCallOutput(_Strict):
    """A function's result."""

    type: Literal["function_call_output"]
    call_id: _Id
    output: _text_or(InputText)  # type: ignore[valid-type]
    id: _Id | None = None
    status: _Status | None = None
    name: str | None = None
    caller: Any = None  # Any: never read


class ReasoningItem(_Strict):
    """What the model thought before; it is not told again."""

    type: Literal["reasoning"]
    id: _Id | None = None
    summary: list[Any] | None = None  # Any: never read
    content: list[Any] | None = None  # Any: never read
    encrypted_content: str | None = None
    status: _Status | None = None


class KalaCall(_Strict):
    """An earlier call of one of KALA's tools, with its result."""

    type: Literal["mcp_call"]
    id: _Id
    name: Annotated[str, Field(min_length=1, max_length=MAX_NAME_CHARS)]
    arguments: str
    server_label: Literal["kala"]
    output: str | None = None
    error: Any = None  # Any: never read
    status: Literal["in_progress", "completed", "incomplete", "calling", "failed"] | None = None
    approval_request_id: _Id | None = None
    kala: Any = None  # Any: never read; what happened stands in the log


class ApprovalRequest(_Strict):
    """An earlier call of one of KALA's tools that waits for a person."""

    type: Literal["mcp_approval_request"]
    id: _Id
    name: Annotated[str, Field(min_length=1, max_length=MAX_NAME_CHARS)]
    arguments: str
    server_label: Literal["kala"]
    kala: Annotated[dict[str, Any], Field(max_length=8)] | None = None  # Any: JSON, read with care


class ApprovalResponse(_Strict):
    """Says that such a call is to go on, or not; a person has decided on the approval itself elsewhere."""

    type: Literal["mcp_approval_response"]
    approval_request_id: _Id
    approve: bool
    id: _Id | None = None
    reason: Annotated[str, Field(max_length=512)] | None = None


class ItemReference(_Strict):
    """An item of a stored response, by its id."""

    type: Literal["item_reference"]
    id: _Id


_BY_TYPE: Final = {
    "function_call",
    "function_call_output",
    "reasoning",
    "mcp_call",
    "mcp_approval_request",
    "mcp_approval_response",
    "item_reference",
}


def _item_kind(value: object) -> str | None:
    if not isinstance(value, dict):
        return None
    kind = value.get("type")
    if kind is None or kind == "message":  # not in a set: it may be a list
        return "<assistant>" if value.get("role") == "assistant" else "<message>"
    return f"<{kind}>" if isinstance(kind, str) and kind in _BY_TYPE else None


InputItem = Annotated[
    Annotated[InputMessage, Tag("<message>")]
    | Annotated[OutputMessage, Tag("<assistant>")]
    | Annotated[FunctionCall, Tag("<function_call>")]
    | Annotated[FunctionCallOutput, Tag("<function_call_output>")]
    | Annotated[ReasoningItem, Tag("<reasoning>")]
    | Annotated[KalaCall, Tag("<mcp_call>")]
    | Annotated[ApprovalRequest, Tag("<mcp_approval_request>")]
    | Annotated[ApprovalResponse, Tag("<mcp_approval_response>")]
    | Annotated[ItemReference, Tag("<item_reference>")],
    Discriminator(
        _item_kind,
        custom_error_type="item_type",
        custom_error_message=(
            "must be an item whose type is message, function_call, function_call_output, reasoning, mcp_call, "
            "mcp_approval_request, mcp_approval_response or item_reference"
        ),
    ),
]
