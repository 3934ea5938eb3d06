"""What `POST /v1/moderations` accepts: OpenAI's request, strictly typed, with this platform's limits.  Pure.

Three fields go beyond OpenAI's: `kala_stage` says whose words the texts are, `kala_request_text` what an output answers,
and `safety_identifier` (or `user`) names the person for the log. The model's name is taken as a hint: there is one judge.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError

from gateway.validation import first_error, refuse_unknown
from kala.errors import InvalidArgumentError
from kala.ethics.v1 import ethics_pb2

MAX_INPUTS: Final = 32
"""Texts, or parts of one input, in a call: a page of chat. Each text is a judgement of its own."""

MAX_CHARS: Final = 1_048_576
"""Of all texts of a call together: what ethics judges as one text, and a few seconds of judging at most."""

MAX_REQUEST_CHARS: Final = 65_536
"""Of the request that an output answers: context for the judges, as beside a streamed output."""

MAX_MODEL_CHARS: Final = 256
MAX_IDENTIFIER_CHARS: Final = 256

UNJUDGED_PART: Final = "UNJUDGED_PART"

STAGES: Final = {
    "request": ethics_pb2.STAGE_REQUEST,
    "output": ethics_pb2.STAGE_OUTPUT,
    "tool_result": ethics_pb2.STAGE_TOOL_RESULT,
}

_Text = Annotated[str, Field(min_length=1, max_length=MAX_CHARS)]
_Identifier = Annotated[str, Field(min_length=1, max_length=MAX_IDENTIFIER_CHARS)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class ModerationText(_Strict):
    """Text."""

    type: Literal["text"]
    text: _Text


class ModerationImageUrl(_Strict):
    """Where an image is; it is never fetched."""

    url: str
    detail: Literal["low", "high", "auto"] | None = None


class ModerationImage(_Strict):
    """An image, which no judge here can read."""

    type: Literal["image_url"]
    image_url: ModerationImageUrl


def _input_kind(value: object) -> str | None:
    if isinstance(value, str):
        return "<text>"
    if not isinstance(value, list):
        return None
    return "<parts>" if any(isinstance(item, dict) for item in value) else "<texts>"


_Part = Annotated[ModerationText | ModerationImage, Field(discriminator="type")]
_Input = Annotated[
    Annotated[_Text, Tag("<text>")]
    | Annotated[list[_Text], Tag("<texts>"), Field(min_length=1, max_length=MAX_INPUTS)]
    | Annotated[list[_Part], Tag("<parts>"), Field(min_length=1, max_length=MAX_INPUTS)],
    Discriminator(
        _input_kind,
        custom_error_type="input_type",
        custom_error_message="must be a string, a list of strings or a list of content parts",
    ),
]


class ModerationRequest(_Strict):
    """The body of a moderation."""

    input: _Input
    model: Annotated[str, Field(max_length=MAX_MODEL_CHARS)] | None = None
    kala_stage: Literal["request", "output", "tool_result"] | None = None
    kala_request_text: Annotated[str, Field(max_length=MAX_REQUEST_CHARS)] | None = None
    user: _Identifier | None = None
    safety_identifier: _Identifier | None = None


@dataclass(frozen=True, slots=True)
class Question:
    """What is to be judged: every text gets a result of its own."""

    texts: tuple[str, ...]
    fields: tuple[str, ...]  # where each text stands in the request, for errors
    unjudged: tuple[str, ...]  # images that the policy leaves out
    stage: Literal["request", "output", "tool_result"]
    request_text: str
    person: str


def parse_moderation_request(body: dict[str, Any], *, allows_unjudged: bool) -> Question:  # Any: JSON
    """Validate a request, or raise InvalidArgumentError that names the field, the limit and the cure."""
    refuse_unknown(body, ModerationRequest.model_fields)
    try:
        request = ModerationRequest.model_validate(body)
    except ValidationError as error:
        raise first_error(error, body) from error
    if request.kala_request_text and request.kala_stage != "output":
        raise InvalidArgumentError("kala_request_text", 'is only allowed with `kala_stage: "output"`')
    texts, fields, unjudged = _texts_of(request.input, allows_unjudged=allows_unjudged)
    _check_size(texts)
    return Question(
        texts=texts,
        fields=fields,
        unjudged=unjudged,
        stage=request.kala_stage or "request",
        request_text=request.kala_request_text or "",
        person=request.safety_identifier or request.user or "",
    )


_Found = tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]


def _texts_of(
    given: str | Sequence[str | ModerationText | ModerationImage], *, allows_unjudged: bool
) -> _Found:
    """Give the texts, their fields, and the parts that nobody judges; parts are one input, so their texts are one."""
    if isinstance(given, str):
        return (given,), ("input",), ()
    if isinstance(given[0], str):
        texts = tuple(text for text in given if isinstance(text, str))
        return texts, tuple(f"input[{index}]" for index in range(len(texts))), ()
    words = [part.text for part in given if isinstance(part, ModerationText)]
    images = tuple(f"input[{index}]" for index, part in enumerate(given) if isinstance(part, ModerationImage))
    if images and not allows_unjudged:
        raise InvalidArgumentError(
            images[0],
            "is an image, which no judge here can read; describe in words what it shows",
            reason=UNJUDGED_PART,
        )
    if not words:
        raise InvalidArgumentError(
            "input", "holds no text, so there is nothing to judge; add a text part", reason=UNJUDGED_PART
        )
    return ("\n".join(words),), ("input",), images


def _check_size(texts: Sequence[str]) -> None:
    size = sum(map(len, texts))
    if size > MAX_CHARS:
        raise InvalidArgumentError(
            "input", f"has {size} characters in all, at most {MAX_CHARS} are judged; send several requests"
        )
