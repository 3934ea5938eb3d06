"""Anthropic's Messages protocol as bytes: request bodies out, stream events in.  Pure.

Answers are always asked for as a stream: a whole one may take longer than a connection without traffic lives.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Final

import orjson

from services.inference.backend import BackendFailure, cannot_do
from services.inference.backends.wire_json import (
    MAX_CALL_INDEX,
    Json,
    count,
    parse_object,
    past_arguments,
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
    Role,
    Text,
    Tool,
    ToolCall,
    ToolMode,
    Usage,
    concatenate_deltas,
)
from services.inference.failures import failure_of_error, read_error

_EFFORTS: Final = {"minimal": "low", "low": "low", "medium": "medium", "high": "high"}

_STOP_REASONS: Final = {
    "end_turn": FinishReason.STOP,
    "stop_sequence": FinishReason.STOP,
    "max_tokens": FinishReason.LENGTH,
    "model_context_window_exceeded": FinishReason.LENGTH,
    "tool_use": FinishReason.TOOL_CALLS,
    "refusal": FinishReason.CONTENT_FILTER,
}

_TOOL_CHOICES: Final = {ToolMode.AUTO: "auto", ToolMode.REQUIRED: "any", ToolMode.NONE: "none"}

_NO_ARGUMENTS: Final = '{"type":"object","properties":{}}'


def request_body(call: ChatCall, *, model: str, max_output_tokens: int) -> bytes:
    """Write the request; raises BackendFailure that names what Anthropic cannot be asked.

    A seed is left out: Anthropic has none, and the contract asks for one only where the backend can.
    """
    _refuse_what_it_cannot(call)
    sampling = call.sampling
    system, messages = _conversation(call.messages)
    body: Json = {
        "model": model,
        "max_tokens": min(sampling.max_output_tokens or max_output_tokens, max_output_tokens),
        "messages": messages,
        "stream": True,
    }
    if system:
        body["system"] = system
    for name in ("temperature", "top_p", "top_k"):
        value = getattr(sampling, name)
        if value is not None and not (name == "top_k" and value == 0):
            body[name] = value
    if sampling.stop:
        body["stop_sequences"] = list(sampling.stop)
    if call.tools:
        _add_tools(body, call)
    output: Json = {}
    if call.answer_form.form is Form.JSON_SCHEMA:
        output["format"] = {"type": "json_schema", "schema": orjson.Fragment(call.answer_form.schema_json)}
    if call.reasoning_effort in _EFFORTS:
        output["effort"] = _EFFORTS[call.reasoning_effort]
    if output:
        body["output_config"] = output
    return orjson.dumps(body)


class EventReader:
    """Turns the events of one stream into events of ours; success needs a stop reason and `message_stop`."""

    __slots__ = ("_calls", "_finish", "_is_done", "_is_open", "_pieces", "_usage")

    def __init__(self) -> None:
        self._is_open = False
        self._is_done = False
        self._finish: FinishReason | None = None
        self._usage = Usage()
        self._calls: dict[int, int] = {}
        """Place of a tool call by the number of its block; text and thinking have numbers too."""
        self._pieces: set[int] = set()
        """Blocks of tool calls whose arguments have begun."""

    @property
    def is_done(self) -> bool:
        """Whether the stream's last event was given."""
        return self._is_done

    def read(self, payloads: Iterable[tuple[bytes, bytes]]) -> Iterator[Event]:
        """Give the events of one read, its text joined into one Delta; raises BackendFailure."""
        deltas: list[Delta] = []
        for _, payload in payloads:
            if self._is_done:
                break
            event = parse_object(payload)
            error = read_error(event)
            if error is not None:
                raise failure_of_error(0, error)
            if event.get("type") == "message_start":
                yield from self._opened(_object(event, "message"))
            else:
                deltas.append(self._step(event))
        joined = concatenate_deltas(deltas)
        if not joined.is_empty:
            yield joined
        if self._is_done:
            yield self._end()

    def cut(self) -> BackendFailure:
        """Explain a stream that ended without its last events."""
        if not self._is_open:
            return BackendFailure("EMPTY_ANSWER", "answered 200 with an empty stream")
        if self._finish is None:
            return BackendFailure("STREAM_CUT", "closed the stream in the middle of the answer")
        return BackendFailure("STREAM_UNTERMINATED", "closed the stream without message_stop")

    def _opened(self, message: Json) -> Iterator[Event]:
        self._usage = _usage(message.get("usage"), self._usage)
        if not self._is_open:
            self._is_open = True
            yield Opened(string(message.get("model")))

    def _step(self, event: Json) -> Delta:
        """Take an event after the first; those that bring no words give an empty Delta."""
        match event.get("type"):
            case "content_block_start":
                return self._begun(_number(event), _object(event, "content_block"))
            case "content_block_delta":
                return self._delta(_number(event), _object(event, "delta"))
            case "content_block_stop":
                return self._ended(_number(event))
            case "message_delta":
                self._take_end(event)
            case "message_stop":
                self._is_done = True
        return Delta()

    def _end(self) -> Finish:
        if self._finish is None:
            raise self.cut()
        return Finish(self._finish, self._usage)

    def _begun(self, number: int, block: Json) -> Delta:
        if block.get("type") == "text":
            return Delta(text=string(block.get("text")))
        if block.get("type") == "thinking":
            return Delta(reasoning=string(block.get("thinking")))
        if block.get("type") != "tool_use":
            return Delta()
        place = self._calls.setdefault(number, len(self._calls))
        if place > MAX_CALL_INDEX:
            raise BackendFailure("MALFORMED_ANSWER", f"called a tool at a position beyond {MAX_CALL_INDEX}")
        return Delta(tool_calls=(ToolCall(string(block.get("id")), string(block.get("name")), "", place),))

    def _delta(self, number: int, delta: Json) -> Delta:
        match delta.get("type"):
            case "text_delta":
                return Delta(text=string(delta.get("text")))
            case "thinking_delta":
                return Delta(reasoning=string(delta.get("thinking")))
            case "input_json_delta" if number in self._calls:
                piece = string(delta.get("partial_json"))
                if piece:
                    self._pieces.add(number)
                return Delta(tool_calls=(ToolCall("", "", piece, self._calls[number]),))
            case _:
                return Delta()

    def _ended(self, number: int) -> Delta:
        """Give a call without arguments the empty object that everybody else's protocol has there."""
        if number not in self._calls or number in self._pieces:
            return Delta()
        self._pieces.add(number)
        return Delta(tool_calls=(ToolCall("", "", "{}", self._calls[number]),))

    def _take_end(self, event: Json) -> None:
        self._usage = _usage(event.get("usage"), self._usage)
        reason = _object(event, "delta").get("stop_reason")
        if isinstance(reason, str) and reason:
            # A name that is new to us still says that the model ended its answer.
            self._finish = _STOP_REASONS.get(reason, FinishReason.STOP)


