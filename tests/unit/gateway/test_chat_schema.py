"""Requests become actions, field by field; what is wrong is named with its limit."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.chat_action import build_action, has_untrusted_content, request_text
from gateway.chat_schema import parse_chat_request
from gateway.destination import Destination
from gateway.strict_json import read_object
from gateway.validation import path_of
from kala.errors import InvalidArgumentError
from kala.inference.v1 import inference_pb2 as pb
from tests.fakes.images import PIXEL, data_uri, png

USER = {"role": "user", "content": "Hi"}
IMAGE = {"type": "image_url", "image_url": {"url": PIXEL, "detail": "low"}}
AUDIO = {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}
TOOL = {
    "type": "function",
    "function": {"name": "f", "description": "d", "parameters": {"type": "object"}, "strict": True},
}


def action_of(**fields: Any) -> pb.ChatAction:
    return build_action(parse_chat_request({"messages": [USER]} | fields))


def test_every_role_and_part_has_its_place() -> None:
    action = action_of(
        messages=[
            {"role": "developer", "content": "Be brief.", "name": "ops"},
            {"role": "user", "content": [{"type": "text", "text": "What?"}, IMAGE, AUDIO]},
            {"role": "assistant", "content": [{"type": "text", "text": "a"}, {"type": "refusal", "refusal": "no"}]},
            {"role": "assistant", "refusal": "never", "tool_calls": [
                {"id": "c", "function": {"name": "f", "arguments": "{}"}}]},
            {"role": "tool", "tool_call_id": "c", "content": "42"},
        ]
    )  # fmt: skip
    system, user, answer, call, tool = action.messages
    assert (system.role, system.name, system.content[0].text) == (pb.ROLE_SYSTEM, "ops", "Be brief.")
    assert [part.WhichOneof("part") for part in user.content] == ["text", "image_data_uri", "audio_base64"]
    assert (user.content[1].image_detail, user.content[2].audio_format) == ("low", "wav")
    assert [part.text for part in answer.content] == ["a", "no"]
    assert (call.content[0].text, call.tool_calls[0].name) == ("never", "f")
    assert (tool.role, tool.tool_call_id) == (pb.ROLE_TOOL, "c")
    assert has_untrusted_content(action)
    assert request_text(action) == "What?"


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        pytest.param("https://example.com/a.png", "not fetched", id="an address"),
        pytest.param("data:image/svg+xml;base64,AAAA", "data URI", id="another format"),
        pytest.param(data_uri(png(), "image/jpeg"), "is not a jpeg image", id="another format than it says"),
        pytest.param(data_uri(png(30_000, 2)), "30000 x 2 pixels", id="too many pixels"),
    ],
)
def test_an_image_that_is_not_taken_is_named_by_its_place(url: str, problem: str) -> None:
    image = {"type": "image_url", "image_url": {"url": url}}
    content = [{"type": "text", "text": "What?"}, IMAGE, image]
    with pytest.raises(InvalidArgumentError, match=problem) as refused:
        action_of(messages=[USER, {"role": "user", "content": content}])
    assert refused.value.field == "messages[1].content[2].image_url.url"


def test_what_is_not_said_stays_unset() -> None:
    action = action_of()
    assert action.model == "auto"
    assert not action.sampling.ListFields()
    assert not action.HasField("tool_choice")
    assert not action.HasField("response_format")
    assert not action.HasField("parallel_tool_calls")
    assert not has_untrusted_content(action)


def test_zero_is_a_value() -> None:
    sampling = action_of(temperature=0, seed=0, top_k=0, presence_penalty=0, logprobs=False).sampling
    for field in ("temperature", "seed", "top_k", "presence_penalty", "logprobs"):
        assert sampling.HasField(field)


def test_tools_and_their_choice() -> None:
    named = {"type": "function", "function": {"name": "f"}}
    action = action_of(tools=[TOOL], tool_choice=named, parallel_tool_calls=False)
    assert (action.tools[0].parameters_json, action.tools[0].strict) == ('{"type":"object"}', True)
    assert (action.tool_choice.mode, action.tool_choice.function_name) == (pb.TOOL_CHOICE_MODE_NAMED, "f")
    assert action.HasField("parallel_tool_calls")
    assert action_of(tools=[TOOL], tool_choice="required").tool_choice.mode == pb.TOOL_CHOICE_MODE_REQUIRED
    assert action_of(tool_choice="none").tool_choice.mode == pb.TOOL_CHOICE_MODE_NONE


def test_forms_of_the_answer() -> None:
    form = {"type": "json_schema", "json_schema": {"name": "s", "schema": {"type": "object"}, "strict": True}}
    assert action_of(response_format=form).response_format.json_schema == '{"type":"object"}'
    json_object = action_of(response_format={"type": "json_object"}).response_format
    assert json_object.type == pb.RESPONSE_FORMAT_TYPE_JSON_OBJECT


def test_the_destination_is_part_of_what_is_judged() -> None:
    request = parse_chat_request({"messages": [USER], "model": "m"})
    action = build_action(request, Destination("openai", "rank", allow_remote=True))
    assert (action.provider, action.role, action.allow_remote) == ("openai", "rank", True)
    assert not build_action(request).allow_remote


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"messages": [{"content": "x"}]}, r"messages\[0\]\.role: is required"),
        ({"messages": ["x"]}, r"messages\[0\]: must be an object, not a string"),
        ({"messages": [{"role": "user"}]}, r"messages\[0\]\.content: is required"),
        ({"messages": [{"role": "user", "content": None}]}, r"messages\[0\]\.content: must be a string or a list"),
        ({"messages": [{"role": "user", "content": []}]}, r"messages\[0\]\.content: must have at least 1 entry"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": 5}]}]},
         r"messages\[0\]\.content\[0\]\.text: must be a string, not an integer"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
         r"messages\[0\]\.content\[0\]\.image_url: is required"),
        ({"messages": [{"role": "user", "content": [{"type": "file"}]}]},
         r"messages\[0\]\.content\[0\]\.type: must be one of 'text'"),
        ({"messages": [USER | {"extra": 1}]}, r"messages\[0\]\.extra: is not a known field"),
        ({"stop": 5}, "stop: must be a string or a list"),
        ({"stop": ["x"] * 17}, "stop: must have at most 16 entries"),
        ({"stop": ""}, "stop: must have at least 1 character"),
        ({"tool_choice": 5}, 'tool_choice: must be "none"'),
        ({"tool_choice": "auto"}, "tool_choice: is only allowed with `tools`"),
        ({"response_format": {"type": "xml"}}, "response_format.type: must be one of"),
        ({"metadata": {"a": 1}}, "metadata.a: must be a string"),
        ({"top_logprobs": 2}, "top_logprobs: needs"),
        ({"n": 0}, "n: must be at least 1"),
        ({"temperature": True}, "temperature: must be a number, not a boolean"),
        ({"max_tokens": 1.5}, "max_tokens: must be an integer, not a number"),
        ({"model": "m" * 257}, "model: must have at most 256 characters"),
        ({"not a name": 1}, "body: 'not a name' is not a parameter"),
        ({"tools": [{"type": "custom"}]}, r"tools\[0\]\.type: must be 'function'"),
        ({"reasoning_effort": "extreme"}, "reasoning_effort: must be 'none'"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        parse_chat_request({"messages": [USER]} | fields)


def test_fewer_messages_can_be_allowed() -> None:
    with pytest.raises(InvalidArgumentError, match="at most 1 entries"):
        parse_chat_request({"messages": [USER, USER]}, max_messages=1)


def test_a_conversation_without_a_user_has_no_request_text() -> None:
    assert request_text(action_of(messages=[{"role": "system", "content": "x"}])) == ""


def test_numbers_of_any_length_are_bounded() -> None:
    with pytest.raises(InvalidArgumentError, match="64 characters"):
        read_object(b'{"a": 0.' + b"1" * 100 + b"}")


def test_a_path_into_something_that_is_not_there_ends_where_it_can() -> None:
    assert path_of(("a", 5, "b"), {"a": []}, is_missing=False) == "a[5]"
