"""Request bodies out, answers and chunks in."""

from __future__ import annotations

import json

import pytest

from services.inference.backend import BackendFailure, Blame
from services.inference.backends.openai_wire import ChunkReader, read_completion, request_body
from services.inference.chat import (
    AnswerForm,
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
    Tool,
    ToolCall,
    ToolMode,
    join_deltas,
)
from services.inference.sse import SseReader
from tests.fakes.recordings import recording

HELLO = (Message(Role.USER, (Text("Hello"),)),)


def sent(call: ChatCall, *, stream: bool = False, limit: int = 100) -> dict[str, object]:
    body = json.loads(request_body(call, model="m", stream=stream, max_output_tokens=limit))
    assert isinstance(body, dict)
    return body


def read_stream(body: bytes, *, cut: int | None = None) -> list[Event]:
    sse, reader = SseReader(), ChunkReader()
    size = cut or max(1, len(body))
    events: list[Event] = []
    for start in range(0, len(body), size):
        events += reader.read(sse.feed(body[start : start + size]))
    events += [] if reader.is_done else reader.read(sse.finish())
    if not reader.is_done:
        raise reader.cut()
    return events


def test_the_smallest_request_says_nothing_that_was_not_asked() -> None:
    assert sent(ChatCall(HELLO)) == {
        "model": "m",
        "messages": [{"role": "user", "content": "Hello"}],
        "max_tokens": 100,
    }


def test_a_stream_always_asks_for_usage() -> None:
    assert sent(ChatCall(HELLO), stream=True)["stream_options"] == {"include_usage": True}


def test_zero_is_a_value_and_not_an_absence() -> None:
    body = sent(ChatCall(HELLO, Sampling(temperature=0.0, seed=0, presence_penalty=0.0, top_k=0)))
    assert (body["temperature"], body["seed"], body["presence_penalty"], body["top_k"]) == (0.0, 0, 0.0, 0)


@pytest.mark.parametrize(("asked", "limit", "expected"), [(None, 50, 50), (10, 50, 10), (90, 50, 50)])
def test_the_token_limit_is_the_smaller_one(asked: int | None, limit: int, expected: int) -> None:
    assert sent(ChatCall(HELLO, Sampling(max_output_tokens=asked)), limit=limit)["max_tokens"] == expected


