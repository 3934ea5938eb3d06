"""Anthropic's requests out, its events in: a stream recorded from llama-server's /v1/messages, the rest by its documents."""

from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.inference.backend import BackendFailure, Blame, ContextOverflow
from services.inference.backends.anthropic_wire import EventReader, request_body
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
    Usage,
    join_deltas,
)
from services.inference.sse import SseReader
from tests.fakes.recordings import recording

HELLO = (Message(Role.USER, (Text("Hello"),)),)
TOOLS = (Tool("look_up", "Looks up.", '{"type":"object"}', strict=True), Tool("send"))


def sent(call: ChatCall) -> dict[str, object]:
    body = json.loads(request_body(call, model="m", max_output_tokens=100))
    assert isinstance(body, dict)
    return body


def read(body: bytes, *, size: int | None = None) -> list[Event]:
    sse, reader = SseReader(), EventReader()
    events: list[Event] = []
    step = size or max(1, len(body))
    for start in range(0, len(body), step):
        events += reader.read(sse.feed(body[start : start + step]))
    events += [] if reader.is_done else reader.read(sse.finish())
    if not reader.is_done:
        raise reader.cut()
    return events


def event(**fields: object) -> bytes:
    return f"event: {fields['type']}\ndata: {json.dumps(fields)}\n\n".encode()


START = event(type="message_start", message={"model": "m", "usage": {"input_tokens": 3}})
STOP = event(type="message_stop")


def ends(reason: str = "end_turn") -> bytes:
    return event(type="message_delta", delta={"stop_reason": reason}, usage={"output_tokens": 5}) + STOP


def block(number: int, kind: str, **fields: object) -> bytes:
    return event(type="content_block_start", index=number, content_block={"type": kind, **fields})


def piece(number: int, kind: str, **fields: object) -> bytes:
    return event(type="content_block_delta", index=number, delta={"type": kind, **fields})


def stopped(number: int) -> bytes:
    return event(type="content_block_stop", index=number)


def test_the_smallest_request_says_nothing_that_was_not_asked() -> None:
    assert sent(ChatCall(HELLO)) == {
        "model": "m",
        "max_tokens": 100,
        "messages": [{"role": "user", "content": [{"type": "text", "text": "Hello"}]}],
        "stream": True,
    }


def test_instructions_stand_apart_and_neighbours_of_one_side_are_one_turn() -> None:
    messages = (
        Message(Role.SYSTEM, (Text("Be kind."),)),
        Message(Role.USER, (Text("One"), Text(""))),
        Message(Role.USER, (Text("Two"),)),
        Message(Role.SYSTEM, (Text("Be brief."),)),
    )
    body = sent(ChatCall(messages))
    assert body["system"] == "Be kind.\n\nBe brief."
    texts = [{"type": "text", "text": "One"}, {"type": "text", "text": "Two"}]
    assert body["messages"] == [{"role": "user", "content": texts}]


def test_tool_calls_and_their_results_are_blocks_of_their_turns() -> None:
    calls = (ToolCall("c1", "look_up", '{"q": "x"}', 0), ToolCall("c2", "send", "", 1))
    messages = (
        *HELLO,
        Message(Role.ASSISTANT, (Text("Let me see."),), tool_calls=calls),
        Message(Role.TOOL, (Text("a cat"),), tool_call_id="c1"),
        Message(Role.TOOL, (Text("sent"),), tool_call_id="c2"),
    )
    turns = sent(ChatCall(messages))["messages"]
    assert isinstance(turns, list)
    assert turns[1:] == [
        {
            "role": "assistant",
            "content": [
                {"type": "text", "text": "Let me see."},
                {"type": "tool_use", "id": "c1", "name": "look_up", "input": {"q": "x"}},
                {"type": "tool_use", "id": "c2", "name": "send", "input": {}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "c1", "content": [{"type": "text", "text": "a cat"}]},
                {"type": "tool_result", "tool_use_id": "c2", "content": [{"type": "text", "text": "sent"}]},
            ],
        },
    ]


def test_an_image_goes_as_its_bytes() -> None:
    messages = (Message(Role.USER, (Image("data:image/png;base64,QUJD", "low"),)),)
    (turn,) = sent(ChatCall(messages))["messages"]  # type: ignore[misc]  # a list of one
    source = {"type": "base64", "media_type": "image/png", "data": "QUJD"}
    assert turn["content"] == [{"type": "image", "source": source}]


