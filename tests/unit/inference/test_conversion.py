"""A ChatAction read into values, and every limit that the contract states."""

from __future__ import annotations

import math

import pytest

from kala.errors import InvalidArgumentError
from kala.inference.v1 import inference_pb2 as pb
from services.inference.backend import Capability
from services.inference.chat import Form, Image, Role, Text, ToolMode
from services.inference.conversion import chat_call, wanted
from tests.fakes.images import PIXEL


def user(text: str = "Hi") -> pb.ChatMessage:
    return pb.ChatMessage(role=pb.ROLE_USER, content=[pb.ContentPart(text=text)])


def test_a_whole_action_is_read() -> None:
    action = pb.ChatAction(
        model="m",
        messages=[
            pb.ChatMessage(role=pb.ROLE_SYSTEM, content=[pb.ContentPart(text="S")]),
            user(),
            pb.ChatMessage(
                role=pb.ROLE_ASSISTANT, tool_calls=[pb.ToolCall(id="c", name="f", arguments="{}")]
            ),
            pb.ChatMessage(role=pb.ROLE_TOOL, content=[pb.ContentPart(text="r")], tool_call_id="c"),
        ],
        sampling=pb.Sampling(
            temperature=0, top_p=0.5, seed=7, max_output_tokens=5, stop=["\n"], logprobs=True
        ),
        tools=[pb.ToolDefinition(name="f", parameters_json='{"type":"object"}')],
        tool_choice=pb.ToolChoice(mode=pb.TOOL_CHOICE_MODE_NAMED, function_name="f"),
        response_format=pb.ResponseFormat(type=pb.RESPONSE_FORMAT_TYPE_JSON_SCHEMA, json_schema="{}"),
        stream=True,
    )
    call = chat_call(action)
    assert [message.role for message in call.messages] == [Role.SYSTEM, Role.USER, Role.ASSISTANT, Role.TOOL]
    assert call.messages[1].parts == (Text("Hi"),)
    assert (call.sampling.temperature, call.sampling.top_p, call.sampling.seed) == (0.0, 0.5, 7)
    assert call.sampling.presence_penalty is None
    assert (call.tool_mode, call.tool_name, call.answer_form.form) == (ToolMode.NAMED, "f", Form.JSON_SCHEMA)
    assert call.stream


def test_an_image_needs_a_backend_that_sees() -> None:
    message = pb.ChatMessage(role=pb.ROLE_USER, content=[pb.ContentPart(image_data_uri=PIXEL)])
    action = pb.ChatAction(messages=[message], provider="lmstudio")
    call = chat_call(action)
    assert isinstance(call.messages[0].parts[0], Image)
    destination = wanted(action, call)
    assert (destination.provider, destination.needs) == ("lmstudio", {Capability.VISION})


def image(uri: str) -> pb.ChatMessage:
    return pb.ChatMessage(role=pb.ROLE_USER, content=[pb.ContentPart(image_data_uri=uri)])


