"""What `/v1/completions`, `/v1/embeddings` and `/v1/rerank` accept, strictly typed, with this platform's limits.  Pure.

Token ids are refused everywhere: no judge can read them, so nobody could say what was asked.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError

from gateway.chat_schema import MAX_MODEL_CHARS, MAX_OUTPUT_TOKENS, MAX_STOP_CHARS, MAX_STOPS, StreamOptions
from gateway.errors import UNSUPPORTED_PARAMETER
from gateway.validation import first_error, refuse_unknown
from kala.errors import InvalidArgumentError

MAX_INPUTS: Final = 2048
MAX_DIMENSIONS: Final = 65_536
MAX_TEXT_CHARS: Final = 1_048_576
MAX_PROMPT_CHARS: Final = 4 * 1_048_576
MAX_QUERY_CHARS: Final = 65_536
MAX_DOCUMENTS: Final = 1000
MAX_TOP_N: Final = 2**32 - 1
"""The limits of the contract's EmbedAction, CompleteAction and RerankAction."""

UNJUDGED_PART: Final = "UNJUDGED_PART"

TOKEN_IDS: Final = (
    "holds token ids, which no judge can read; send the text (in LangChain: check_embedding_ctx_length=False)"
)

Json = dict[str, Any]  # Any: JSON

_Text = Annotated[str, Field(min_length=1, max_length=MAX_TEXT_CHARS)]
_Prompt = Annotated[str, Field(min_length=1, max_length=MAX_PROMPT_CHARS)]
_Identifier = Annotated[str, Field(min_length=1, max_length=256)]
_Model = Annotated[str, Field(max_length=MAX_MODEL_CHARS)]
_Stop = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARS)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


def _kind(value: object) -> str | None:
    if isinstance(value, str):
        return "<one>"
    if isinstance(value, dict):
        return "<object>"
    return "<list>" if isinstance(value, list) else None


def _one_or_list(one: Any, *, most: int, least: int = 1) -> Any:  # Any: builds a type for pydantic
    return Annotated[
        Annotated[one, Tag("<one>")]
        | Annotated[list[one], Tag("<list>"), Field(min_length=least, max_length=most)],
        Discriminator(
            _kind,
            custom_error_type="text_or_texts",
            custom_error_message="must be a string or a list of strings",
        ),
    ]


class TextRequest(_Strict):
    """What every one of these requests may say beside its own fields."""

    model: _Model | None = None
    user: _Identifier | None = None
    safety_identifier: _Identifier | None = None

    @property
    def person(self) -> str:
        """The person it is for, for the log; empty when not named."""
        return self.safety_identifier or self.user or ""