@pytest.mark.parametrize(
    ("mode", "parallel", "choice"),
    [
        (ToolMode.DEFAULT, None, None),
        (ToolMode.AUTO, None, {"type": "auto"}),
        (ToolMode.REQUIRED, None, {"type": "any"}),
        (ToolMode.NONE, False, {"type": "none"}),
        (ToolMode.NAMED, None, {"type": "tool", "name": "send"}),
        (ToolMode.DEFAULT, False, {"type": "auto", "disable_parallel_tool_use": True}),
        (ToolMode.REQUIRED, False, {"type": "any", "disable_parallel_tool_use": True}),
    ],
)
def test_the_choice_of_tools_is_written(mode: ToolMode, parallel: bool | None, choice: object) -> None:
    body = sent(ChatCall(HELLO, tools=TOOLS, tool_mode=mode, tool_name="send", parallel_tool_calls=parallel))
    assert body.get("tool_choice") == choice
    assert body["tools"] == [
        {"name": "look_up", "description": "Looks up.", "input_schema": {"type": "object"}, "strict": True},
        {"name": "send", "input_schema": {"type": "object", "properties": {}}},
    ]


def test_form_and_effort_are_one_object() -> None:
    form = AnswerForm(Form.JSON_SCHEMA, "answer", '{"type": "object"}')
    body = sent(ChatCall(HELLO, answer_form=form, reasoning_effort="minimal"))
    schema = {"type": "json_schema", "schema": {"type": "object"}}
    assert body["output_config"] == {"format": schema, "effort": "low"}
    assert "output_config" not in sent(ChatCall(HELLO, reasoning_effort="none"))


def test_sampling_is_written_as_far_as_it_goes() -> None:
    sampling = Sampling(temperature=1.0, top_p=0.5, top_k=0, seed=3, max_output_tokens=7, stop=("END",))
    body = sent(ChatCall(HELLO, sampling))
    assert (body["temperature"], body["top_p"], body["max_tokens"]) == (1.0, 0.5, 7)
    assert body["stop_sequences"] == ["END"]
    assert "top_k" not in body
    assert sent(ChatCall(HELLO, Sampling(top_k=4)))["top_k"] == 4


@pytest.mark.parametrize(
    ("call", "field"),
    [
        (ChatCall(HELLO, Sampling(temperature=1.5)), "sampling.temperature"),
        (ChatCall(HELLO, Sampling(presence_penalty=0.5)), "sampling.presence_penalty"),
        (ChatCall(HELLO, Sampling(frequency_penalty=-0.5)), "sampling.frequency_penalty"),
        (ChatCall(HELLO, Sampling(logprobs=True)), "sampling.logprobs"),
        (ChatCall((Message(Role.USER, (Audio("QUJD", "wav"),)),)), "messages[0].content"),
        (
            ChatCall((*HELLO, Message(Role.ASSISTANT, (), tool_calls=(ToolCall("c", "f", "[]", 0),)))),
            "messages[1].tool_calls",
        ),
    ],
    ids=["temperature", "presence", "frequency", "logprobs", "audio", "arguments"],
)
def test_what_anthropic_has_not_is_named_and_not_dropped(call: ChatCall, field: str) -> None:
    with pytest.raises(BackendFailure) as caught:
        sent(call)
    assert caught.value.blame is Blame.CALLER
    assert caught.value.told.startswith(field)


@settings(deadline=None)
@given(st.integers(1, 300))
def test_a_recorded_stream_reads_the_same_in_any_cut(size: int) -> None:
    events = read(recording("llama-server-tiny-neox", "anthropic_stream").body, size=size)
    assert events[0] == Opened("tiny-neox")
    assert join_deltas([one for one in events if isinstance(one, Delta)]).text == "Hello! How can I help you?"
    usage = Usage(input_tokens=7, output_tokens=9, cached_input_tokens=6)
    assert events[-1] == Finish(FinishReason.STOP, usage)


def test_a_stream_that_came_at_once_is_one_delta() -> None:
    assert len(read(recording("llama-server-tiny-neox", "anthropic_stream").body)) == 3


