"""The OpenAI chat protocol as bytes: request bodies out, answers and chunks in.  Pure.

Reads what servers really send: null and missing fields, reasoning under two names, tool arguments as object, errors
inside a 200.  Anything that cannot be read raises BackendFailure; nothing is guessed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

import orjson

from services.inference.backend import BackendFailure
from services.inference.backends.wire_json import (
    MAX_CALL_INDEX,
    Json,
    arguments_text,
    count,
    parse_object,
    read_logprobs,
    string,
)
from services.inference.chat import (
    Audio,
    ChatCall,
    Delta,
    Event,
    Finish,
    FinishReason,
    Form,
    Image,
    Message,
    Opened,
    Part,
    Sampling,
    Text,
    Tool,
    ToolCall,
    ToolMode,
    Usage,
    concatenate_deltas,
)
from services.inference.failures import failure_of_error, read_error

DONE: Final = b"[DONE]"

_FINISH_REASONS: Final = {
    "stop": FinishReason.STOP,
    "length": FinishReason.LENGTH,
    "tool_calls": FinishReason.TOOL_CALLS,
    "function_call": FinishReason.TOOL_CALLS,
    "content_filter": FinishReason.CONTENT_FILTER,
}

_SAMPLING_FIELDS: Final = ("temperature", "top_p", "top_k", "seed", "presence_penalty", "frequency_penalty")


def request_body(
    call: ChatCall,
    *,
    model: str,
    stream: bool,
    max_output_tokens: int,
    limit_field: str = "max_tokens",
    extra: Json | None = None,
) -> bytes:
    """Write the request; the token limit is always there, because servers' own defaults cut answers or never end.

    `extra` holds what only one server understands.
    """
    body: Json = {"model": model, "messages": [_message(message) for message in call.messages]}
    if stream:
        add_stream(body)
    sampling = call.sampling
    add_sampling(body, sampling, max_output_tokens=max_output_tokens, limit_field=limit_field)
    if sampling.logprobs:
        body["logprobs"] = True
        if sampling.top_logprobs is not None:
            body["top_logprobs"] = sampling.top_logprobs
    if call.tools:
        _add_tools(body, call)
    _add_form(body, call)
    if call.reasoning_effort:
        body["reasoning_effort"] = call.reasoning_effort
    return orjson.dumps(body | extra if extra else body)


def add_stream(body: Json) -> None:
    """Ask for a stream that ends with its usage."""
    body["stream"] = True
    # Always complete: mlx_lm.server dies in mid-stream on an empty object.
    body["stream_options"] = {"include_usage": True}


def add_sampling(
    body: Json, sampling: Sampling, *, max_output_tokens: int, limit_field: str = "max_tokens"
) -> None:
    """Write how tokens are drawn and how many at most."""
    for name in _SAMPLING_FIELDS:
        value = getattr(sampling, name)
        if value is not None:
            body[name] = value
    body[limit_field] = min(sampling.max_output_tokens or max_output_tokens, max_output_tokens)
    if sampling.stop:
        body["stop"] = list(sampling.stop)


def read_completion(body: bytes, *, is_text: bool = False) -> list[Event]:
    """Read a whole answer; raises BackendFailure for an error body, an empty one, or one that is no answer.

    `is_text` says that a text completion was asked for, whose words are a choice's `text`.
    """
    if not body.strip():
        raise BackendFailure("EMPTY_ANSWER", "answered 200 with an empty body")
    parsed = parse_object(body)
    error = read_error(parsed)
    if error is not None:
        raise failure_of_error(200, error)
    choice = _choice(parsed)
    if choice is None:
        raise BackendFailure("EMPTY_ANSWER", "answered without a choice")
    message = _text_message(choice) if is_text else choice.get("message")
    finish = choice.get("finish_reason")
    if not isinstance(message, dict) or not isinstance(finish, str):
        raise BackendFailure("MALFORMED_ANSWER", "answered without a message or a finish reason")
    events: list[Event] = [Opened(string(parsed.get("model")))]
    delta = concatenate_deltas([_delta(message, choice)])
    if not delta.is_empty:
        events.append(delta)
    events.append(Finish(_finish_reason(finish), read_usage(parsed.get("usage"))))
    return events


class ChunkReader:
    """Turns the data payloads of one stream into events; success needs a finish reason and `[DONE]`.

    `is_text` as of read_completion.
    """

    __slots__ = ("_finish", "_is_done", "_is_open", "_is_text", "_model", "_usage")

    def __init__(self, *, is_text: bool = False) -> None:
        self._is_text = is_text
        self._is_open = False
        self._model = ""
        self._is_done = False
        self._finish: FinishReason | None = None
        self._usage = Usage()

    @property
    def is_done(self) -> bool:
        """Whether the stream's last event was given."""
        return self._is_done

    def read(self, payloads: Iterable[tuple[bytes, bytes]]) -> Iterator[Event]:
        """Give the events of one read, its text joined into one Delta; raises BackendFailure."""
        deltas: list[Delta] = []
        for event, payload in payloads:
            if self._is_done:
                break
            if payload.strip() == DONE:
                self._is_done = True
            else:
                yield from self._opened(chunk := self._chunk(event, payload))
                deltas.extend(self._deltas(chunk))
        if deltas:
            joined = concatenate_deltas(deltas)
            if not joined.is_empty:
                yield joined
        if self._is_done:
            yield self._end()

    def cut(self) -> BackendFailure:
        """Explain a stream that ended without `[DONE]`."""
        if not self._is_open:
            return BackendFailure("EMPTY_ANSWER", "answered 200 with an empty stream")
        if self._finish is None:
            return BackendFailure("STREAM_CUT", "closed the stream in the middle of the answer")
        return BackendFailure("STREAM_UNTERMINATED", "closed the stream without [DONE]")

    def _chunk(self, event: bytes, payload: bytes) -> Json:
        chunk = parse_object(payload)
        error = read_error(chunk)
        if error is not None:
            raise failure_of_error(0, error)
        if event == b"error":
            raise BackendFailure("BACKEND_ERROR", "reported an error inside its answer")
        return chunk

    def _opened(self, chunk: Json) -> Iterator[Event]:
        model = string(chunk.get("model")) or self._model
        if self._model and model != self._model:
            raise BackendFailure("WRONG_MODEL", "changed its model in the middle of the answer")
        if not self._is_open or model != self._model:
            # Again when the first chunks name no model, so that whoever reads this can still look at it.
            yield Opened(model)
        self._is_open, self._model = True, model

    def _deltas(self, chunk: Json) -> Iterator[Delta]:
        if chunk.get("usage"):
            self._usage = read_usage(chunk["usage"])
        choice = _choice(chunk)
        if choice is None:
            return
        delta = _text_message(choice) if self._is_text else choice.get("delta")
        if isinstance(delta, dict):
            yield _delta(delta, choice)
        finish = choice.get("finish_reason")
        if isinstance(finish, str) and finish:
            self._finish = _finish_reason(finish)

    def _end(self) -> Finish:
        if self._finish is None:
            raise (
                self.cut()
                if self._is_open
                else BackendFailure("EMPTY_ANSWER", "answered 200 with an empty stream")
            )
        return Finish(self._finish, self._usage)


