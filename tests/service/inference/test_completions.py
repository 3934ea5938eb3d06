"""Completions over a real gRPC server in front of scripted and recorded model servers."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import pytest

from kala.errors import (
    InvalidArgumentError,
    UnavailableError,
)
from kala.inference.v1 import inference_pb2 as pb
from services.common.status import translated
from tests.fakes.model_server import (
    DONE,
    Cut,
    FakeModelServer,
    Hang,
    Scripted,
    as_json,
    as_stream,
)
from tests.fakes.recordings import recording
from tests.service.inference.conftest import StartSuite, Suite
from tests.service.inference.task_servers import lm_studio, sealed

COMPLETE = "/v1/completions"


@pytest.fixture
async def studio() -> AsyncIterator[FakeModelServer]:
    async with lm_studio() as server:
        yield server


async def complete(suite: Suite, prompt: str = "Once", **fields: object) -> list[pb.CompleteResponse]:
    action = pb.CompleteAction(prompt=prompt, **fields)
    with translated():
        request = pb.CompleteRequest(sealed=sealed(suite, action, "Complete"))
        return [response async for response in suite.stub.Complete(request)]


def text_chunk(text: str, finish: str | None = None) -> bytes:
    choice = {"index": 0, "text": text, "finish_reason": finish}
    return b"data: " + json.dumps({"model": "tiny", "choices": [choice]}).encode() + b"\n\n"


async def test_a_real_completion_comes_in_one_message(start: StartSuite, llama: FakeModelServer) -> None:
    llama.on("GET", "/v1/models", recording("llama-server-tiny-neox", "models").scripted())
    llama.on("POST", COMPLETE, recording("llama-server-tiny-neox", "completions").scripted())
    suite = await start(llamacpp_url=llama.url)
    (answer,) = await complete(suite, "Hello", sampling=pb.Sampling(max_output_tokens=4, temperature=0))
    assert (answer.text, answer.route.model) == ("\nHello\nHello", "tiny-neox")
    assert answer.finish.reason == pb.FINISH_REASON_LENGTH
    assert (answer.finish.usage.input_tokens, answer.finish.usage.output_tokens) == (1, 4)
    sent = next(seen.json() for seen in llama.requests if seen.path == COMPLETE)
    assert (sent["prompt"], sent["max_tokens"], sent["model"]) == ("Hello", 4, "tiny-neox")


async def test_a_streamed_completion_comes_as_it_is_made(start: StartSuite, llama: FakeModelServer) -> None:
    llama.on("POST", COMPLETE, as_stream(text_chunk(" upon"), text_chunk(" a time", "stop"), DONE))
    suite = await start(llamacpp_url=llama.url)
    responses = await complete(suite, stream=True)
    assert "".join(response.text for response in responses) == " upon a time"
    assert responses[0].HasField("route")
    assert responses[-1].finish.reason == pb.FINISH_REASON_STOP


@pytest.mark.parametrize("stream", [False, True])
async def test_an_echo_puts_the_prompt_in_front_once(
    start: StartSuite, llama: FakeModelServer, stream: bool
) -> None:
    whole = as_json({"model": "tiny", "choices": [{"text": " upon", "finish_reason": "stop"}]})
    llama.on("POST", COMPLETE, as_stream(text_chunk(" upon", "stop"), DONE) if stream else whole)
    suite = await start(llamacpp_url=llama.url)
    responses = await complete(suite, "Once", stream=stream, echo=True)
    assert "".join(response.text for response in responses) == "Once upon"


async def test_mlx_continues_texts_over_a_stream(start: StartSuite) -> None:
    folder = "mlx_lm-0.32.2-tiny-llama"
    async with FakeModelServer(like_llama_server=False) as server:
        for method, path, case in (
            ("GET", "/health", "health"), ("GET", "/v1/models", "models"), ("POST", COMPLETE, "completions_stream"),
        ):  # fmt: skip
            server.on(method, path, recording(folder, case).scripted(piece_bytes=61))
        suite = await start(mlx_url=server.url)
        (answer,) = await complete(suite, "Hello")
        assert answer.text == "! How can I"
        sent = next(seen.json() for seen in server.requests if seen.path == COMPLETE)
        assert sent["model"] == "default_model"


async def test_ollama_continues_the_raw_text_and_fills_gaps_by_the_models_template(start: StartSuite) -> None:
    lines = [{"model": "qwen:latest", "response": " upon", "done": False}]
    lines.append(
        {"model": "qwen:latest", "response": "", "done": True, "done_reason": "stop", "eval_count": 1}
    )
    body = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
    async with FakeModelServer(like_llama_server=False) as server:
        server.on("GET", "/api/tags", as_json({"models": [{"name": "qwen:latest", "digest": "d"}]}))
        server.on("GET", "/api/ps", as_json({"models": [{"name": "qwen:latest"}]}))
        server.on("POST", "/api/show", as_json({"capabilities": ["completion"], "model_info": {}}))
        server.on("POST", "/api/generate", Scripted([body], 200, {"content-type": "application/x-ndjson"}))
        suite = await start(ollama_url=server.url)
        (plain,) = await complete(suite, "Once")
        (filled,) = await complete(suite, "Once", suffix="a time")
        assert (plain.text, filled.text, plain.finish.usage.output_tokens) == (" upon", " upon", 1)
        first, second = (seen.json() for seen in server.requests if seen.path == "/api/generate")
        assert (first["raw"], first["truncate"], "suffix" in first) == (True, False, False)
        assert (second["suffix"], "raw" in second) == ("a time", False)


async def test_a_gap_that_a_server_cannot_fill_is_refused(start: StartSuite, llama: FakeModelServer) -> None:
    suite = await start(llamacpp_url=llama.url)
    with pytest.raises(InvalidArgumentError, match="suffix: this server fills no gaps"):
        await complete(suite, "Once", suffix="a time")
    assert not [seen for seen in llama.requests if seen.path == COMPLETE]


async def test_a_completion_goes_on_to_the_next_backend_before_its_first_word_and_never_after(
    start: StartSuite, llama: FakeModelServer, studio: FakeModelServer
) -> None:
    llama.on("POST", COMPLETE, as_json({"error": {"message": "broken"}}, status=500))
    whole = {"model": "qwen", "choices": [{"text": " upon", "finish_reason": "stop"}]}
    studio.on("POST", COMPLETE, as_json(whole))
    suite = await start(llamacpp_url=llama.url, lmstudio_url=studio.url)
    (answer,) = await complete(suite)
    assert answer.route.backend == "backends/lmstudio"
    assert [each.reason for each in answer.finish.attempts] == ["HTTP_500", ""]
    llama.on("POST", COMPLETE, as_stream(text_chunk(" upon"), Cut()))
    with pytest.raises(UnavailableError) as caught:
        await complete(suite, stream=True)
    assert caught.value.reason == "BACKEND_FAILED_MID_STREAM"


async def test_the_upstream_ends_when_the_reader_of_a_completion_leaves(
    start: StartSuite, llama: FakeModelServer
) -> None:
    llama.on("POST", COMPLETE, as_stream(text_chunk(" upon"), Hang()))
    suite = await start(llamacpp_url=llama.url)
    action = pb.CompleteAction(prompt="Once", stream=True)
    call = suite.stub.Complete(pb.CompleteRequest(sealed=sealed(suite, action, "Complete")))
    async for response in call:
        assert response.text == " upon"
        call.cancel()
        break
    await llama.client_left.wait()


async def test_a_prompt_over_the_context_names_the_prompt(start: StartSuite, llama: FakeModelServer) -> None:
    llama.on("POST", COMPLETE, recording("llama-server-tiny-neox", "overflow").scripted())
    suite = await start(llamacpp_url=llama.url)
    with pytest.raises(InvalidArgumentError, match=r"408 tokens.*256 tokens; shorten it") as caught:
        await complete(suite, "word " * 400)
    assert (caught.value.field, caught.value.reason) == ("prompt", "CONTEXT_LENGTH_EXCEEDED")
