"""Protection as callers, administrators and Prometheus see it, in front of servers that break."""

from __future__ import annotations

import asyncio

import pytest
from prometheus_client import CollectorRegistry

from kala.errors import InvalidArgumentError, UnavailableError
from kala.inference.v1 import inference_pb2 as pb
from services.common.status import translated
from services.inference.protection.breaker import BreakerState
from services.inference.protection.metrics import AttemptCounter, BackendCollector
from tests.fakes.model_server import FakeModelServer, Hang, Scripted, as_json, as_stream, chunk, completion
from tests.service.inference.conftest import StartSuite, Suite, action, until

OVERLOADED = as_json({"error": "come back later"}, status=429, headers={"retry-after": "120"})
STUDIO_MODELS = as_json({"data": [{"id": "s", "type": "llm", "state": "loaded"}]})


async def backend(suite: Suite, name: str = "llamacpp") -> pb.Backend:
    with translated():
        reply = await suite.stub.GetBackend(pb.GetBackendRequest(name=f"backends/{name}"))
    return reply.backend


async def fail(suite: Suite, times: int) -> None:
    for _ in range(times):
        with pytest.raises(UnavailableError):
            await suite.chat()


async def test_the_state_of_a_breaker_is_listed_with_its_reason(
    start: StartSuite, llama: FakeModelServer
) -> None:
    suite = await start(llamacpp_url=llama.url)
    await suite.chat()
    assert (await backend(suite)).breaker == pb.BREAKER_STATE_CLOSED
    llama.on_chat(as_json({"error": "oops"}, status=500))
    await fail(suite, 3)
    (entry,) = suite.registry.entries()
    breaker = entry.guard.model("tiny")
    # Three requests after the good one, and the test that follows at once.
    await until(lambda: len(llama.chats) == 5 and breaker.state is BreakerState.OPEN)
    seen = await backend(suite)
    assert (seen.breaker, seen.state) == (pb.BREAKER_STATE_OPEN, pb.BACKEND_STATE_READY)
    assert (
        "gets no requests for 'tiny' until a test of it succeeds (last failure: answered 500)" in seen.detail
    )
    await fail(suite, 10)
    assert len(llama.chats) == 5
    (model,) = (await suite.stub.ListModels(pb.ListModelsRequest())).models
    assert (model.id, model.breaker) == ("tiny", pb.BREAKER_STATE_OPEN)
    with translated():
        explained = await suite.stub.ExplainRoute(pb.ExplainRouteRequest())
    assert [candidate.eligible for candidate in explained.candidates] == [False]


async def test_requests_that_run_are_counted(start: StartSuite, llama: FakeModelServer) -> None:
    gate = asyncio.Event()
    suite = await start(llamacpp_url=llama.url)
    llama.on_chat(Scripted([], head_after=gate))
    asking = [asyncio.create_task(suite.chat()) for _ in range(3)]
    await until(lambda: len(llama.chats) == 3)
    assert (await backend(suite)).in_flight == 3
    for task in asking:
        task.cancel()
    await asyncio.gather(*asking, return_exceptions=True)
    (entry,) = suite.registry.entries()
    await until(lambda: entry.guard.in_flight == 0)
    assert (await backend(suite)).breaker == pb.BREAKER_STATE_CLOSED


async def test_a_server_that_says_when_to_come_again_is_believed_and_the_caller_told(
    start: StartSuite, llama: FakeModelServer
) -> None:
    suite = await start(llamacpp_url=llama.url)
    await suite.registry.ready()
    llama.on_chat(OVERLOADED)
    with pytest.raises(UnavailableError) as first:
        await suite.chat()
    assert first.value.retry_after_seconds == 120
    with pytest.raises(UnavailableError, match="answered 429") as second:
        await suite.chat()
    assert second.value.retry_after_seconds is not None
    assert 100 < second.value.retry_after_seconds <= 120
    assert len(llama.chats) == 1