@pytest.mark.parametrize(
    ("action", "field"),
    [
        pytest.param(pb.ChatAction(), "messages", id="no messages"),
        pytest.param(pb.ChatAction(messages=[user()] * 10_001), "messages", id="too many messages"),
        pytest.param(pb.ChatAction(messages=[user(), pb.ChatMessage()]), "messages[1].role", id="no role"),
        pytest.param(
            pb.ChatAction(messages=[pb.ChatMessage(role=99)]), "messages[0].role", id="strange role"
        ),
        pytest.param(
            pb.ChatAction(messages=[pb.ChatMessage(role=pb.ROLE_USER)]),
            "messages[0].content",
            id="no content",
        ),
        pytest.param(
            pb.ChatAction(messages=[pb.ChatMessage(role=pb.ROLE_USER, content=[pb.ContentPart()])]),
            "messages[0].content[0]",
            id="empty part",
        ),
        pytest.param(
            pb.ChatAction(messages=[pb.ChatMessage(role=pb.ROLE_TOOL, content=[pb.ContentPart(text="x")])]),
            "messages[0].tool_call_id",
            id="tool result without its call",
        ),
        pytest.param(
            pb.ChatAction(messages=[image("http://10.0.0.1/x.png")]),
            "messages[0].content[0]",
            id="remote image",
        ),
        pytest.param(
            pb.ChatAction(messages=[image("file:///etc/passwd")]), "messages[0].content[0]", id="file image"
        ),
        pytest.param(
            pb.ChatAction(messages=[image("data:text/html;base64,AA==")]),
            "messages[0].content[0]",
            id="no image",
        ),
        pytest.param(
            pb.ChatAction(messages=[user()], sampling=pb.Sampling(temperature=2.1)),
            "sampling.temperature",
            id="too hot",
        ),
        pytest.param(
            pb.ChatAction(messages=[user()], sampling=pb.Sampling(temperature=math.nan)),
            "sampling.temperature",
            id="NaN",
        ),
        pytest.param(
            pb.ChatAction(messages=[user()], sampling=pb.Sampling(top_p=0)), "sampling.top_p", id="top_p 0"
        ),
        pytest.param(
            pb.ChatAction(messages=[user()], sampling=pb.Sampling(top_k=1001)), "sampling.top_k", id="top_k"
        ),
        pytest.param(
            pb.ChatAction(messages=[user()], sampling=pb.Sampling(max_output_tokens=0)),
            "sampling.max_output_tokens",
            id="0 tokens",
        ),
        pytest.param(
            pb.ChatAction(messages=[user()], sampling=pb.Sampling(stop=[""])),
            "sampling.stop[0]",
            id="empty stop",
        ),
        pytest.param(
            pb.ChatAction(messages=[user()], sampling=pb.Sampling(stop=["a"] * 17)),
            "sampling.stop",
            id="stops",
        ),
        pytest.param(
            pb.ChatAction(messages=[user()], tools=[pb.ToolDefinition(name="a b")]),
            "tools[0].name",
            id="tool name",
        ),
        pytest.param(
            pb.ChatAction(messages=[user()], tools=[pb.ToolDefinition(name="a", parameters_json="[]")]),
            "tools[0].parameters_json",
            id="schema is no object",
        ),
        pytest.param(
            pb.ChatAction(messages=[user()], tool_choice=pb.ToolChoice(mode=pb.TOOL_CHOICE_MODE_REQUIRED)),
            "tool_choice.mode",
            id="required without tools",
        ),
        pytest.param(
            pb.ChatAction(
                messages=[user()],
                tool_choice=pb.ToolChoice(mode=pb.TOOL_CHOICE_MODE_NAMED, function_name="x"),
            ),
            "tool_choice.function_name",
            id="unknown function",
        ),
        pytest.param(
            pb.ChatAction(
                messages=[user()],
                response_format=pb.ResponseFormat(type=pb.RESPONSE_FORMAT_TYPE_JSON_SCHEMA, json_schema="{"),
            ),
            "response_format.json_schema",
            id="broken schema",
        ),
        pytest.param(
            pb.ChatAction(messages=[user()], reasoning_effort="much"), "reasoning_effort", id="effort"
        ),
    ],
)
def test_a_wrong_field_is_named(action: pb.ChatAction, field: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        chat_call(action)
    assert caught.value.field == field


def test_adapters_are_asked_for_by_name() -> None:
    names = ["adapters/tone@1", "adapters/law-2@12"]
    action = pb.ChatAction(messages=[user()], adapters=names)
    call = chat_call(action)
    assert wanted(action, call).adapters == call.adapters == tuple(names)


@pytest.mark.parametrize(
    ("names", "field"),
    [
        (["tone"], "adapters[0]"),
        (["adapters/tone@1", "adapters/../x@1"], "adapters[1]"),
        (["adapters/tone@0"], "adapters[0]"),
        (["adapters/tone@1", "adapters/tone@1"], "adapters"),
        ([f"adapters/a@{number}" for number in range(1, 6)], "adapters"),
    ],
)
def test_a_wrong_adapter_is_named(names: list[str], field: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        chat_call(pb.ChatAction(messages=[user()], adapters=names))
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("policy", "goes_on"),
    [
        (pb.MID_STREAM_POLICY_UNSPECIFIED, False),
        (pb.MID_STREAM_POLICY_ERROR, False),
        (pb.MID_STREAM_POLICY_CONTINUE, True),
    ],
)
def test_only_continue_carries_a_broken_stream_on(
    policy: pb.MidStreamPolicy.ValueType, goes_on: bool
) -> None:
    assert chat_call(pb.ChatAction(messages=[user()], mid_stream=policy)).goes_on is goes_on


def test_a_policy_that_nobody_knows_is_refused() -> None:
    action = pb.ChatAction(messages=[user()])
    action.mid_stream = 9  # type: ignore[assignment]  # what a newer client could send
    with pytest.raises(InvalidArgumentError, match="mid_stream"):
        chat_call(action)


def test_a_long_model_name_is_refused() -> None:
    action = pb.ChatAction(messages=[user()], model="m" * 257)
    with pytest.raises(InvalidArgumentError, match="model"):
        wanted(action, chat_call(action))


def test_text_may_hold_anything_that_utf_8_can() -> None:
    text = "a\x00b\u202e😀"
    assert chat_call(pb.ChatAction(messages=[user(text)])).messages[0].parts == (Text(text),)