class CompletionRequest(TextRequest):
    """The body of a completion."""

    prompt: _one_or_list(_Prompt, most=1)  # type: ignore[valid-type]  # built by a function to say it once
    suffix: Annotated[str, Field(max_length=MAX_PROMPT_CHARS)] | None = None
    echo: bool | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0, le=1000)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), le=2**63 - 1)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    max_tokens: Annotated[int, Field(ge=1, le=MAX_OUTPUT_TOKENS)] | None = None
    stop: _one_or_list(_Stop, most=MAX_STOPS, least=0) | None = None  # type: ignore[valid-type]
    n: Annotated[int, Field(ge=1, le=1)] | None = None
    best_of: Annotated[int, Field(ge=1, le=1)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @property
    def text(self) -> str:
        """The one text to continue."""
        return self.prompt if isinstance(self.prompt, str) else self.prompt[0]

    @property
    def stops(self) -> list[str]:
        """The texts that end the answer."""
        return [self.stop] if isinstance(self.stop, str) else self.stop or []

    @property
    def wants_usage(self) -> bool:
        """Whether a stream is to end with a chunk of usage."""
        return bool(self.stream_options and self.stream_options.include_usage)


class EmbeddingRequest(TextRequest):
    """The body of an embedding call."""

    input: _one_or_list(_Text, most=MAX_INPUTS)  # type: ignore[valid-type]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Field(ge=1, le=MAX_DIMENSIONS)] | None = None

    @property
    def texts(self) -> list[str]:
        """The texts to embed."""
        return [self.input] if isinstance(self.input, str) else self.input


class RerankDocument(_Strict):
    """A document as an object."""

    text: _Text


_Document = Annotated[
    Annotated[_Text, Tag("<one>")] | Annotated[RerankDocument, Tag("<object>")],
    Discriminator(
        _kind,
        custom_error_type="document_type",
        custom_error_message='must be a string or an object {"text": …}',
    ),
]


class RerankRequest(TextRequest):
    """The body of a ranking, as Jina, Cohere and llama-server have it."""

    query: Annotated[str, Field(min_length=1, max_length=MAX_QUERY_CHARS)]
    documents: Annotated[list[_Document], Field(min_length=1, max_length=MAX_DOCUMENTS)]
    top_n: Annotated[int, Field(ge=1, le=MAX_TOP_N)] | None = None
    return_documents: bool | None = None

    @property
    def texts(self) -> list[str]:
        """The documents' texts."""
        return [each if isinstance(each, str) else each.text for each in self.documents]


_Request = TypeVar("_Request", CompletionRequest, EmbeddingRequest, RerankRequest)


def parse_completion_request(body: Json) -> CompletionRequest:
    """Validate a completion, or raise InvalidArgumentError that names the field, the limit and the cure."""
    _refuse(body, {"logit_bias": "local backends disagree about token ids; remove it",
                   "logprobs": "ask /v1/chat/completions for log probabilities"})  # fmt: skip
    _refuse_token_ids(body, "prompt")
    for name in ("n", "best_of"):
        if type(body.get(name)) is int and body[name] > 1:
            raise _unsupported(name, "only 1 is supported; send several requests")
    if isinstance(body.get("prompt"), list) and len(body["prompt"]) > 1:
        raise _unsupported("prompt", "only one text is continued at a time; send several requests")
    request = _validated(CompletionRequest, body)
    if request.stream_options is not None and not request.stream:
        raise InvalidArgumentError("stream_options", "is only allowed with `stream: true`")
    return request


def parse_embedding_request(body: Json) -> EmbeddingRequest:
    """Validate an embedding call, or raise InvalidArgumentError that names the field, the limit and the cure."""
    _refuse_token_ids(body, "input")
    return _validated(EmbeddingRequest, body)


def parse_rerank_request(body: Json) -> RerankRequest:
    """Validate a ranking, or raise InvalidArgumentError that names the field, the limit and the cure."""
    _refuse(body, {"max_tokens_per_doc": "documents are never cut; send shorter ones",
                   "max_chunks_per_doc": "documents are never cut; send shorter ones"})  # fmt: skip
    return _validated(RerankRequest, body)


def _refuse(body: Json, cures: Mapping[str, str]) -> None:
    for name, cure in cures.items():
        # null, 0 and {} ask for nothing, and generated clients send them.
        if body.get(name):
            raise _unsupported(name, f"is not supported: {cure}")
        body.pop(name, None)


def _unsupported(name: str, problem: str) -> InvalidArgumentError:
    return InvalidArgumentError(name, problem, reason=UNSUPPORTED_PARAMETER)


def _refuse_token_ids(body: Json, field: str) -> None:
    value = body.get(field)
    for index, item in enumerate(value if isinstance(value, list) else ()):
        ids = item if isinstance(item, list) else [item]
        if any(type(each) is int for each in ids):
            raise InvalidArgumentError(f"{field}[{index}]", TOKEN_IDS, reason=UNJUDGED_PART)


def _validated(kind: type[_Request], body: Json) -> _Request:
    refuse_unknown(body, kind.model_fields)
    try:
        return kind.model_validate(body)
    except ValidationError as error:
        raise first_error(error, body) from error
