"""Chat over a real gRPC server in front of a scripted llama-server."""

from __future__ import annotations

import time

import pytest

from kala.inference.v1 import inference_pb2 as pb
from tests.fakes.model_server import DONE, FakeModelServer, Hang, Scripted, as_stream, chunk
from tests.service.inference.conftest import StartSuite, action


async def test_a_whole_answer_comes_as_route_one_delta_and_finish(
    start: StartSuite, llama: FakeModelServer
) -> None:
    suite = await start(llamacpp_url=llama.url)
    answer = await suite.chat(action("Hi"))
    assert [response.WhichOneof("event") for response in answer.responses] == ["route", "delta", "finish"]
    assert (answer.route.backend, answer.route.kind, answer.route.model) == (
        "backends/llamacpp",
        "llamacpp",
        "tiny",
    )
    assert answer.text == "Hello"
    assert answer.finish.reason == pb.FINISH_REASON_STOP
    assert (answer.finish.usage.input_tokens, answer.finish.usage.output_tokens) == (7, 2)
    assert [(attempt.backend, attempt.reason) for attempt in answer.finish.attempts] == [
        ("backends/llamacpp", "")
    ]


async def test_a_streamed_answer_ends_with_finish_and_usage(
    start: StartSuite, llama: FakeModelServer
) -> None:
    llama.on_chat(
        as_stream(
            chunk(delta={"role": "assistant", "content": None}),
            chunk("Hel"),
            chunk("lo"),
            chunk(finish="stop"),
            chunk(usage={"prompt_tokens": 3, "completion_tokens": 2}),
            DONE,
        )
    )
    suite = await start(llamacpp_url=llama.url)
    answer = await suite.chat(action("Hi", stream=True))
    assert answer.responses[0].HasField("route")
    assert answer.text == "Hello"
    assert answer.finish.usage.output_tokens == 2
    sent = llama.chats[0].json()
    assert sent["stream"] is True
    assert sent["stream_options"] == {"include_usage": True}


@pytest.mark.parametrize(
    "model", ["", "auto", "local-model", "tiny", "llamacpp/tiny", "llamacpp/local-model"]
)
async def test_the_loaded_model_is_sent_by_its_own_name(
    start: StartSuite, llama: FakeModelServer, model: str
) -> None:
    suite = await start(llamacpp_url=llama.url)
    await suite.chat(action(model=model))
    assert llama.chats[0].json()["model"] == "tiny"


async def test_a_stream_leaves_its_connection_for_the_next_one(
    start: StartSuite, llama: FakeModelServer
) -> None:
    llama.on_chat(as_stream(chunk("Hi"), chunk(finish="stop"), DONE))
    suite = await start(llamacpp_url=llama.url)
    for _ in range(5):
        await suite.chat(action(stream=True))
    # One for the look, which may still be under way, and one for the chats.
    assert llama.connections <= 2


async def test_a_hanging_host_does_not_hold_up_the_first_request(
    start: StartSuite, llama: FakeModelServer
) -> None:
    async with FakeModelServer(like_llama_server=False) as hanging:
        for path in ("/health", "/api/tags"):
            hanging.on("GET", path, Scripted([Hang()]))
        suite = await start(llamacpp_url=llama.url, ollama_url=hanging.url)
        started = time.monotonic()
        assert (await suite.chat()).route.backend == "backends/llamacpp"
        assert time.monotonic() - started < 2
