"""Ollama's native requests out, its lines in."""

from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.inference.backend import BackendFailure, Blame, ContextOverflow
from services.inference.backends.ollama_wire import AnswerReader, request_body
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
)

HELLO = (Message(Role.USER, (Text("Hello"),)),)
TOOLS = (Tool("look_up", parameters_json='{"type":"object"}'), Tool("send"))


def sent(call: ChatCall, *, context: int | None = None, keep: bool = False) -> dict[str, object]:
    body = json.loads(request_body(call, model="m", max_output_tokens=100, context_tokens=context, keep=keep))
    assert isinstance(body, dict)
    return body


def line(content: str = "", **fields: object) -> bytes:
    message = {"role": "assistant", "content": content, **fields}
    return json.dumps({"model": "m", "message": message, "done": False}).encode()


def done(reason: str | None = "stop", **fields: object) -> bytes:
    end = {} if reason is None else {"done_reason": reason}
    return json.dumps({"model": "m", "message": {"content": ""}, "done": True, **end, **fields}).encode()


def read(*lines: bytes) -> list[Event]:
    return list(AnswerReader().read(lines))


def test_no_part_of_what_was_judged_may_be_dropped() -> None:
    body = sent(ChatCall(HELLO))
    assert body == {
        "model": "m",
        "messages": [{"role": "user", "content": "Hello"}],
        "stream": True,
        "truncate": False,
        "shift": False,
        "options": {"num_predict": 100},
    }


def test_every_sampling_field_has_its_option() -> None:
    sampling = Sampling(
        temperature=0.0, top_p=0.9, top_k=5, seed=7, presence_penalty=1.0, frequency_penalty=-1.0,
        max_output_tokens=500, stop=("END",), logprobs=True, top_logprobs=3,
    )  # fmt: skip
    body = sent(ChatCall(HELLO, sampling), context=2048, keep=True)
    assert body["options"] == {
        "temperature": 0.0, "top_p": 0.9, "top_k": 5, "seed": 7, "presence_penalty": 1.0,
        "frequency_penalty": -1.0, "num_predict": 100, "stop": ["END"], "num_ctx": 2048,
    }  # fmt: skip
    assert (body["logprobs"], body["top_logprobs"], body["keep_alive"]) == (True, 3, -1)


def test_a_conversation_with_tools_and_images_is_written_as_ollama_reads_it() -> None:
    messages = (
        Message(Role.USER, (Text("What is"), Text("this?"), Image("data:image/png;base64,QUJD", "low"))),
        Message(Role.ASSISTANT, (), tool_calls=(ToolCall("c1", "look_up", '{"q": "x"}', 0),)),
        Message(Role.TOOL, (Text("a cat"),), tool_call_id="c1"),
    )
    assert sent(ChatCall(messages))["messages"] == [
        {"role": "user", "content": "What is\nthis?", "images": ["QUJD"]},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [
                {"id": "c1", "function": {"name": "look_up", "index": 0, "arguments": {"q": "x"}}}
            ],
        },
        {"role": "tool", "content": "a cat", "tool_name": "look_up", "tool_call_id": "c1"},
    ]


@pytest.mark.parametrize(
    ("mode", "names"),
    [
        (ToolMode.DEFAULT, ["look_up", "send"]),
        (ToolMode.REQUIRED, ["look_up", "send"]),
        (ToolMode.NAMED, ["send"]),
        (ToolMode.NONE, []),
    ],
)
def test_only_the_tools_that_may_be_called_are_told(mode: ToolMode, names: list[str]) -> None:
    body = sent(ChatCall(HELLO, tools=TOOLS, tool_mode=mode, tool_name="send"))
    told = body.get("tools", [])
    assert isinstance(told, list)
    assert [tool["function"]["name"] for tool in told] == names


def test_the_form_of_the_answer_is_asked_for() -> None:
    assert sent(ChatCall(HELLO, answer_form=AnswerForm(Form.JSON_OBJECT)))["format"] == "json"
    schema = AnswerForm(Form.JSON_SCHEMA, schema_json='{"type": "object"}')
    assert sent(ChatCall(HELLO, answer_form=schema))["format"] == {"type": "object"}


@pytest.mark.parametrize(("effort", "think"), [("none", False), ("minimal", "low"), ("high", "high")])
def test_how_hard_to_think_is_told(effort: str, think: object) -> None:
    assert sent(ChatCall(HELLO, reasoning_effort=effort))["think"] == think
    assert "think" not in sent(ChatCall(HELLO))