def test_parts_tools_and_calls_keep_their_shape() -> None:
    call = ChatCall(
        messages=(
            Message(Role.SYSTEM, (Text("Be brief."),)),
            Message(
                Role.USER,
                (Text("See"), Image("data:image/png;base64,AA==", "low"), Audio("QQ==", "wav")),
                "ann",
            ),
            Message(Role.ASSISTANT, (), tool_calls=(ToolCall("c1", "add", '{"a":1}', 0),)),
            Message(Role.TOOL, (Text("2"),), tool_call_id="c1"),
        ),
        tools=(Tool("add", "adds", '{"type":"object","properties":{"a":{}}}', strict=True), Tool("now")),
        tool_mode=ToolMode.NAMED,
        tool_name="add",
        parallel_tool_calls=False,
        answer_form=AnswerForm(Form.JSON_SCHEMA, "s", '{"type":"object"}', strict=True),
        sampling=Sampling(stop=("\n",), logprobs=True, top_logprobs=2),
        reasoning_effort="low",
    )
    body = sent(call)
    assert body["messages"] == [
        {"role": "system", "content": "Be brief."},
        {
            "role": "user",
            "name": "ann",
            "content": [
                {"type": "text", "text": "See"},
                {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA==", "detail": "low"}},
                {"type": "input_audio", "input_audio": {"data": "QQ==", "format": "wav"}},
            ],
        },
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [
                {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a":1}'}}
            ],
        },
        {"role": "tool", "content": "2", "tool_call_id": "c1"},
    ]
    assert body["tools"] == [
        {
            "type": "function",
            "function": {
                "name": "add",
                "description": "adds",
                "parameters": {"type": "object", "properties": {"a": {}}},
                "strict": True,
            },
        },
        {"type": "function", "function": {"name": "now", "parameters": {"type": "object", "properties": {}}}},
    ]
    assert body["tool_choice"] == {"type": "function", "function": {"name": "add"}}
    assert body["response_format"] == {
        "type": "json_schema",
        "json_schema": {"name": "s", "schema": {"type": "object"}, "strict": True},
    }
    assert (body["stop"], body["logprobs"], body["top_logprobs"]) == (["\n"], True, 2)
    assert (body["parallel_tool_calls"], body["reasoning_effort"]) == (False, "low")


STREAMS = [
    ("llama-server-tiny-neox", "chat_stream_usage", "Hello! How can I help you?", "tiny-neox", 9),
    ("llama-server-tiny-neox", "chat_stream", "Hello! How can I help you?", "tiny-neox", None),
    ("mlx_lm-0.32.2-tiny-neox", "chat_stream_usage", "Hello", "default_model", 2),
]


@pytest.mark.parametrize("cut", [None, 1, 7, 1000])
@pytest.mark.parametrize(("server", "case", "text", "model", "tokens"), STREAMS)
def test_a_recorded_stream_reads_the_same_at_any_cut(
    server: str, case: str, text: str, model: str, tokens: int | None, cut: int | None
) -> None:
    events = read_stream(recording(server, case).body, cut=cut)
    assert events[0] == Opened(model)
    assert join_deltas([event for event in events if isinstance(event, Delta)]).text == text
    last = events[-1]
    assert isinstance(last, Finish)
    assert (last.reason, last.usage.output_tokens) == (FinishReason.STOP, tokens)


def test_what_came_in_one_read_travels_in_one_delta() -> None:
    events = read_stream(recording("llama-server-tiny-neox", "chat_stream_usage").body)
    assert [type(event) for event in events] == [Opened, Delta, Finish]


def test_a_recorded_streamed_tool_call_is_put_together() -> None:
    events = read_stream(recording("llama-cpp-python-0.3.36", "tools_stream").body, cut=50)
    whole = join_deltas([event for event in events if isinstance(event, Delta)])
    (call,) = whole.tool_calls
    assert call.name == "get_weather"
    assert json.loads(call.arguments)["city"] in {"Paris", "Rome"}


@pytest.mark.parametrize(
    ("server", "case", "text", "reason"),
    [
        ("llama-server-tiny-neox", "chat", "Hello! How can I help you?", FinishReason.STOP),
        ("llama-server-tiny-neox", "chat_length", "Hello!", FinishReason.LENGTH),
    ],
)
def test_a_recorded_answer_is_read(server: str, case: str, text: str, reason: FinishReason) -> None:
    opened, delta, finish = read_completion(recording(server, case).body)
    assert isinstance(opened, Opened)
    assert isinstance(delta, Delta)
    assert isinstance(finish, Finish)
    assert (delta.text, finish.reason) == (text, reason)


def test_recorded_logprobs_come_with_their_alternatives() -> None:
    (delta,) = [
        e
        for e in read_completion(recording("llama-server-tiny-neox", "chat_logprobs").body)
        if isinstance(e, Delta)
    ]
    first = delta.logprobs[0]
    assert (first.token, first.token_bytes, len(first.top)) == ("Hello", b"Hello", 2)


def test_a_recorded_tool_call_is_read() -> None:
    (delta,) = [
        e for e in read_completion(recording("llama-cpp-python-0.3.36", "tools").body) if isinstance(e, Delta)
    ]
    assert delta.tool_calls[0].name == "get_weather"


def _chunks(*chunks: object, done: bool = True) -> bytes:
    body = b"".join(
        b"data: " + (c if isinstance(c, bytes) else json.dumps(c).encode()) + b"\n\n" for c in chunks
    )
    return body + (b"data: [DONE]\n\n" if done else b"")


def _text(text: str, finish: str | None = None) -> dict[str, object]:
    return {"model": "m", "choices": [{"delta": {"content": text}, "finish_reason": finish}]}


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        pytest.param(b"", "EMPTY_ANSWER", id="empty 200"),
        pytest.param(_chunks(), "EMPTY_ANSWER", id="only [DONE]"),
        pytest.param(_chunks(_text("a"), done=False), "STREAM_CUT", id="cut"),
        pytest.param(_chunks(_text("a", "stop"), done=False), "STREAM_UNTERMINATED", id="no [DONE]"),
        pytest.param(_chunks(_text("a")), "STREAM_CUT", id="[DONE] without a finish reason"),
        pytest.param(
            _chunks({"error": {"message": "oops", "type": "server_error"}}),
            "BACKEND_ERROR",
            id="error object",
        ),
        pytest.param(_chunks(_text("a"), {"error": "oops"}), "BACKEND_ERROR", id="error string after text"),
        pytest.param(b'event: error\ndata: {"message":"oops"}\n\n', "BACKEND_ERROR", id="error event"),
        pytest.param(_chunks(b"{broken"), "MALFORMED_ANSWER", id="broken JSON"),
        pytest.param(_chunks(b'{"a":"\xc3"}'), "MALFORMED_ANSWER", id="broken UTF-8"),
        pytest.param(_chunks(b"[1]"), "MALFORMED_ANSWER", id="no object"),
        pytest.param(_chunks(b"<html>"), "NOT_AN_API", id="HTML inside"),
        pytest.param(
            recording("mlx_lm-0.32.2-tiny-llama", "chat_stream_usage_missingkey").body,
            "STREAM_UNTERMINATED",
            id="mlx dies before [DONE], recorded",
        ),
        pytest.param(
            recording("llama-cpp-python-0.3.36", "overflow_stream").body,
            "EMPTY_ANSWER",
            id="llama_cpp.server's overflow, recorded",
        ),
    ],
)
def test_a_200_stream_that_failed_is_a_failure(body: bytes, reason: str) -> None:
    with pytest.raises(BackendFailure) as caught:
        read_stream(body)
    assert caught.value.reason == reason
    assert caught.value.blame is Blame.BACKEND