def _message(message: Message) -> Json:
    body: Json = {"role": message.role.value, "content": _content(message.parts)}
    if message.name:
        body["name"] = message.name
    if message.tool_calls:
        body["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in message.tool_calls
        ]
    if message.tool_call_id:
        body["tool_call_id"] = message.tool_call_id
    return body


def _content(parts: tuple[Part, ...]) -> str | list[Json]:
    # A plain string is the one form that every server and every chat template reads.
    if not parts:
        return ""
    if len(parts) == 1 and isinstance(parts[0], Text):
        return parts[0].text
    return [_part(part) for part in parts]


def _part(part: Part) -> Json:
    match part:
        case Text(text):
            return {"type": "text", "text": text}
        case Image(data_uri, detail):
            image = {"url": data_uri, "detail": detail} if detail else {"url": data_uri}
            return {"type": "image_url", "image_url": image}
        case Audio(base64, audio_format):
            return {"type": "input_audio", "input_audio": {"data": base64, "format": audio_format}}


def _add_tools(body: Json, call: ChatCall) -> None:
    body["tools"] = [{"type": "function", "function": function_json(tool)} for tool in call.tools]
    if call.tool_mode is ToolMode.NAMED:
        body["tool_choice"] = {"type": "function", "function": {"name": call.tool_name}}
    elif call.tool_mode is not ToolMode.DEFAULT:
        body["tool_choice"] = call.tool_mode.value
    if call.parallel_tool_calls is not None:
        body["parallel_tool_calls"] = call.parallel_tool_calls


