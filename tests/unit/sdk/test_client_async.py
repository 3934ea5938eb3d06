"""The asynchronous client against a scripted gateway; both clients send the same and say the same."""

from __future__ import annotations

import base64
import inspect
import json

import httpx
import pytest

from kala import errors
from kala.client import KalaClient
from kala.client_async import AsyncKalaClient
from kala.client_wire import Retries
from kala.errors import InternalError, InvalidArgumentError, ResourceExhaustedError, UnavailableError
from kala.target import Target
from tests.fakes.gateway import RECEIPT_ID, FakeGateway, completion, failure, stream

STEADY = Retries(jitter=lambda: 0.5)
QUESTION = [{"role": "user", "content": "hello"}]
TARGET = Target("http://127.0.0.1:8800", "kala_x")


def client_of(gateway: FakeGateway, pauses: list[float] | None = None) -> AsyncKalaClient:
    waited = [] if pauses is None else pauses

    async def sleep(seconds: float) -> None:
        waited.append(seconds)

    return AsyncKalaClient(TARGET, gateway.transport, sleep, STEADY)


def raising(error: Exception) -> httpx.Response:
    raise error


def public(kind: type) -> dict[str, list[str]]:
    """The public methods of a class with the names of their parameters."""
    return {
        name: list(inspect.signature(value).parameters)
        for name, value in inspect.getmembers(kind, callable)
        if not name.startswith("_")
    }


def test_the_asynchronous_client_has_every_method_of_the_blocking_one() -> None:
    blocking, asynchronous = public(KalaClient), public(AsyncKalaClient)
    blocking["aclose"] = blocking.pop("close")
    assert asynchronous == blocking


async def test_an_answer_carries_its_decision_and_receipt() -> None:
    gateway = FakeGateway([completion("Hi.")])
    async with client_of(gateway) as client:
        reply = await client.chat(QUESTION, role="rank", max_tokens=9)
    assert (reply.text, reply.allowed, reply.output_tokens) == ("Hi.", True, 5)
    assert reply.receipt is not None
    assert reply.receipt.id == RECEIPT_ID
    assert gateway.chats == [{"model": "auto", "messages": QUESTION, "max_tokens": 9}]
    assert gateway.seen[0].headers["authorization"] == "Bearer kala_x"
    assert gateway.seen[0].headers["x-kala-role"] == "rank"


async def test_a_stream_gives_its_pieces_and_then_the_whole_reply() -> None:
    async with client_of(FakeGateway([stream("Hel", "lo.")])) as client, client.stream(QUESTION) as answer:
        with pytest.raises(InternalError, match="not been read"):
            _ = answer.reply
        assert [piece async for piece in answer] == ["Hel", "lo."]
    assert (answer.reply.text, answer.reply.finish_reason) == ("Hello.", "stop")
    assert answer.reply.receipt is not None


async def test_a_stream_that_is_cut_is_an_error_and_not_an_answer() -> None:
    async with (
        client_of(FakeGateway([stream("Hel", done=False)])) as client,
        client.stream(QUESTION) as answer,
    ):
        with pytest.raises(UnavailableError, match="ended before"):
            _ = [piece async for piece in answer]


async def test_a_broken_stream_that_is_read_again_is_still_no_answer() -> None:
    client = client_of(FakeGateway([stream("Hel", done=False)]))
    async with client, client.stream(QUESTION) as answer:
        with pytest.raises(UnavailableError):
            _ = [piece async for piece in answer]
        assert [piece async for piece in answer] == []
        with pytest.raises(InternalError):
            _ = answer.reply


async def test_characters_that_end_lines_elsewhere_end_none_in_a_stream() -> None:
    words = "one\u2028two\x85three"
    chunk = {"model": "tiny", "choices": [{"index": 0, "delta": {"content": words}}]}
    body = f"data: {json.dumps(chunk, ensure_ascii=False)}\n\ndata: [DONE]\n\n".encode()
    client = client_of(FakeGateway([httpx.Response(200, content=body)]))
    async with client, client.stream(QUESTION) as answer:
        assert [piece async for piece in answer] == [words]


async def test_an_unavailable_part_is_asked_again_also_before_a_stream() -> None:
    pauses: list[float] = []
    away = failure(503, "ethics_unavailable", "away")
    gateway = FakeGateway([away, away, completion("Hi."), away, stream("Hi.")])
    async with client_of(gateway, pauses) as client:
        assert (await client.chat(QUESTION)).text == "Hi."
        async with client.stream(QUESTION) as answer:
            assert "".join([piece async for piece in answer]) == "Hi."
    assert pauses == [0.25, 0.5, 0.25]


async def test_errors_come_back_as_their_classes() -> None:
    gateway = FakeGateway([failure(400, "invalid_value", "no"), failure(404, "model_not_found", "no")])
    async with client_of(gateway) as client:
        with pytest.raises(InvalidArgumentError):
            await client.chat(QUESTION)
        with pytest.raises(errors.NotFoundError):
            async with client.stream(QUESTION):
                pass
    assert len(gateway.seen) == 2


