"""An answer that is not what was asked for: told to its model once, then to the caller."""

from __future__ import annotations

import hashlib
import json

import pytest

from kala.errors import InvalidArgumentError, UnavailableError
from kala.inference.v1 import inference_pb2 as pb
from services.inference.truth import HINTS
from tests.fakes.model_server import (
    DONE,
    FakeModelServer,
    Scripted,
    as_json,
    as_stream,
    chunk,
    completion,
    in_turn,
)
from tests.fakes.recordings import recording
from tests.service.inference.conftest import StartSuite, action
from tests.service.inference.test_faults import failed

JSON_OBJECT = pb.ResponseFormat(type=pb.RESPONSE_FORMAT_TYPE_JSON_OBJECT)
NUMBER = '{"type":"object","properties":{"n":{"type":"integer"}},"required":["n"]}'
JSON_SCHEMA = pb.ResponseFormat(
    type=pb.RESPONSE_FORMAT_TYPE_JSON_SCHEMA, schema_name="number", json_schema=NUMBER
)
TOOL = pb.ToolDefinition(name="add", parameters_json=NUMBER, strict=True)
REQUIRED = pb.ToolChoice(mode=pb.TOOL_CHOICE_MODE_REQUIRED)


def calls(arguments: str, *, finish: str = "tool_calls") -> Scripted:
    function = {"name": "add", "arguments": arguments}
    message = {"role": "assistant", "tool_calls": [{"id": "c1", "type": "function", "function": function}]}
    return as_json({"model": "tiny", "choices": [{"finish_reason": finish, "message": message}]})


async def test_an_answer_in_the_wrong_form_is_told_to_its_model_once(
    start: StartSuite, llama: FakeModelServer
) -> None:
    llama.on_chat(in_turn(as_json(completion("Sure!")), as_json(completion('{"n": 1}'))))
    suite = await start(llamacpp_url=llama.url)
    answer = await suite.chat(action("Count.", response_format=JSON_SCHEMA))
    assert json.loads(answer.text) == {"n": 1}
    first, second = answer.finish.attempts
    assert (first.reason, second.reason) == ("ANSWER_NOT_JSON", "")
    assert first.backend == second.backend == "backends/llamacpp"
    # Fixed words at the end of the user's message, and the outcome commits to just these.
    hint = HINTS["ANSWER_NOT_JSON"]
    assert [chat.json()["messages"][-1]["content"] for chat in llama.chats] == ["Count.", f"Count.\n\n{hint}"]
    assert answer.finish.derived_digest == hashlib.sha256(hint.encode()).digest()


async def test_an_answer_that_is_wrong_again_is_a_clear_failure(
    start: StartSuite, llama: FakeModelServer
) -> None:
    llama.on_chat(as_json(completion('{"n": "many"}')))
    async with FakeModelServer() as other:
        suite = await start(llamacpp_url=llama.url, llamacpp_urls=(other.url,))
        error, text, attempts = await failed(suite, action(response_format=JSON_SCHEMA))
        assert other.chats == []
    assert isinstance(error, UnavailableError)
    assert error.reason == "ANSWER_BREAKS_SCHEMA"
    assert "llamacpp answered with JSON that breaks the schema asked for (type) (at $.n)" in error.message
    assert text == ""
    assert [attempt.reason for attempt in attempts] == ["ANSWER_BREAKS_SCHEMA"] * 2
    assert all("many" not in attempt.detail for attempt in attempts)


async def test_disobedience_keeps_nobody_from_the_backend(start: StartSuite, llama: FakeModelServer) -> None:
    llama.on_chat(as_json(completion("Sure!")))
    suite = await start(llamacpp_url=llama.url)
    for _ in range(5):
        await failed(suite, action(response_format=JSON_OBJECT))
    assert (await suite.chat()).text == "Sure!"


async def test_a_stream_in_the_wrong_form_ends_in_an_error_before_its_finish(
    start: StartSuite, llama: FakeModelServer
) -> None:
    llama.on_chat(as_stream(chunk("Su"), chunk("re!"), chunk(finish="stop"), DONE))
    suite = await start(llamacpp_url=llama.url)
    error, text, attempts = await failed(suite, action(stream=True, response_format=JSON_OBJECT))
    assert (text, error.reason) == ("Sure!", "ANSWER_NOT_JSON")
    assert "what was sent so far is not what was asked for" in error.message
    assert [attempt.reason for attempt in attempts] == ["ANSWER_NOT_JSON"]


