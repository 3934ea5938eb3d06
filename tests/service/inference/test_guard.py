"""Nothing is generated without a clearance, and nothing goes on for a client that left."""

from __future__ import annotations

import asyncio
import time

import grpc
import pytest

from kala.common.v1.clearance_pb2 import SealedAction
from kala.errors import ClearanceError, InvalidArgumentError, UnauthenticatedError
from kala.inference.v1 import inference_pb2 as pb
from kala.inference.v1 import inference_pb2_grpc
from services.common.sealing import pack
from services.common.status import translated
from tests.fakes.clearances import FakeEthics
from tests.fakes.model_server import DONE, FakeModelServer, Gate, Hang, Scripted, as_stream, chunk
from tests.service.inference.conftest import CHAT, StartSuite, Suite, action, until


async def refused(suite: Suite, sealed: SealedAction) -> str:
    with pytest.raises(ClearanceError) as caught, translated():
        async for _ in suite.stub.Chat(pb.ChatRequest(sealed=sealed)):
            pass
    return caught.value.reason


async def test_what_was_not_cleared_reaches_no_backend(start: StartSuite, llama: FakeModelServer) -> None:
    suite = await start(llamacpp_url=llama.url)
    good = suite.ethics.seal(action(), audience=CHAT)
    altered = SealedAction(action=pack(action("other words")), clearance=good.clearance)
    assert await refused(suite, SealedAction(action=pack(action()))) == "CLEARANCE_MISSING"
    assert await refused(suite, altered) == "CLEARANCE_ALTERED"
    assert await refused(suite, FakeEthics().seal(action(), audience=CHAT)) == "CLEARANCE_UNKNOWN_KEY"
    assert await refused(suite, suite.ethics.seal(action(), audience="/x/Y")) == "CLEARANCE_WRONG_AUDIENCE"
    stolen = suite.ethics.seal(action(), audience=CHAT, presenter="local:ethics")
    assert await refused(suite, stolen) == "CLEARANCE_WRONG_PRESENTER"
    assert (
        await refused(suite, suite.ethics.seal(pb.CompleteAction(), audience=CHAT)) == "CLEARANCE_WRONG_TYPE"
    )
    assert llama.chats == []


async def test_a_clearance_serves_once(start: StartSuite, llama: FakeModelServer) -> None:
    suite = await start(llamacpp_url=llama.url)
    sealed = suite.ethics.seal(action(), audience=CHAT)
    async for _ in suite.stub.Chat(pb.ChatRequest(sealed=sealed)):
        pass
    assert await refused(suite, sealed) == "CLEARANCE_REPLAYED"
    assert len(llama.chats) == 1


async def test_a_clearance_that_ended_in_the_queue_sends_nothing(
    start: StartSuite, llama: FakeModelServer
) -> None:
    go_on = asyncio.Event()
    llama.on_chat(as_stream(chunk("Hi"), Gate(go_on), chunk(finish="stop"), DONE))
    suite = await start(llamacpp_url=llama.url, max_in_flight=1)
    first = asyncio.create_task(suite.chat(action(stream=True)))
    await until(lambda: bool(llama.chats))
    second = asyncio.create_task(suite.chat(action(stream=True)))
    await asyncio.sleep(0.1)
    suite.clock.ahead_seconds = 120
    go_on.set()
    await first
    with pytest.raises(ClearanceError, match="expired"):
        await second
    assert len(llama.chats) == 1


async def test_another_part_may_not_call(start: StartSuite, llama: FakeModelServer) -> None:
    suite = await start(llamacpp_url=llama.url)
    async with grpc.aio.insecure_channel(suite.address) as channel:
        with pytest.raises(UnauthenticatedError), translated():
            await inference_pb2_grpc.InferenceServiceStub(channel).ListModels(pb.ListModelsRequest())
    assert suite.registry.views()


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
async def test_the_upstream_is_let_go_within_a_second_of_the_clients_leaving(
    start: StartSuite, llama: FakeModelServer, stream: bool
) -> None:
    script = as_stream(chunk("Hi"), Hang()) if stream else Scripted([], head_after=asyncio.Event())
    llama.on_chat(script)
    suite = await start(llamacpp_url=llama.url)
    call = suite.call(action(stream=stream))
    if stream:
        await call.read()
    await until(lambda: bool(llama.chats))
    started = time.monotonic()
    call.cancel()
    await asyncio.wait_for(llama.client_left.wait(), 1)
    assert time.monotonic() - started < 1
    (entry,) = suite.registry.entries()
    await until(lambda: entry.guard.in_flight == 0)


async def test_a_deadline_of_the_caller_ends_the_upstream(start: StartSuite, llama: FakeModelServer) -> None:
    llama.on_chat(as_stream(chunk("Hi"), Hang()))
    suite = await start(llamacpp_url=llama.url)
    sealed = suite.ethics.seal(action(stream=True), audience=CHAT)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in suite.stub.Chat(pb.ChatRequest(sealed=sealed), timeout=0.3):
            pass
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await asyncio.wait_for(llama.client_left.wait(), 1)


async def test_fields_of_a_newer_contract_are_refused(start: StartSuite, llama: FakeModelServer) -> None:
    suite = await start(llamacpp_url=llama.url)
    newer = pb.ChatAction.FromString(action().SerializeToString() + b"\xf8\x3f\x01")
    with pytest.raises(InvalidArgumentError, match="does not know"):
        await suite.chat(newer)
    assert llama.chats == []


async def test_an_invalid_action_is_named_by_its_field(start: StartSuite, llama: FakeModelServer) -> None:
    suite = await start(llamacpp_url=llama.url)
    with pytest.raises(InvalidArgumentError) as caught:
        await suite.chat(pb.ChatAction())
    assert caught.value.field == "messages"