async def test_a_chat_whose_connection_broke_is_not_sent_again() -> None:
    gateway = FakeGateway([lambda: raising(httpx.ReadError("reset"))])
    async with client_of(gateway) as client:
        with pytest.raises(InternalError, match="broke"):
            await client.chat(QUESTION)
    assert len(gateway.seen) == 1


async def test_what_only_reads_or_has_an_id_of_its_own_is_sent_again_after_a_broken_connection() -> None:
    models, made = httpx.Response(200, json={"data": [{"id": "m"}]}), httpx.Response(200, json={"ok": True})
    broken = [lambda: raising(httpx.ReadError("reset"))]
    gateway = FakeGateway([*broken, models, *broken, made, *broken])
    async with client_of(gateway) as client:
        assert await client.models() == ["m"]
        body = {"request_id": "0123456789abcdef"}
        assert await client.call("POST", "/kala/v1/x", body=body) == {"ok": True}
        with pytest.raises(InternalError):
            await client.call("POST", "/kala/v1/x", body={})
    sent = [request.content for request in gateway.seen if request.method == "POST"]
    assert sent[0] == sent[1]
    assert len(gateway.seen) == 5


async def test_a_budget_that_is_used_up_is_not_asked_again() -> None:
    gateway = FakeGateway([failure(429, "insufficient_quota", "used up", retry_after="1")])
    async with client_of(gateway) as client:
        with pytest.raises(ResourceExhaustedError) as caught:
            await client.chat(QUESTION)
    assert (caught.value.reason, len(gateway.seen)) == ("INSUFFICIENT_QUOTA", 1)


@pytest.mark.parametrize("jitter", [0.0, 0.999])
def test_clients_spread_their_attempts_and_none_comes_before_it_was_asked_to(jitter: float) -> None:
    retries = Retries(jitter=lambda: jitter)
    full = ResourceExhaustedError("full", retry_after_seconds=2)
    asked = retries.pause(full, 0, is_idempotent=False, is_allowed=True)
    assert asked is not None
    assert 2 <= asked <= 2.2
    first = retries.pause(UnavailableError("away"), 0, is_idempotent=False, is_allowed=True)
    assert first is not None
    assert 0.125 <= first < 0.375


async def test_vectors_come_in_the_order_of_the_texts() -> None:
    rows = [{"index": 1, "embedding": [0.5]}, {"index": 0, "embedding": [1, 2]}]
    gateway = FakeGateway([httpx.Response(200, json={"data": rows}) for _ in range(2)])
    async with client_of(gateway) as client:
        assert await client.embed(["a", "b"], model="nomic") == [[1.0, 2.0], [0.5]]
    with KalaClient(TARGET, gateway.transport) as blocking:
        assert blocking.embed(["a", "b"]) == [[1.0, 2.0], [0.5]]
    assert json.loads(gateway.seen[0].content) == {"model": "nomic", "input": ["a", "b"]}


async def test_a_tool_runs_once_and_what_the_laws_refuse_is_a_result() -> None:
    data = base64.b64encode(b"42\n").decode()
    events = [
        {"output": {"stream": "OUTPUT_STREAM_STDOUT", "data": data}},
        {"exit": {"status": "RUN_STATUS_OK", "exit_code": 0}},
    ]
    ran = "".join(json.dumps(event) + "\n" for event in events).encode()
    away = failure(503, "tools_unavailable", "away")
    gateway = FakeGateway([httpx.Response(200, content=ran), failure(403, "refuse", "No."), away])
    async with client_of(gateway) as client:
        assert (await client.run_tool({"tool": "shell"})).output == "42\n"
        refused = await client.run_tool({"tool": "shell"})
        assert (refused.ethics_approved, refused.error) == (False, "No.")
        with pytest.raises(UnavailableError):
            await client.run_tool({"tool": "shell"})
    assert len(gateway.seen) == 3


async def test_a_streamed_call_gives_its_messages_and_raises_its_error() -> None:
    lines = b'{"a": 1}\n\n{"error": {"code": 404, "message": "gone", "status": "NOT_FOUND"}}\n'
    gateway = FakeGateway([httpx.Response(200, content=lines)])
    async with client_of(gateway) as client, client.lines("/kala/v1/x") as messages:
        assert await anext(messages) == {"a": 1}
        with pytest.raises(errors.NotFoundError, match="gone"):
            await anext(messages)


async def test_the_calls_of_a_stream_are_put_together() -> None:
    deltas = [
        {"tool_calls": [{"index": 0, "id": "c", "function": {"name": "weather", "arguments": '{"a'}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": '":1}'}}]},
    ]
    chunks = [{"choices": [{"index": 0, "delta": delta}]} for delta in deltas]
    step = {"choices": [], "kala": {"step": {"tool": "shell", "status": "OK"}}}
    text = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in [step, *chunks]) + "data: [DONE]\n\n"
    async with (
        client_of(FakeGateway([httpx.Response(200, content=text.encode())])) as client,
        client.stream(QUESTION) as answer,
    ):
        assert [piece async for piece in answer] == []
    (call,) = answer.reply.tool_calls
    assert call["function"] == {"name": "weather", "arguments": '{"a":1}'}
    assert [step["tool"] for step in answer.steps] == ["shell"]