def test_a_duplicate_done_is_tolerated() -> None:
    assert isinstance(read_stream(_chunks(_text("a", "stop")) + b"data: [DONE]\n\n")[-1], Finish)


def test_an_answer_of_no_text_is_an_answer() -> None:
    assert [type(event) for event in read_stream(_chunks(_text("", "stop")))] == [Opened, Finish]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        pytest.param(b"", "EMPTY_ANSWER", id="empty"),
        pytest.param(b"  \n", "EMPTY_ANSWER", id="blank"),
        pytest.param(b"{}", "EMPTY_ANSWER", id="no choices"),
        pytest.param(b'{"choices":[]}', "EMPTY_ANSWER", id="empty choices"),
        pytest.param(b'{"choices":[{"finish_reason":"stop"}]}', "MALFORMED_ANSWER", id="no message"),
        pytest.param(b'{"choices":[{"message":{"content":"a"}}]}', "MALFORMED_ANSWER", id="no finish"),
        pytest.param(b'{"error":{"message":"x"}}', "BACKEND_ERROR", id="error in a 200"),
        pytest.param(b"<!doctype html>", "NOT_AN_API", id="HTML"),
        pytest.param(b"OK", "MALFORMED_ANSWER", id="plain text"),
    ],
)
def test_a_200_that_is_no_answer_is_a_failure(body: bytes, reason: str) -> None:
    with pytest.raises(BackendFailure) as caught:
        read_completion(body)
    assert caught.value.reason == reason


@pytest.mark.parametrize(
    "delta",
    [{"reasoning_content": "hm"}, {"reasoning": "hm"}, {"reasoning": "hm", "content": None}],
    ids=["reasoning_content", "reasoning", "null content"],
)
def test_reasoning_is_read_under_both_names(delta: dict[str, object]) -> None:
    events = read_stream(_chunks({"choices": [{"delta": delta, "finish_reason": "stop"}]}))
    assert [event.reasoning for event in events if isinstance(event, Delta)] == ["hm"]