async def test_mistakes_of_clients_keep_nobody_else_out(start: StartSuite, llama: FakeModelServer) -> None:
    suite = await start(llamacpp_url=llama.url)
    await suite.registry.ready()
    llama.on_chat(as_json({"error": {"message": "image input is not supported", "code": 500}}, status=500))
    for _ in range(10):
        with pytest.raises(InvalidArgumentError):
            await suite.chat()
    llama.on_chat(as_json(completion()))
    assert (await suite.chat()).text == "Hello"


async def test_a_stream_that_breaks_counts_although_its_text_was_released(
    start: StartSuite, llama: FakeModelServer
) -> None:
    suite = await start(llamacpp_url=llama.url)
    await suite.registry.ready()
    llama.on_chat(as_stream(chunk("Hel")))
    for _ in range(3):
        with pytest.raises(UnavailableError):
            await suite.chat(action(stream=True))
    assert (await backend(suite)).breaker != pb.BREAKER_STATE_CLOSED


async def test_a_full_host_passes_on_to_the_next(start: StartSuite, llama: FakeModelServer) -> None:
    async with FakeModelServer() as studio:
        studio.on("GET", "/api/v0/models", STUDIO_MODELS)
        studio.on_chat(as_json(completion("fine", model="s")))
        suite = await start(llamacpp_url=llama.url, lmstudio_url=studio.url, max_in_flight=1, max_waiting=0)
        llama.on_chat(as_stream(chunk("Hel"), Hang()))
        held = suite.call(action(stream=True))
        await held.read()
        answer = await suite.chat()
        assert [(attempt.backend, attempt.reason) for attempt in answer.finish.attempts] == [
            ("backends/llamacpp", "BULKHEAD_FULL"),
            ("backends/lmstudio", ""),
        ]
        held.cancel()


async def test_a_server_that_died_gets_nothing_and_is_used_again_after_one_look(
    start: StartSuite, llama: FakeModelServer
) -> None:
    async with FakeModelServer() as studio:
        studio.on("GET", "/api/v0/models", STUDIO_MODELS)
        studio.on_chat(as_json(completion("fine", model="s")))
        suite = await start(llamacpp_url=llama.url, lmstudio_url=studio.url)
        await suite.chat()
        await llama.stop()
        refused, *others = [(await suite.chat()).finish.attempts for _ in range(20)]
        assert [attempt.reason for attempt in refused] == ["CONNECTION_REFUSED", ""]
        assert [[attempt.backend for attempt in attempts] for attempts in others] == [
            ["backends/lmstudio"]
        ] * 19
        assert (await backend(suite)).breaker == pb.BREAKER_STATE_OPEN
        await llama.start()
        await suite.registry.refresh()
        assert (await backend(suite)).breaker == pb.BREAKER_STATE_CLOSED
        assert (await suite.chat()).route.backend == "backends/llamacpp"


async def test_prometheus_sees_attempts_breakers_and_load(start: StartSuite, llama: FakeModelServer) -> None:
    suite = await start(llamacpp_url=llama.url)
    await suite.registry.ready()
    registry = CollectorRegistry()
    registry.register(BackendCollector(suite.registry.entries))
    count = AttemptCounter(registry)
    count("llamacpp", "OK")
    count("llamacpp", "HTTP_500")
    count("llamacpp", "HTTP_500")
    (entry,) = suite.registry.entries()
    of = {"backend": "llamacpp"}
    assert registry.get_sample_value("kala_backend_attempts_total", {**of, "reason": "OK"}) == 1
    assert registry.get_sample_value("kala_backend_attempts_total", {**of, "reason": "HTTP_500"}) == 2
    assert registry.get_sample_value("kala_backend_breaker", of) == 0
    entry.guard.reach.open(0, "nothing listens")
    entry.guard.bulkhead.enter()
    assert registry.get_sample_value("kala_backend_breaker", of) == 2
    assert registry.get_sample_value("kala_backend_in_flight", of) == 1