@pytest.mark.parametrize(
    "messages",
    [
        (Message(Role.USER, (Audio("QUJD", "wav"),)),),
        (Message(Role.ASSISTANT, (), tool_calls=(ToolCall("c", "f", "[1]", 0),)),),
        (Message(Role.ASSISTANT, (), tool_calls=(ToolCall("c", "f", "{", 0),)),),
    ],
    ids=["audio", "arguments that are a list", "arguments that are no JSON"],
)
def test_what_ollama_cannot_read_is_the_callers_to_change(messages: tuple[Message, ...]) -> None:
    with pytest.raises(BackendFailure) as caught:
        sent(ChatCall(messages))
    assert caught.value.blame is Blame.CALLER
    assert "messages[0]" in caught.value.told


def test_lines_that_came_together_are_one_delta() -> None:
    events = read(line("Hel"), line("lo", thinking="hm"), done(prompt_eval_count=7, eval_count=2))
    assert events == [
        Opened("m"),
        Delta(text="Hello", reasoning="hm"),
        Finish(FinishReason.STOP, Usage(input_tokens=7, output_tokens=2)),
    ]


def test_tool_calls_get_an_id_and_a_place_when_the_server_gives_none() -> None:
    call = {"function": {"name": "look_up", "arguments": {"q": "x"}}}
    events = read(line(tool_calls=[call]), line(tool_calls=[call]), done())
    delta, finish = events[1:]
    assert isinstance(delta, Delta)
    assert isinstance(finish, Finish)
    first, second = delta.tool_calls
    assert (first.name, json.loads(first.arguments), first.index, second.index) == (
        "look_up",
        {"q": "x"},
        0,
        1,
    )
    assert first.id.startswith("call_")
    assert first.id != second.id
    assert finish.reason is FinishReason.TOOL_CALLS


@pytest.mark.parametrize(
    ("reason", "expected"),
    [("length", FinishReason.LENGTH), ("stop", FinishReason.STOP), (None, FinishReason.STOP)],
)
def test_the_end_says_why(reason: str | None, expected: FinishReason) -> None:
    assert read(line("x"), done(reason))[-1] == Finish(expected, Usage())


def test_log_probabilities_are_carried() -> None:
    value = {"token": "a", "logprob": -0.5, "bytes": [97], "top_logprobs": [{"token": "b", "logprob": -1.5}]}
    raw = json.dumps({"model": "m", "message": {"content": "a"}, "logprobs": [value], "done": False}).encode()
    delta = read(raw)[1]
    assert isinstance(delta, Delta)
    (logprob,) = delta.logprobs
    assert (logprob.token, logprob.logprob, logprob.top[0].token) == ("a", -0.5, "b")


def test_an_error_in_the_middle_is_a_failure() -> None:
    reader = AnswerReader()
    assert len(list(reader.read([line("Hel")]))) == 2
    with pytest.raises(BackendFailure, match="reported an error inside its answer"):
        list(reader.read([b'{"error":"an unknown error was encountered while running the model"}']))


def test_an_overflow_in_the_middle_is_told_as_one() -> None:
    text = "the prompt is longer than the context length currently available to the model"
    with pytest.raises(ContextOverflow):
        read(json.dumps({"error": text}).encode())


@pytest.mark.parametrize("reason", ["load", "unload"])
def test_a_loading_is_no_answer(reason: str) -> None:
    with pytest.raises(BackendFailure, match="without generating"):
        read(done(reason))


@pytest.mark.parametrize(
    "calls",
    [[{"name": "look_up"}], ["look_up"], [{"function": {"name": "f", "arguments": {}}}] * 129],
    ids=["no function", "no object", "too many"],
)
def test_a_call_that_cannot_be_read_is_a_failure(calls: list[object]) -> None:
    with pytest.raises(BackendFailure) as caught:
        read(line(tool_calls=calls))
    assert caught.value.reason == "MALFORMED_ANSWER"


def test_nothing_is_read_after_the_end() -> None:
    reader = AnswerReader()
    list(reader.read([done()]))
    assert list(reader.read([line("more")])) == []


@pytest.mark.parametrize("raw", [b"<html>", b"[1]", b'"text"'])
def test_what_is_no_object_is_a_failure(raw: bytes) -> None:
    with pytest.raises(BackendFailure):
        read(raw)


def test_a_cut_tells_empty_from_broken() -> None:
    reader = AnswerReader()
    assert reader.cut().reason == "EMPTY_ANSWER"
    list(reader.read([line("x")]))
    assert reader.cut().reason == "STREAM_CUT"


@settings(deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["message", "content", "thinking", "tool_calls", "function", "arguments", "name", "done",
                 "done_reason", "logprobs", "eval_count", "error", "model"]
            ),
            inner,
            max_size=4,
        ),
        max_leaves=12,
    )
)  # fmt: skip
def test_no_line_of_any_shape_is_a_crash(value: object) -> None:
    with contextlib.suppress(BackendFailure):
        read(json.dumps(value).encode())