def _refuse_what_it_cannot(call: ChatCall) -> None:
    sampling = call.sampling
    if sampling.temperature is not None and sampling.temperature > 1:
        raise cannot_do(f"sampling.temperature: Anthropic takes 0 to 1, not {sampling.temperature:g}")
    for name in ("presence_penalty", "frequency_penalty"):
        if getattr(sampling, name):
            raise cannot_do(f"sampling.{name}: Anthropic has none; leave it out")
    if sampling.logprobs:
        raise cannot_do("sampling.logprobs: Anthropic gives none; leave it out")


def _conversation(messages: tuple[Message, ...]) -> tuple[str, list[Json]]:
    """Give the instructions, which stand apart, and the turns; neighbours of one side are one turn there."""
    system: list[str] = []
    turns: list[Json] = []
    for index, message in enumerate(messages):
        if message.role is Role.SYSTEM:
            system += [part.text for part in message.parts if isinstance(part, Text)]
            continue
        role = "assistant" if message.role is Role.ASSISTANT else "user"
        blocks = _blocks(index, message)
        if turns and turns[-1]["role"] == role:
            turns[-1]["content"] += blocks
        elif blocks:
            turns.append({"role": role, "content": blocks})
    return "\n\n".join(system), turns


def _blocks(index: int, message: Message) -> list[Json]:
    where = f"messages[{index}]"
    # It refuses empty texts.
    parts = [_block(where, part) for part in message.parts if not (isinstance(part, Text) and not part.text)]
    if message.role is Role.TOOL:
        return [{"type": "tool_result", "tool_use_id": message.tool_call_id, "content": parts}]
    return parts + [_past_call(where, call) for call in message.tool_calls]


def _block(where: str, part: Part) -> Json:
    match part:
        case Text(text):
            return {"type": "text", "text": text}
        case Image(data_uri, _):
            head, _, data = data_uri.partition(",")
            media_type = head.removeprefix("data:").partition(";")[0]
            return {
                "type": "image",
                "source": {"type": "base64", "media_type": media_type, "data": data},
            }
        case Audio():
            raise cannot_do(f"{where}.content: Anthropic takes no audio")


def _past_call(where: str, call: ToolCall) -> Json:
    return {"type": "tool_use", "id": call.id, "name": call.name, "input": past_arguments(where, call)}


def _add_tools(body: Json, call: ChatCall) -> None:
    body["tools"] = [_tool(tool) for tool in call.tools]
    choice: Json = {}
    if call.tool_mode is ToolMode.NAMED:
        choice = {"type": "tool", "name": call.tool_name}
    elif call.tool_mode in _TOOL_CHOICES:
        choice = {"type": _TOOL_CHOICES[call.tool_mode]}
    if call.parallel_tool_calls is False and call.tool_mode is not ToolMode.NONE:
        choice = {"type": "auto", **choice, "disable_parallel_tool_use": True}
    if choice:
        body["tool_choice"] = choice


def _tool(tool: Tool) -> Json:
    described = {"description": tool.description} if tool.description else {}
    strict = {} if tool.strict is None else {"strict": tool.strict}
    # Fragment: the schema was checked to be JSON and goes out as the bytes that were judged.
    schema = orjson.Fragment(tool.parameters_json or _NO_ARGUMENTS)
    return {"name": tool.name, **described, "input_schema": schema, **strict}


def _usage(value: object, so_far: Usage) -> Usage:
    """Add what an event tells: the prompt comes with the first, the answer's tokens, all so far, with the last."""
    if not isinstance(value, dict):
        return so_far
    read = count(value, "cache_read_input_tokens")
    parts = [count(value, "input_tokens"), count(value, "cache_creation_input_tokens"), read]
    told = [part for part in parts if part is not None]
    output = count(value, "output_tokens")
    return replace(
        so_far,
        # It counts what came from its cache apart; the prompt is all of it.
        input_tokens=sum(told) if parts[0] is not None else so_far.input_tokens,
        cached_input_tokens=so_far.cached_input_tokens if read is None else read,
        output_tokens=so_far.output_tokens if output is None else output,
    )


def _number(event: Json) -> int:
    value = event.get("index")
    return value if isinstance(value, int) and not isinstance(value, bool) else 0


def _object(event: Json, name: str) -> Json:
    value = event.get(name)
    return value if isinstance(value, dict) else {}