def function_json(tool: Tool) -> Json:
    """Write a function that the model may call."""
    function: Json = {"name": tool.name}
    if tool.description:
        function["description"] = tool.description
    # Fragment: the schema was checked to be JSON and goes out as the bytes that were judged.
    parameters = tool.parameters_json or '{"type":"object","properties":{}}'
    function["parameters"] = orjson.Fragment(parameters)
    if tool.strict is not None:
        function["strict"] = tool.strict
    return function


def _add_form(body: Json, call: ChatCall) -> None:
    form = call.answer_form
    if form.form is Form.JSON_OBJECT:
        body["response_format"] = {"type": "json_object"}
    elif form.form is Form.JSON_SCHEMA:
        schema: Json = {"name": form.schema_name or "answer", "schema": orjson.Fragment(form.schema_json)}
        if form.strict is not None:
            schema["strict"] = form.strict
        body["response_format"] = {"type": "json_schema", "json_schema": schema}


def _choice(parsed: Json) -> Json | None:
    choices = parsed.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        return None
    return choices[0]


def _text_message(choice: Json) -> Json | None:
    """Give the words of a text completion as a chat's message has them."""
    text = choice.get("text")
    return {"content": text} if isinstance(text, str) else None


def _delta(source: Json, choice: Json) -> Delta:
    logprobs = choice.get("logprobs")
    return Delta(
        text=string(source.get("content")),
        reasoning=string(source.get("reasoning_content")) or string(source.get("reasoning")),
        tool_calls=_tool_calls(source.get("tool_calls")),
        refusal=string(source.get("refusal")),
        logprobs=read_logprobs(logprobs.get("content")) if isinstance(logprobs, dict) else (),
    )


def _tool_calls(value: object) -> tuple[ToolCall, ...]:
    if not isinstance(value, list):
        return ()
    return tuple(_tool_call(position, item) for position, item in enumerate(value) if isinstance(item, dict))


def _tool_call(position: int, item: Json) -> ToolCall:
    function = item.get("function")
    function = function if isinstance(function, dict) else {}
    index = item.get("index")
    index = position if not isinstance(index, int) or isinstance(index, bool) else index
    if not 0 <= index <= MAX_CALL_INDEX:
        raise BackendFailure("MALFORMED_ANSWER", f"called a tool at a position beyond {MAX_CALL_INDEX}")
    return ToolCall(
        id=string(item.get("id")),
        name=string(function.get("name")),
        arguments=arguments_text(function.get("arguments")),
        index=index,
    )


def _finish_reason(text: str) -> FinishReason:
    # Servers have further names for "the model said it was done" (eos, end_turn); all of them are an orderly end.
    return _FINISH_REASONS.get(text, FinishReason.STOP)


def read_usage(value: object) -> Usage:
    """Read the counts that a server gives, as far as they can be believed."""
    if not isinstance(value, dict):
        return Usage()
    return Usage(
        input_tokens=count(value, "prompt_tokens"),
        output_tokens=count(value, "completion_tokens"),
        cached_input_tokens=count(value.get("prompt_tokens_details"), "cached_tokens"),
        reasoning_tokens=count(value.get("completion_tokens_details"), "reasoning_tokens"),
    )
