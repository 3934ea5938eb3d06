"""Chat over a real gRPC server in front of a scripted llama-server."""

from __future__ import annotations

import time

import pytest

from kala.inference.v1 import inference_pb2 as pb
from tests.fakes.model_server import DONE, FakeModelServer, Hang, Scripted, as_json, as_stream, chunk
from tests.service.inference.conftest import StartSuite, action


async def test_a_whole_answer_comes_in_one_message(start: StartSuite, llama: FakeModelServer) -> None:
    suite = await start(llamacpp_url=llama.url)
    answer = await suite.chat(action("Hi"))
    (response,) = answer.responses
    assert [field.name for field, _ in response.ListFields()] == ["route", "delta", "finish"]
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


async def test_reasoning_tool_calls_and_logprobs_are_carried_through(
    start: StartSuite, llama: FakeModelServer
) -> None:
    pieces = [
        {"reasoning_content": "think"},
        {
            "tool_calls": [
                {"index": 0, "id": "a", "type": "function", "function": {"name": "f", "arguments": ""}}
            ]
        },
        {"tool_calls": [{"index": 0, "function": {"arguments": '{"x":'}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": "1}"}}]},
        {"tool_calls": [{"index": 1, "id": "b", "function": {"name": "g", "arguments": "{}"}}]},
    ]
    llama.on_chat(as_stream(*(chunk(delta=piece) for piece in pieces), chunk(finish="tool_calls"), DONE))
    suite = await start(llamacpp_url=llama.url)
    tool = pb.ToolDefinition(name="f", parameters_json='{"type":"object"}')
    answer = await suite.chat(action(stream=True, tools=[tool]))
    assert answer.finish.reason == pb.FINISH_REASON_TOOL_CALLS
    assert "".join(delta.reasoning for delta in answer.deltas) == "think"
    calls = [call for delta in answer.deltas for call in delta.tool_calls]
    assert "".join(call.arguments for call in calls if call.index == 0) == '{"x":1}'
    assert [call.name for call in calls if call.id] == ["f", "g"]


async def test_a_whole_answer_carries_logprobs_and_refusals(
    start: StartSuite, llama: FakeModelServer
) -> None:
    top = {"token": "Hi", "logprob": -0.1, "bytes": [72, 105]}
    message = {"role": "assistant", "content": "Hi", "refusal": "no"}
    choice = {
        "finish_reason": "content_filter",
        "message": message,
        "logprobs": {"content": [{**top, "top_logprobs": [top]}]},
    }
    llama.on_chat(as_json({"model": "tiny", "choices": [choice]}))
    suite = await start(llamacpp_url=llama.url)
    answer = await suite.chat(action(sampling=pb.Sampling(logprobs=True, top_logprobs=1)))
    (delta,) = answer.deltas
    assert (delta.refusal, delta.logprobs[0].token_bytes, len(delta.logprobs[0].top)) == ("no", b"Hi", 1)
    assert answer.finish.reason == pb.FINISH_REASON_CONTENT_FILTER
    assert not answer.finish.usage.HasField("output_tokens")


async def test_ten_thousand_messages_are_served_in_one_go(start: StartSuite, llama: FakeModelServer) -> None:
    suite = await start(llamacpp_url=llama.url)
    message = pb.ChatMessage(role=pb.ROLE_USER, content=[pb.ContentPart(text="x" * 300)])
    started = time.monotonic()
    await suite.chat(pb.ChatAction(messages=[message] * 10_000))
    assert time.monotonic() - started < 5
    assert len(llama.chats[0].json()["messages"]) == 10_000
