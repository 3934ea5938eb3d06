"""One chat generation as values: what is asked and what comes back.  Pure; protobuf stays in the servicer."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Final


class Role(enum.Enum):
    """Who speaks, as the OpenAI API spells it."""

    SYSTEM = "system"
    USER = "user"
    ASSISTANT = "assistant"
    TOOL = "tool"


@dataclass(frozen=True, slots=True)
class Text:
    """A piece of text."""

    text: str


@dataclass(frozen=True, slots=True)
class Image:
    """An image as a data URI."""

    data_uri: str
    detail: str


@dataclass(frozen=True, slots=True)
class Audio:
    """Sound, base64."""

    base64: str
    format: str


Part = Text | Image | Audio


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A function call by the model; in deltas a piece of one, whose id and name come with the first piece only."""

    id: str
    name: str
    arguments: str
    index: int


@dataclass(frozen=True, slots=True)
class Message:
    """One message of the conversation."""

    role: Role
    parts: tuple[Part, ...]
    name: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str = ""


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that the model may call; `parameters_json` is a JSON Schema as text, empty for none."""

    name: str
    description: str = ""
    parameters_json: str = ""
    strict: bool | None = None


class ToolMode(enum.Enum):
    """How the model is to use tools."""

    DEFAULT = ""
    NONE = "none"
    AUTO = "auto"
    REQUIRED = "required"
    NAMED = "named"


class Form(enum.Enum):
    """What form the answer must have."""

    TEXT = "text"
    JSON_OBJECT = "json_object"
    JSON_SCHEMA = "json_schema"


@dataclass(frozen=True, slots=True)
class AnswerForm:
    """The form and its schema (JSON text)."""

    form: Form = Form.TEXT
    schema_name: str = ""
    schema_json: str = ""
    strict: bool | None = None


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are drawn; None leaves it to the backend."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    seed: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    max_output_tokens: int | None = None
    stop: tuple[str, ...] = ()
    logprobs: bool = False
    top_logprobs: int | None = None

    def filled(self, defaults: Sampling) -> Sampling:
        """Take from `defaults` how tokens are drawn where this says nothing; log probabilities are only ever asked for."""
        if defaults == _NOTHING_SAID:
            return self
        return Sampling(
            temperature=defaults.temperature if self.temperature is None else self.temperature,
            top_p=defaults.top_p if self.top_p is None else self.top_p,
            top_k=defaults.top_k if self.top_k is None else self.top_k,
            seed=defaults.seed if self.seed is None else self.seed,
            presence_penalty=defaults.presence_penalty
            if self.presence_penalty is None
            else self.presence_penalty,
            frequency_penalty=defaults.frequency_penalty
            if self.frequency_penalty is None
            else self.frequency_penalty,
            max_output_tokens=defaults.max_output_tokens
            if self.max_output_tokens is None
            else self.max_output_tokens,
            stop=self.stop or defaults.stop,
            logprobs=self.logprobs,
            top_logprobs=self.top_logprobs,
        )


_NOTHING_SAID: Final = Sampling()


@dataclass(frozen=True, slots=True)
class ChatCall:
    """Everything that determines one generation but the backend and its model."""

    messages: tuple[Message, ...]
    sampling: Sampling = field(default_factory=Sampling)
    tools: tuple[Tool, ...] = ()
    tool_mode: ToolMode = ToolMode.DEFAULT
    tool_name: str = ""
    parallel_tool_calls: bool | None = None
    answer_form: AnswerForm = field(default_factory=AnswerForm)
    stream: bool = False
    reasoning_effort: str = ""
    adapters: tuple[str, ...] = ()
    """Adapters to apply, by name."""
    goes_on: bool = False
    """Whether the next backend carries on a stream that broke off, instead of an error that ends it."""

    @property
    def has_images(self) -> bool:
        return any(isinstance(part, Image) for message in self.messages for part in message.parts)

    def filled(self, defaults: Sampling) -> ChatCall:
        """Take how tokens are drawn from `defaults` where this says nothing."""
        sampling = self.sampling.filled(defaults)
        return self if sampling is self.sampling else replace(self, sampling=sampling)

    @property
    def demands_a_tool(self) -> bool:
        """Whether an answer without a tool call would be wrong."""
        return self.tool_mode in {ToolMode.REQUIRED, ToolMode.NAMED}


class FinishReason(enum.Enum):
    """Why an answer ended."""

    STOP = "stop"
    LENGTH = "length"
    TOOL_CALLS = "tool_calls"
    CONTENT_FILTER = "content_filter"


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens spent; None where the backend did not say."""

    input_tokens: int | None = None
    output_tokens: int | None = None
    cached_input_tokens: int | None = None
    reasoning_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """One token's log probability and its likeliest alternatives."""

    token: str
    logprob: float
    token_bytes: bytes
    top: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class Opened:
    """The backend began to answer as this model; the first event of a backend's stream."""

    model: str


@dataclass(frozen=True, slots=True)
class Delta:
    """A piece of the answer: all that arrived in one read."""

    text: str = ""
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    refusal: str = ""
    logprobs: tuple[TokenLogprob, ...] = ()

    @property
    def is_empty(self) -> bool:
        return not (self.text or self.reasoning or self.tool_calls or self.refusal or self.logprobs)


@dataclass(frozen=True, slots=True)
class Finish:
    """The answer's end, once, and only when the backend ended its answer in order."""

    reason: FinishReason
    usage: Usage = field(default_factory=Usage)


Event = Opened | Delta | Finish


def join_deltas(deltas: Sequence[Delta]) -> Delta:
    """Give the whole of an answer's pieces, with the pieces of each tool call put together in order of their index."""
    joined = concatenate_deltas(deltas)
    return replace(joined, tool_calls=_whole_calls(joined.tool_calls)) if joined.tool_calls else joined


def concatenate_deltas(deltas: Sequence[Delta]) -> Delta:
    """Give the pieces one after the other, those of tool calls as they came."""
    if len(deltas) == 1:
        return deltas[0]
    return Delta(
        text="".join([delta.text for delta in deltas]),
        reasoning="".join([delta.reasoning for delta in deltas]),
        tool_calls=tuple(call for delta in deltas for call in delta.tool_calls),
        refusal="".join([delta.refusal for delta in deltas]),
        logprobs=tuple(logprob for delta in deltas for logprob in delta.logprobs),
    )


def _whole_calls(pieces: Iterable[ToolCall]) -> tuple[ToolCall, ...]:
    # Put together at the end: adding each piece to all before it takes time with the square of their number.
    calls: dict[int, list[ToolCall]] = {}
    for piece in pieces:
        calls.setdefault(piece.index, []).append(piece)
    return tuple(
        ToolCall(
            id=next((piece.id for piece in calls[index] if piece.id), ""),
            name=next((piece.name for piece in calls[index] if piece.name), ""),
            arguments="".join([piece.arguments for piece in calls[index]]),
            index=index,
        )
        for index in sorted(calls)
    )


PROBE: Final = ChatCall(
    messages=(Message(Role.USER, (Text("Say OK."),)),),
    sampling=Sampling(temperature=0.0, max_output_tokens=1),
)
"""A fixed text of our own, one token long: it proves that a model generates, and its answer is thrown away."""
