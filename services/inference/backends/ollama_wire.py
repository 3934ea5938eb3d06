"""Ollama's native chat protocol as bytes: request bodies out, lines in.  Pure.

Its /v1 drops the oldest messages of a history that is over the context and says nothing; here that can be forbidden, so
what was judged is what the model reads.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Iterator
from typing import Final

import orjson

from services.inference.backend import BackendFailure, cannot_do
from services.inference.backends.openai_wire import function_json
from services.inference.backends.wire_json import (
    MAX_CALL_INDEX,
    Json,
    arguments_text,
    count,
    parse_object,
    past_arguments,
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
    Role,
    Sampling,
    Text,
    ToolCall,
    ToolMode,
    Usage,
    concatenate_deltas,
)
from services.inference.failures import failure_of_error, read_error

_OPTIONS: Final = ("temperature", "top_p", "top_k", "seed", "presence_penalty", "frequency_penalty")

_EFFORTS: Final[dict[str, str | bool]] = {
    "none": False,
    "minimal": "low",
    "low": "low",
    "medium": "medium",
    "high": "high",
}

_DONE_REASONS: Final = {
    "": FinishReason.STOP,
    "stop": FinishReason.STOP,
    "length": FinishReason.LENGTH,
}
"""Old servers give no reason.  "load" and "unload" are no ends of an answer."""


def request_body(
    call: ChatCall, *, model: str, max_output_tokens: int, context_tokens: int | None, keep: bool
) -> bytes:
    """Write the request, always for a stream; raises BackendFailure for what Ollama cannot be asked.

    `context_tokens` is what the model is loaded with: without it Ollama would load it anew with its own default.  `keep`
    leaves the model in memory until it is unloaded.
    """
    sampling = call.sampling
    body: Json = {
        "model": model,
        "messages": _messages(call.messages),
        "stream": True,
        # Neither the start of a long history nor that of a long answer may be dropped silently.
        "truncate": False,
        "shift": False,
        "options": options_of(sampling, max_output_tokens=max_output_tokens, context_tokens=context_tokens),
    }
    if sampling.logprobs:
        body["logprobs"] = True
        body["top_logprobs"] = sampling.top_logprobs or 0
    if call.tools and call.tool_mode is not ToolMode.NONE:
        # It knows no tool_choice; leaving only the named tool comes nearest.
        wanted = [
            tool for tool in call.tools if call.tool_mode is not ToolMode.NAMED or tool.name == call.tool_name
        ]
        body["tools"] = [{"type": "function", "function": function_json(tool)} for tool in wanted]
    if call.answer_form.form is Form.JSON_OBJECT:
        body["format"] = "json"
    elif call.answer_form.form is Form.JSON_SCHEMA:
        body["format"] = orjson.Fragment(call.answer_form.schema_json)
    if call.reasoning_effort:
        body["think"] = _EFFORTS[call.reasoning_effort]
    if keep:
        body["keep_alive"] = -1
    return orjson.dumps(body)


def options_of(sampling: Sampling, *, max_output_tokens: int, context_tokens: int | None) -> Json:
    """Write how tokens are drawn, how many at most, and the context that the model has."""
    options: Json = {name: value for name in _OPTIONS if (value := getattr(sampling, name)) is not None}
    options["num_predict"] = min(sampling.max_output_tokens or max_output_tokens, max_output_tokens)
    if sampling.stop:
        options["stop"] = list(sampling.stop)
    if context_tokens is not None:
        options["num_ctx"] = context_tokens
    return options


class AnswerReader:
    """Turns the lines of one answer into events; success needs the line that says `done`.

    `is_text` says that a completion was asked for, whose words are each line's `response`.
    """

    __slots__ = ("_calls", "_is_done", "_is_open", "_is_text")

    def __init__(self, *, is_text: bool = False) -> None:
        self._is_text = is_text
        self._is_open = False
        self._is_done = False
        self._calls = 0

    @property
    def is_done(self) -> bool:
        """Whether the answer's last event was given."""
        return self._is_done

    def read(self, lines: Iterable[bytes]) -> Iterator[Event]:
        """Give the events of one read, its text joined into one Delta; raises BackendFailure."""
        deltas: list[Delta] = []
        finish: Finish | None = None
        for line in lines:
            if self._is_done:
                break
            parsed = parse_object(line)
            error = read_error(parsed)
            if error is not None:
                raise failure_of_error(0, error)
            if not self._is_open:
                self._is_open = True
                yield Opened(string(parsed.get("model")))
            deltas.append(self._delta(parsed))
            if parsed.get("done") is True:
                self._is_done = True
                finish = self._finish(parsed)
        joined = concatenate_deltas(deltas)
        if not joined.is_empty:
            yield joined
        if finish is not None:
            yield finish

    def cut(self) -> BackendFailure:
        """Explain an answer that ended without its last line."""
        if not self._is_open:
            return BackendFailure("EMPTY_ANSWER", "answered 200 with an empty stream")
        return BackendFailure("STREAM_CUT", "closed the stream in the middle of the answer")

    def _delta(self, parsed: Json) -> Delta:
        if self._is_text:
            return Delta(text=string(parsed.get("response")), reasoning=string(parsed.get("thinking")))
        message = parsed.get("message")
        message = message if isinstance(message, dict) else {}
        return Delta(
            text=string(message.get("content")),
            reasoning=string(message.get("thinking")),
            tool_calls=tuple(self._tool_calls(message.get("tool_calls"))),
            logprobs=read_logprobs(parsed.get("logprobs")),
        )

    def _tool_calls(self, value: object) -> Iterator[ToolCall]:
        for item in value if isinstance(value, list) else ():
            function = item.get("function") if isinstance(item, dict) else None
            if not isinstance(function, dict):
                raise BackendFailure("MALFORMED_ANSWER", "called a tool without naming it")
            if self._calls > MAX_CALL_INDEX:
                raise BackendFailure(
                    "MALFORMED_ANSWER", f"called a tool at a position beyond {MAX_CALL_INDEX}"
                )
            # Each call comes whole, and older servers give it neither id nor place.
            yield ToolCall(
                id=string(item.get("id")) or f"call_{secrets.token_hex(12)}",
                name=string(function.get("name")),
                arguments=arguments_text(function.get("arguments")),
                index=self._calls,
            )
            self._calls += 1

    def _finish(self, parsed: Json) -> Finish:
        reason = _DONE_REASONS.get(string(parsed.get("done_reason")))
        if reason is None:
            raise BackendFailure("EMPTY_ANSWER", "ended without generating")
        if self._calls and reason is FinishReason.STOP:
            reason = FinishReason.TOOL_CALLS
        usage = Usage(
            input_tokens=count(parsed, "prompt_eval_count"), output_tokens=count(parsed, "eval_count")
        )
        return Finish(reason, usage)


def _messages(messages: tuple[Message, ...]) -> list[Json]:
    # A tool's result names its tool there; here it names the call, so the call tells the tool.
    names = {call.id: call.name for message in messages for call in message.tool_calls}
    return [_message(index, message, names) for index, message in enumerate(messages)]


def _message(index: int, message: Message, names: dict[str, str]) -> Json:
    body: Json = {
        "role": message.role.value,
        "content": "\n".join(part.text for part in message.parts if isinstance(part, Text)),
    }
    if any(isinstance(part, Audio) for part in message.parts):
        raise cannot_do(f"messages[{index}].content: Ollama takes no audio")
    images = [part.data_uri.partition(",")[2] for part in message.parts if isinstance(part, Image)]
    if images:
        body["images"] = images
    if message.tool_calls:
        body["tool_calls"] = [_past_call(index, call) for call in message.tool_calls]
    if message.role is Role.TOOL:
        body["tool_name"] = names.get(message.tool_call_id, message.name)
        body["tool_call_id"] = message.tool_call_id
    return body


def _past_call(index: int, call: ToolCall) -> Json:
    arguments = past_arguments(f"messages[{index}]", call)
    return {"id": call.id, "function": {"name": call.name, "index": call.index, "arguments": arguments}}
