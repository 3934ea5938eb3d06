"""A stream that breaks off, with the policy `continue`: the next backend goes on, and the splice is declared."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator

import pytest

from kala.inference.v1 import inference_pb2 as pb
from services.inference.backends.pythia import PythiaBackend
from services.inference.config import EMBEDDED_MODEL_DIR
from services.inference.continuation import GO_ON
from tests.fakes.model_server import (
    DONE,
    Cut,
    FakeModelServer,
    Gate,
    Scripted,
    as_json,
    as_stream,
    chunk,
    completion,
    in_turn,
)
from tests.service.inference.conftest import StartSuite, action
from tests.service.inference.test_faults import failed

CONTINUE = pb.MID_STREAM_POLICY_CONTINUE
JSON_OBJECT = pb.ResponseFormat(type=pb.RESPONSE_FORMAT_TYPE_JSON_OBJECT)
BROKEN_OFF = as_stream(chunk("Once "), chunk("upon"), Cut())
REST = as_stream(chunk(" a time."), chunk(finish="stop"), DONE)


def told(*texts: str) -> bytes:
    return hashlib.sha256("".join(texts).encode()).digest()


@pytest.fixture
async def second() -> AsyncIterator[FakeModelServer]:
    """Run another llama-server with the same model."""
    async with FakeModelServer() as server:
        yield server


async def test_the_next_backend_goes_on_where_the_text_broke_off(
    start: StartSuite, llama: FakeModelServer, second: FakeModelServer
) -> None:
    llama.on_chat(BROKEN_OFF)
    second.on_chat(REST)
    suite = await start(llamacpp_url=llama.url, llamacpp_urls=(second.url,))
    answer = await suite.chat(action("Tell.", stream=True, mid_stream=CONTINUE))
    assert answer.text == "Once upon a time."
    assert answer.finish.reason == pb.FINISH_REASON_STOP
    first, spliced = answer.finish.attempts
    assert (first.backend, first.reason, first.spliced) == ("backends/llamacpp", "STREAM_CUT", False)
    assert (spliced.backend, spliced.reason, spliced.spliced) == ("backends/llamacpp-2", "", True)
    assert answer.finish.derived_digest == told("Once upon")
    assert second.chats[0].json()["messages"][-1] == {"role": "assistant", "content": "Once upon"}


async def test_a_server_that_would_answer_anew_is_asked_to_go_on(
    start: StartSuite, llama: FakeModelServer
) -> None:
    llama.on_chat(BROKEN_OFF)
    async with FakeModelServer() as studio:
        studio.on("GET", "/api/v0/models", as_json({"data": [{"id": "s", "type": "llm", "state": "loaded"}]}))
        studio.on_chat(as_stream(chunk(" a time.", model="s"), chunk(finish="stop", model="s"), DONE))
        suite = await start(llamacpp_url=llama.url, lmstudio_url=studio.url)
        answer = await suite.chat(action(stream=True, mid_stream=CONTINUE))
        assert studio.chats[0].json()["messages"][-2:] == [
            {"role": "assistant", "content": "Once upon"},
            {"role": "user", "content": GO_ON},
        ]
    assert answer.text == "Once upon a time."
    assert answer.finish.derived_digest == told("Once upon", GO_ON)


async def test_a_template_that_takes_no_unfinished_answer_is_asked_in_words(
    start: StartSuite, llama: FakeModelServer, second: FakeModelServer
) -> None:
    refusal = {"message": "Assistant response prefill is incompatible with enable_thinking.", "code": 400}
    llama.on_chat(BROKEN_OFF)
    second.on_chat(in_turn(as_json({"error": refusal}, status=400), REST))
    suite = await start(llamacpp_url=llama.url, llamacpp_urls=(second.url,))
    answer = await suite.chat(action(stream=True, mid_stream=CONTINUE))
    assert answer.text == "Once upon a time."
    assert [attempt.reason for attempt in answer.finish.attempts] == ["STREAM_CUT", "BACKEND_REJECTED", ""]
    assert second.chats[1].json()["messages"][-1]["content"] == GO_ON


async def test_a_continuation_that_breaks_off_too_is_carried_on_from_there(
    start: StartSuite, llama: FakeModelServer, second: FakeModelServer
) -> None:
    llama.on_chat(BROKEN_OFF)
    second.on_chat(as_stream(chunk(" a"), Cut()))
    async with FakeModelServer() as third:
        third.on_chat(as_stream(chunk(" time."), chunk(finish="stop"), DONE))
        suite = await start(llamacpp_url=llama.url, llamacpp_urls=(second.url, third.url))
        answer = await suite.chat(action(stream=True, mid_stream=CONTINUE))
    assert answer.text == "Once upon a time."
    assert [attempt.spliced for attempt in answer.finish.attempts] == [False, True, True]
    assert answer.finish.derived_digest == told("Once upon", "Once upon a")


async def test_when_nobody_can_go_on_the_text_so_far_stands_as_incomplete(
    start: StartSuite, llama: FakeModelServer, second: FakeModelServer
) -> None:
    llama.on_chat(BROKEN_OFF)
    second.on_chat(as_json({"error": "oops"}, status=500))
    suite = await start(llamacpp_url=llama.url, llamacpp_urls=(second.url,))
    error, text, attempts = await failed(suite, action(stream=True, mid_stream=CONTINUE))
    assert (text, error.reason) == ("Once upon", "BACKEND_FAILED_MID_STREAM")
    assert "llamacpp closed the connection in the middle of the answer" in error.message
    assert [attempt.reason for attempt in attempts] == ["STREAM_CUT", "HTTP_500"]


@pytest.mark.parametrize(
    "script",
    [
        pytest.param(
            as_stream(
                chunk("Hm."),
                chunk(
                    delta={
                        "tool_calls": [{"index": 0, "id": "c", "function": {"name": "f", "arguments": "{"}}]
                    }
                ),
                Cut(),
            ),
            id="half a function call",
        ),
        pytest.param(as_stream(chunk(delta={"refusal": "I will"}), Cut()), id="a refusal"),
        pytest.param(as_stream(chunk("All."), chunk(finish="stop")), id="an end without [DONE]"),
    ],
)
async def test_what_cannot_be_carried_on_ends_in_an_error(
    start: StartSuite, llama: FakeModelServer, second: FakeModelServer, script: Scripted
) -> None:
    llama.on_chat(script)
    suite = await start(llamacpp_url=llama.url, llamacpp_urls=(second.url,))
    tool = pb.ToolDefinition(name="f")
    error, _, _ = await failed(suite, action(stream=True, mid_stream=CONTINUE, tools=[tool]))
    assert error.reason == "BACKEND_FAILED_MID_STREAM"
    assert second.chats == []


async def test_the_whole_is_held_against_the_form_not_the_rest(
    start: StartSuite, llama: FakeModelServer, second: FakeModelServer
) -> None:
    llama.on_chat(as_stream(chunk('{"a":'), Cut()))
    second.on_chat(as_stream(chunk(" 1}"), chunk(finish="stop"), DONE))
    suite = await start(llamacpp_url=llama.url, llamacpp_urls=(second.url,))
    wanted = action(stream=True, mid_stream=CONTINUE, response_format=JSON_OBJECT)
    assert (await suite.chat(wanted)).text == '{"a": 1}'
    # A grammar would make the server begin its JSON anew.
    assert "response_format" not in second.chats[0].json()
    second.on_chat(as_stream(chunk('{"a": 1}'), chunk(finish="stop"), DONE))
    error, text, _ = await failed(suite, wanted)
    assert (text, error.reason) == ('{"a":{"a": 1}', "ANSWER_NOT_JSON")


async def test_a_long_stream_is_carried_on_after_its_clearance_has_ended(
    start: StartSuite, llama: FakeModelServer, second: FakeModelServer
) -> None:
    # The act began in time; from then on max_act_seconds bounds it, not the clearance (design section 4).
    released = asyncio.Event()
    llama.on_chat(as_stream(chunk("Once upon"), Gate(released), Cut()))
    second.on_chat(REST)
    suite = await start(llamacpp_url=llama.url, llamacpp_urls=(second.url,))
    text = ""
    async for response in suite.call(action(stream=True, mid_stream=CONTINUE)):
        suite.clock.ahead_seconds = 600
        released.set()
        text += response.delta.text
    assert text == "Once upon a time."


@pytest.mark.torch
async def test_the_model_in_process_goes_on_as_if_nothing_had_happened(
    start: StartSuite, llama: FakeModelServer
) -> None:
    if not (EMBEDDED_MODEL_DIR / "model.safetensors").exists():
        pytest.skip("the embedded model is not here")
    suite = await start(llamacpp_url=llama.url, model_dir=EMBEDDED_MODEL_DIR)
    pythia = suite.registry.get("pythia")
    assert pythia is not None
    assert isinstance(pythia.backend, PythiaBackend)
    await pythia.backend.preload()
    greedy = {"stream": True, "mid_stream": CONTINUE, "sampling": pb.Sampling(temperature=0)}
    question = "What is the capital of France?"
    whole = await suite.chat(action(question, provider="pythia", **greedy))
    assert "Paris" in whole.text
    cut = whole.text.index(" Paris") + 1
    llama.on_chat(as_stream(chunk(whole.text[:cut]), Cut()))
    spliced = await suite.chat(action(question, **greedy))
    assert [attempt.backend for attempt in spliced.finish.attempts] == [
        "backends/llamacpp",
        "backends/pythia",
    ]
    assert spliced.text == whole.text


async def test_an_answer_that_is_no_stream_begins_anew(
    start: StartSuite, llama: FakeModelServer, second: FakeModelServer
) -> None:
    llama.on_chat(Scripted([b'{"choices": [', Cut()], 200, {"content-type": "application/json"}, "chunked"))
    second.on_chat(as_json(completion("Whole.")))
    suite = await start(llamacpp_url=llama.url, llamacpp_urls=(second.url,))
    answer = await suite.chat(action("Tell.", mid_stream=CONTINUE))
    assert answer.text == "Whole."
    assert not answer.finish.attempts[1].spliced
    assert second.chats[0].json()["messages"] == [{"role": "user", "content": "Tell."}]


async def test_text_that_was_made_here_goes_to_no_remote_backend_to_be_carried_on(
    start: StartSuite, llama: FakeModelServer, second: FakeModelServer
) -> None:
    llama.on_chat(BROKEN_OFF)
    second.on_chat(REST)
    remote = {"openai_api_key": "sk-test", "openai_url": second.url + "/v1", "openai_model": "gpt-4o-mini"}
    suite = await start(llamacpp_url=llama.url, **remote)
    error, *_ = await failed(suite, action("Tell.", stream=True, mid_stream=CONTINUE, allow_remote=True))
    assert error.reason == "BACKEND_FAILED_MID_STREAM"
    assert second.chats == []