def test_thinking_text_and_calls_keep_their_places() -> None:
    body = (
        START
        + event(type="ping")
        + block(0, "thinking", thinking="")
        + piece(0, "thinking_delta", thinking="hm")
        + piece(0, "signature_delta", signature="x")
        + stopped(0)
        + block(1, "text", text="")
        + piece(1, "text_delta", text="See:")
        + stopped(1)
        + block(2, "tool_use", id="t1", name="look_up", input={})
        + piece(2, "input_json_delta", partial_json="")
        + piece(2, "input_json_delta", partial_json='{"q":')
        + piece(2, "input_json_delta", partial_json='"x"}')
        + stopped(2)
        + block(3, "tool_use", id="t2", name="send", input={})
        + stopped(3)
        + ends("tool_use")
    )
    events = read(body, size=50)
    whole = join_deltas([one for one in events if isinstance(one, Delta)])
    assert (whole.text, whole.reasoning) == ("See:", "hm")
    assert whole.tool_calls == (
        ToolCall("t1", "look_up", '{"q":"x"}', 0),
        ToolCall("t2", "send", "{}", 1),
    )
    assert events[-1] == Finish(FinishReason.TOOL_CALLS, Usage(input_tokens=3, output_tokens=5))


@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        ("end_turn", FinishReason.STOP),
        ("stop_sequence", FinishReason.STOP),
        ("max_tokens", FinishReason.LENGTH),
        ("model_context_window_exceeded", FinishReason.LENGTH),
        ("refusal", FinishReason.CONTENT_FILTER),
        ("something_new", FinishReason.STOP),
    ],
)
def test_the_end_says_why(reason: str, expected: FinishReason) -> None:
    finish = read(START + ends(reason))[-1]
    assert isinstance(finish, Finish)
    assert finish.reason is expected


def test_the_prompt_counts_what_came_from_and_went_into_the_cache() -> None:
    usage = {"input_tokens": 1, "cache_creation_input_tokens": 10, "cache_read_input_tokens": 100}
    finish = read(event(type="message_start", message={"model": "m", "usage": usage}) + ends())[-1]
    assert finish == Finish(
        FinishReason.STOP, Usage(input_tokens=111, output_tokens=5, cached_input_tokens=100)
    )


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "EMPTY_ANSWER"),
        (START + block(0, "text", text="Hel"), "STREAM_CUT"),
        (START + STOP, "STREAM_CUT"),
        (START + ends().removesuffix(STOP), "STREAM_UNTERMINATED"),
        (START + event(type="error", error={"type": "overloaded_error", "message": "Overloaded"}), "BACKEND_ERROR"),
        (START + b"data: {\n\n", "MALFORMED_ANSWER"),
        (START + b"data: <html>\n\n", "NOT_AN_API"),
        (START + b"".join(block(n, "tool_use", id="t", name="f") for n in range(200)), "MALFORMED_ANSWER"),
    ],
    ids=["empty", "cut", "no reason", "no end", "error", "no JSON", "a page", "too many calls"],
)  # fmt: skip
def test_what_is_no_whole_answer_is_a_failure(body: bytes, reason: str) -> None:
    with pytest.raises(BackendFailure) as caught:
        read(body)
    assert caught.value.reason == reason


def test_an_overflow_inside_the_stream_has_its_numbers() -> None:
    error = {"type": "invalid_request_error", "message": "prompt is too long: 213462 tokens > 200000 maximum"}
    with pytest.raises(ContextOverflow) as caught:
        read(event(type="error", error=error))
    assert (caught.value.prompt_tokens, caught.value.context_tokens) == (213462, 200000)


@settings(deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(
                    ["type", "index", "delta", "message", "usage", "content_block", "error", "text"]
                ),
                inner,
                max_size=4,
            )
        ),
        max_leaves=12,
    ),
    st.sampled_from(
        ["message_start", "content_block_start", "content_block_delta", "content_block_stop", "message_delta"]
    ),
)
def test_no_event_of_any_shape_is_a_crash(value: object, kind: str) -> None:
    fields = value if isinstance(value, dict) else {"delta": value}
    reader = EventReader()
    with contextlib.suppress(BackendFailure):
        list(reader.read([(b"", json.dumps({**fields, "type": kind}).encode())]))