def test_arguments_given_as_an_object_become_text() -> None:
    call = {"index": 0, "id": "a", "function": {"name": "f", "arguments": {"x": 1}}}
    events = read_stream(
        _chunks({"choices": [{"delta": {"tool_calls": [call]}, "finish_reason": "tool_calls"}]})
    )
    (delta,) = [event for event in events if isinstance(event, Delta)]
    assert delta.tool_calls == (ToolCall("a", "f", '{"x":1}', 0),)


def _logprobs_chunk(top: str) -> bytes:
    token = f'{{"token": "a", "logprob": -1, "top_logprobs": {top}}}'
    return (
        f'data: {{"choices": [{{"delta": {{}}, "finish_reason": "stop", "logprobs": {{"content": [{token}]}}}}]}}\n\n'
        "data: [DONE]\n\n"
    ).encode()


def test_alternatives_have_no_alternatives_however_deep_a_server_nests_them() -> None:
    top = "[]"
    for _ in range(500):
        top = f'[{{"token": "b", "logprob": -1, "top_logprobs": {top}}}]'
    (delta,) = [event for event in read_stream(_logprobs_chunk(top)) if isinstance(event, Delta)]
    assert [(entry.token, entry.top) for entry in delta.logprobs[0].top] == [("b", ())]


def test_no_more_alternatives_are_read_than_can_be_asked_for() -> None:
    many = json.dumps([{"token": "b", "logprob": -1}] * 1000)
    (delta,) = [event for event in read_stream(_logprobs_chunk(many)) if isinstance(event, Delta)]
    assert len(delta.logprobs[0].top) == 20


@pytest.mark.parametrize("index", [-1, 128, 2**63 - 1])
def test_a_call_at_a_position_that_the_contract_lacks_is_a_failure(index: int) -> None:
    call = {"index": index, "id": "a", "function": {"name": "f", "arguments": "{}"}}
    with pytest.raises(BackendFailure, match="position beyond 127"):
        read_stream(_chunks({"choices": [{"delta": {"tool_calls": [call]}, "finish_reason": "tool_calls"}]}))


@pytest.mark.parametrize("count", [2**53, 2**63, 2**64 - 1])
def test_a_count_that_no_answer_has_is_not_believed(count: int) -> None:
    events = read_stream(_chunks({"choices": [], "usage": {"prompt_tokens": count}}, _text("a", "stop")))
    assert isinstance(events[-1], Finish)
    assert events[-1].usage.input_tokens is None


@pytest.mark.parametrize(
    "garbage",
    [
        {"choices": "x"},
        {"choices": [1]},
        {"choices": [{"delta": {"tool_calls": [1, {"function": 3}]}, "logprobs": {"content": "x"}}]},
        {"choices": [{"delta": None, "logprobs": {"content": [{"token": "a", "bytes": [900]}]}}], "usage": 3},
    ],
)
def test_odd_fields_are_passed_over(garbage: dict[str, object]) -> None:
    assert isinstance(read_stream(_chunks(garbage, _text("a", "stop")))[-1], Finish)


def test_arguments_too_deep_to_be_written_are_a_failure() -> None:
    deep = '{"a":' * 300 + "1" + "}" * 300
    call = '{"function":{"name":"f","arguments":' + deep + "}}"
    body = '{"choices":[{"message":{"tool_calls":[' + call + ']},"finish_reason":"stop"}]}'
    with pytest.raises(BackendFailure, match="too deep"):
        read_completion(body.encode())


def test_a_call_in_many_pieces_is_put_together_in_linear_time() -> None:
    # Adding each piece to all before it would copy 200 gigabytes here, in the event loop.
    pieces = [Delta(tool_calls=(ToolCall("id", "f", "0123456789", 0),))] * 200_000
    (whole,) = join_deltas(pieces).tool_calls
    assert (whole.id, whole.name, len(whole.arguments)) == ("id", "f", 2_000_000)
