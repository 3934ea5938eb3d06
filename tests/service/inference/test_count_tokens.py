"""CountTokens: the backend's own tokenizer where it has one, an estimate that says so elsewhere, and prompts made to fit."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from kala.errors import FailedPreconditionError, InvalidArgumentError, NotFoundError
from kala.inference.v1 import inference_pb2 as pb
from services.common.status import translated
from services.inference.backends import llamacpp
from services.inference.backends.llamacpp import COUNTS_AT_ONCE
from tests.fakes.images import PIXEL
from tests.fakes.model_server import FakeModelServer, Hang, Scripted, as_json, llama_models
from tests.fakes.recordings import recording
from tests.fakes.tiny_pythia import make_tiny_pythia
from tests.service.inference.conftest import StartSuite, Suite, action

NEOX = "llama-server-tiny-neox"
INPUT_TOKENS = "/v1/chat/completions/input_tokens"
TAIL, BUDGET = pb.FIT_STRATEGY_KEEP_SYSTEM_AND_TAIL, pb.FIT_STRATEGY_CONTENT_BUDGET


def say(text: str, role: pb.Role = pb.ROLE_USER) -> pb.ChatMessage:
    return pb.ChatMessage(role=role, content=[pb.ContentPart(text=text)])


async def count(suite: Suite, *messages: pb.ChatMessage, **fields: object) -> pb.CountTokensResponse:
    request = pb.CountTokensRequest(**{"messages": messages or [say("Hello")], **fields})
    with translated():
        return await suite.stub.CountTokens(request)


@pytest.fixture
async def server() -> AsyncIterator[FakeModelServer]:
    async with FakeModelServer(like_llama_server=False) as fake:
        fake.on("GET", "/health", recording(NEOX, "health").scripted())
        fake.on("GET", "/v1/models", recording(NEOX, "models").scripted())
        yield fake


def older(server: FakeModelServer) -> None:
    server.on("POST", "/apply-template", recording(NEOX, "apply_template").scripted())
    server.on("POST", "/tokenize", recording(NEOX, "tokenize").scripted())


# --- llama-server, which has a tokenizer


async def test_llama_server_counts_the_whole_request(start: StartSuite, server: FakeModelServer) -> None:
    server.on("POST", INPUT_TOKENS, recording(NEOX, "count_tokens").scripted())
    suite = await start(llamacpp_url=server.url)
    tool = pb.ToolDefinition(name="look_up", parameters_json='{"type":"object"}')
    counted = await count(suite, tools=[tool])
    assert (counted.tokens, counted.estimated, counted.context_tokens) == (7, False, 256)
    assert (counted.backend, counted.backend_model) == ("backends/llamacpp", "tiny-neox")
    assert not counted.fitted
    sent = server.requests[-1].json()
    assert sent["messages"] == [{"role": "user", "content": "Hello"}]
    assert sent["tools"][0]["function"]["name"] == "look_up"


async def test_counts_leave_connections_for_everything_else(
    start: StartSuite, server: FakeModelServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    # They take no place in the bulkhead: without a bound of their own, looks would wait behind them and find nobody.
    monkeypatch.setattr(llamacpp, "COUNT_SECONDS", 0.2)
    server.on("POST", INPUT_TOKENS, Scripted([Hang()], framing="chunked"))
    suite = await start(llamacpp_url=server.url)
    asking = [asyncio.create_task(count(suite)) for _ in range(20)]
    done, waiting = await asyncio.wait(asking, timeout=3)
    assert (len(done), len(waiting)) == (18, COUNTS_AT_ONCE)
    assert all(task.result().estimated for task in done)
    assert len([seen for seen in server.requests if seen.path == INPUT_TOKENS]) == COUNTS_AT_ONCE
    for task in waiting:
        task.cancel()


async def test_an_older_llama_server_counts_by_its_template(
    start: StartSuite, server: FakeModelServer
) -> None:
    older(server)
    suite = await start(llamacpp_url=server.url)
    counted = await count(suite)
    assert (counted.tokens, counted.estimated) == (1, False)
    asked = server.requests[-1].json()
    # What the server's own template wrote, with its control tokens read as such.
    assert asked["content"] == "<|user|>\nHello<|endoftext|>\n<|assistant|>\n"
    assert asked["parse_special"] is True


async def test_nothing_is_generated_and_no_model_is_loaded_for_a_count(
    start: StartSuite, server: FakeModelServer
) -> None:
    idle = {"data": [{"id": "big", "owned_by": "llamacpp", "status": {"value": "unloaded"}}]}
    server.on("GET", "/v1/models", as_json(idle, headers={"server": "llama.cpp"}))
    suite = await start(llamacpp_url=server.url)
    assert (await count(suite, model="big")).estimated
    assert [seen for seen in server.requests if seen.method == "POST"] == []


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(as_json({"error": {"message": "no template", "code": 500}}, status=500), id="an error"),
        pytest.param(as_json({"input_tokens": True}), id="no number"),
        pytest.param(as_json([]), id="another shape"),
        pytest.param(Scripted([b"<html>"], 200, {"content-type": "text/html"}), id="a web page"),
    ],
)
async def test_a_tokenizer_that_fails_gives_way_to_an_estimate(
    start: StartSuite, server: FakeModelServer, answer: Scripted
) -> None:
    server.on("POST", INPUT_TOKENS, answer)
    suite = await start(llamacpp_url=server.url)
    counted = await count(suite)
    assert counted.estimated
    assert 5 < counted.tokens < 40


async def test_an_image_makes_the_count_an_estimate(start: StartSuite, server: FakeModelServer) -> None:
    server.on("POST", INPUT_TOKENS, recording(NEOX, "count_tokens").scripted())
    seeing = llama_models("tiny") | {"models": [{"capabilities": ["multimodal"]}]}
    server.on("GET", "/v1/models", as_json(seeing, headers={"server": "llama.cpp"}))
    suite = await start(llamacpp_url=server.url)
    message = pb.ChatMessage(
        role=pb.ROLE_USER, content=[pb.ContentPart(text="Hello"), pb.ContentPart(image_data_uri=PIXEL)]
    )
    counted = await count(suite, message)
    assert counted.estimated
    assert counted.tokens > 1000
    assert b"base64" not in server.requests[-1].body


async def test_a_prompt_never_leaves_to_be_counted(start: StartSuite, server: FakeModelServer) -> None:
    suite = await start(openai_api_key="sk-test", openai_url=server.url + "/v1", openai_model="gpt-4o-mini")
    counted = await count(suite, allow_remote=True)
    assert (counted.backend, counted.estimated) == ("backends/openai", True)
    assert server.connections == 0


# --- fitting


def without_tokenizer(server: FakeModelServer) -> None:
    server.on("POST", INPUT_TOKENS, as_json({"error": {"message": "off"}}, status=500))


async def test_the_oldest_turns_are_left_out_and_the_rest_comes_back_as_it_was(
    start: StartSuite, server: FakeModelServer
) -> None:
    without_tokenizer(server)
    suite = await start(llamacpp_url=server.url)
    call = pb.ToolCall(id="c1", name="look_up", arguments='{"a":1}', index=0)
    conversation = [
        say("Be brief.", pb.ROLE_SYSTEM),
        say("old " * 300),
        say("answer " * 100, pb.ROLE_ASSISTANT),
        pb.ChatMessage(role=pb.ROLE_USER, name="Ada", content=[pb.ContentPart(text="And now?")]),
        pb.ChatMessage(role=pb.ROLE_ASSISTANT, tool_calls=[call]),
        pb.ChatMessage(role=pb.ROLE_TOOL, tool_call_id="c1", content=[pb.ContentPart(text="found")]),
    ]
    counted = await count(suite, *conversation, fit=TAIL, reserve_output_tokens=100)
    assert list(counted.fitted) == [conversation[0], *conversation[3:]]
    assert counted.tokens > 256
    assert 0 < counted.fitted_tokens <= 156
    assert counted.estimated


async def test_a_prompt_is_fitted_to_the_narrowest_host_of_its_model(
    start: StartSuite, server: FakeModelServer
) -> None:
    without_tokenizer(server)
    async with FakeModelServer() as wide:
        narrow = llama_models("tiny", n_ctx=128)
        server.on("GET", "/v1/models", as_json(narrow, headers={"server": "llama.cpp"}))
        suite = await start(llamacpp_url=wide.url, llamacpp_urls=(server.url,))
        counted = await count(suite, say("old " * 150), say("And now?"), fit=TAIL)
    assert counted.context_tokens == 128
    assert [message.content[0].text for message in counted.fitted] == ["And now?"]


async def test_a_tokenizer_that_fails_in_between_leaves_no_mixed_numbers(
    start: StartSuite, server: FakeModelServer
) -> None:
    suite = await start(llamacpp_url=server.url)
    # The whole prompt is counted, with a number far from any estimate; its text then is not.
    server.on("POST", INPUT_TOKENS, as_json({"input_tokens": 90_000}))
    counted = await count(suite, say("word " * 300), fit=BUDGET, reserve_output_tokens=56)
    assert counted.estimated
    assert 300 < counted.tokens < 500
    assert 150 < counted.fitted_tokens <= 200


async def test_a_document_is_cut_to_the_models_content_budget(
    start: StartSuite, server: FakeModelServer
) -> None:
    server.on(
        "GET", "/v1/models", as_json(llama_models("qwen3-1b", n_ctx=32768), headers={"server": "llama.cpp"})
    )
    without_tokenizer(server)
    suite = await start(llamacpp_url=server.url)
    counted = await count(suite, say("word " * 5000), fit=BUDGET)
    assert 500 < counted.fitted_tokens < 600
    assert "left out" in counted.fitted[0].content[0].text


async def test_a_prompt_that_cannot_fit_is_refused_with_both_numbers(
    start: StartSuite, server: FakeModelServer
) -> None:
    without_tokenizer(server)
    suite = await start(llamacpp_url=server.url)
    with pytest.raises(InvalidArgumentError, match=r"has \d+ tokens, and there is room for 156") as refused:
        await count(suite, say("long " * 500), fit=TAIL, reserve_output_tokens=100)
    assert refused.value.reason == "CONTEXT_LENGTH_EXCEEDED"


async def test_an_answer_longer_than_the_context_is_refused(
    start: StartSuite, server: FakeModelServer
) -> None:
    suite = await start(llamacpp_url=server.url)
    with pytest.raises(InvalidArgumentError, match="context of 256 tokens") as refused:
        await count(suite, fit=TAIL, reserve_output_tokens=256)
    assert refused.value.field == "reserve_output_tokens"


async def test_without_a_known_context_nothing_is_fitted_to_it(
    start: StartSuite, server: FakeModelServer
) -> None:
    listed = {"data": [{"id": "m", "owned_by": "llamacpp", "meta": {}}]}
    server.on("GET", "/v1/models", as_json(listed, headers={"server": "llama.cpp"}))
    suite = await start(llamacpp_url=server.url)
    with pytest.raises(FailedPreconditionError, match="not known") as refused:
        await count(suite, fit=TAIL)
    assert refused.value.reason == "CONTEXT_UNKNOWN"
    # A content budget needs none.
    assert (await count(suite, fit=BUDGET)).fitted_tokens > 0


async def test_what_is_wrong_with_a_request_is_named_as_for_a_chat(
    start: StartSuite, server: FakeModelServer
) -> None:
    suite = await start(llamacpp_url=server.url)
    with pytest.raises(InvalidArgumentError, match="fit"):
        await count(suite, fit=99)
    with pytest.raises(NotFoundError, match="'other' is not known"):
        await count(suite, model="other")
    with pytest.raises(InvalidArgumentError, match=r"messages\[0\]"):
        await count(suite, pb.ChatMessage(role=pb.ROLE_USER))


async def test_a_silent_tokenizer_does_not_hold_the_count_up_for_ever(
    start: StartSuite, server: FakeModelServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.inference.backends.llama_tokens.COUNT_SECONDS", 0.05)
    server.on("POST", INPUT_TOKENS, Scripted([Hang()]))
    suite = await start(llamacpp_url=server.url)
    assert (await count(suite)).estimated


# --- the model in process


@pytest.mark.torch
async def test_the_model_in_process_counts_what_it_will_read(start: StartSuite, tmp_path: Path) -> None:
    suite = await start(model_dir=make_tiny_pythia(tmp_path / "tiny"))
    counted = await count(suite, say("Hi"))
    assert (counted.tokens, counted.estimated, counted.context_tokens) == (5, False, 64)
    answer = await suite.chat(action("Hi", sampling=pb.Sampling(max_output_tokens=2)))
    assert answer.finish.usage.input_tokens == counted.tokens


@pytest.mark.torch
async def test_a_prompt_fitted_to_the_model_in_process_fits(start: StartSuite, tmp_path: Path) -> None:
    suite = await start(model_dir=make_tiny_pythia(tmp_path / "tiny"))
    conversation = [say("12345678"), say("12345678", pb.ROLE_ASSISTANT), say("23456789"), say("Hi")]
    fitted = await count(suite, *conversation, fit=TAIL, reserve_output_tokens=40)
    assert list(fitted.fitted) == conversation[2:]
    wanted = pb.ChatAction(
        messages=fitted.fitted,
        truncation=pb.TRUNCATION_FITTED,
        sampling=pb.Sampling(max_output_tokens=40),
    )
    answer = await suite.chat(wanted)
    assert answer.finish.usage.input_tokens == fitted.fitted_tokens
    assert answer.finish.usage.output_tokens == 40


@pytest.mark.torch
async def test_what_the_models_template_refuses_is_estimated(start: StartSuite, tmp_path: Path) -> None:
    # The chat itself then says what the template has against it.
    template = "{{ raise_exception('never') }}"
    suite = await start(model_dir=make_tiny_pythia(tmp_path / "strict", template=template))
    assert (await count(suite)).estimated