async def test_a_stream_in_the_right_form_is_whole(start: StartSuite, llama: FakeModelServer) -> None:
    llama.on_chat(as_stream(chunk('{"n"'), chunk(": 1}"), chunk(finish="stop"), DONE))
    suite = await start(llamacpp_url=llama.url)
    answer = await suite.chat(action(stream=True, response_format=JSON_SCHEMA))
    assert answer.text == '{"n": 1}'
    assert answer.finish.derived_digest == b""


async def test_an_answer_that_was_cut_by_the_limit_says_so_and_stands(
    start: StartSuite, llama: FakeModelServer
) -> None:
    llama.on_chat(as_json(completion('{"n":', finish="length")))
    suite = await start(llamacpp_url=llama.url)
    answer = await suite.chat(action(response_format=JSON_SCHEMA))
    assert answer.finish.reason == pb.FINISH_REASON_LENGTH


async def test_a_function_that_had_to_be_called_is_asked_for_again(
    start: StartSuite, llama: FakeModelServer
) -> None:
    # llama-server takes tool_choice "required" and does not enforce it.
    llama.on_chat(in_turn(as_json(completion("No.")), calls('{"n": 1}', finish="stop")))
    suite = await start(llamacpp_url=llama.url)
    answer = await suite.chat(action(tools=[TOOL], tool_choice=REQUIRED))
    assert [attempt.reason for attempt in answer.finish.attempts] == ["TOOL_NOT_CALLED", ""]
    (delta,) = answer.deltas
    assert delta.tool_calls[0].name == "add"
    # A server may say "stop" beside a call; the answer says what is true.
    assert answer.finish.reason == pb.FINISH_REASON_TOOL_CALLS


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [('{"n": ', "TOOL_ARGUMENTS_NOT_JSON"), ('{"n": "x"}', "TOOL_ARGUMENTS_BREAK_SCHEMA")],
)
async def test_arguments_that_cannot_be_used_never_arrive(
    start: StartSuite, llama: FakeModelServer, arguments: str, reason: str
) -> None:
    llama.on_chat(calls(arguments))
    suite = await start(llamacpp_url=llama.url)
    error, _, attempts = await failed(suite, action(tools=[TOOL]))
    assert error.reason == reason
    assert len(attempts) == 2


async def test_a_named_function_that_was_recorded_is_what_was_asked_for(
    start: StartSuite, llama: FakeModelServer
) -> None:
    recorded = recording("llama-cpp-python-0.3.36", "tools")
    sent = json.loads(recorded.request_body)
    llama.on_chat(recorded.scripted())
    llama.on("GET", "/v1/models", recording("llama-cpp-python-0.3.36", "models").scripted())
    function = sent["tools"][0]["function"]
    named = pb.ToolChoice(
        mode=pb.TOOL_CHOICE_MODE_NAMED, function_name=sent["tool_choice"]["function"]["name"]
    )
    tool = pb.ToolDefinition(name=function["name"], parameters_json=json.dumps(function["parameters"]))
    suite = await start(llamacpp_url=llama.url)
    answer = await suite.chat(action(tools=[tool], tool_choice=named))
    assert answer.deltas[0].tool_calls[0].name == function["name"]
    assert answer.finish.reason == pb.FINISH_REASON_TOOL_CALLS


async def test_a_server_that_claims_a_call_and_makes_none_is_left_for_the_next(
    start: StartSuite, llama: FakeModelServer
) -> None:
    llama.on_chat(as_json(completion("Hi", finish="tool_calls")))
    async with FakeModelServer() as other:
        suite = await start(llamacpp_url=llama.url, llamacpp_urls=(other.url,))
        answer = await suite.chat(action(tools=[TOOL]))
    assert answer.text == "Hello"
    assert [attempt.reason for attempt in answer.finish.attempts] == ["FINISH_UNTRUE", ""]


async def test_a_schema_that_cannot_be_checked_is_refused_before_anything_is_sent(
    start: StartSuite, llama: FakeModelServer
) -> None:
    suite = await start(llamacpp_url=llama.url)
    form = pb.ResponseFormat(
        type=pb.RESPONSE_FORMAT_TYPE_JSON_SCHEMA, schema_name="s", json_schema='{"$ref":"http://10.0.0.1/s"}'
    )
    with pytest.raises(
        InvalidArgumentError, match=r"response_format\.json_schema: refers to another document"
    ):
        await suite.chat(action(response_format=form))
    assert llama.chats == []
