"""A configured server that is not where it was said to be: found under this machine's other names, or not at all."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from kala.errors import UnavailableError
from kala.inference.v1 import inference_pb2 as pb
from tests.fakes.model_server import FakeModelServer, as_json, llama_models
from tests.service.inference.conftest import StartSuite, Suite

HERE = "127.0.0.1"
ELSEWHERE = "127.0.0.2"
"""Also this machine, but under a name that only `fallback_hosts` says."""


@pytest.fixture
async def llama() -> AsyncIterator[FakeModelServer]:
    async with FakeModelServer(host=ELSEWHERE) as server:
        yield server


def elsewhere(server: FakeModelServer, configured: str = HERE) -> dict[str, object]:
    return {"llamacpp_url": f"http://{configured}:{server.port}/v1", "fallback_hosts": (ELSEWHERE,)}


async def llamacpp(suite: Suite) -> pb.Backend:
    reply = await suite.stub.GetBackend(pb.GetBackendRequest(name="backends/llamacpp"))
    return reply.backend


async def test_a_server_under_another_name_of_this_machine_answers_and_it_is_said(
    start: StartSuite, llama: FakeModelServer
) -> None:
    suite = await start(**elsewhere(llama))
    assert (await suite.chat()).text == "Hello"
    shown = await llamacpp(suite)
    assert shown.url == f"http://{HERE}:{llama.port}"
    assert f"found at {llama.url}, since nothing answers at {shown.url}" in shown.detail


async def test_back_at_its_own_address_it_is_used_there_again(
    start: StartSuite, llama: FakeModelServer
) -> None:
    suite = await start(**elsewhere(llama))
    await suite.chat()
    async with FakeModelServer(host=HERE, port=llama.port) as own:
        await suite.registry.refresh()
        await suite.chat()
        assert (len(llama.chats), len(own.chats)) == (1, 1)
        assert "found at" not in (await llamacpp(suite)).detail


@pytest.mark.parametrize(
    "stranger",
    [
        pytest.param({"server": "llama.cpp", "x-kala-receipt": "rcpt_1"}, id="another KALA"),
        pytest.param({"server": "nginx"}, id="no llama-server"),
    ],
)
async def test_a_stranger_at_the_other_address_is_sent_nothing(
    start: StartSuite, stranger: dict[str, str]
) -> None:
    async with FakeModelServer(like_llama_server=False, host=ELSEWHERE) as server:
        models = llama_models("tiny") if "x-kala-receipt" in stranger else {"data": [{"id": "tiny"}]}
        server.on("GET", "/v1/models", as_json(models, headers=stranger))
        suite = await start(**elsewhere(server))
        with pytest.raises(UnavailableError, match="nothing listens at its address"):
            await suite.chat()
        assert {seen.method for seen in server.requests} == {"GET"}


async def test_a_key_goes_nowhere_but_where_it_was_configured_for(
    start: StartSuite, llama: FakeModelServer
) -> None:
    suite = await start(**elsewhere(llama), llamacpp_api_key="secret")
    with pytest.raises(UnavailableError):
        await suite.chat()
    assert llama.requests == []


async def test_another_machines_prompts_are_sent_to_none_of_this_machines_names(
    start: StartSuite, llama: FakeModelServer
) -> None:
    # Whoever listened at host.docker.internal got the prompts of a GPU machine that was switched off.
    suite = await start(**elsewhere(llama, configured="127.0.0.3"))
    with pytest.raises(UnavailableError):
        await suite.chat()
    assert llama.requests == []


async def test_without_fallback_hosts_it_is_off(start: StartSuite, llama: FakeModelServer) -> None:
    suite = await start(llamacpp_url=f"http://{HERE}:{llama.port}", fallback_hosts=())
    with pytest.raises(UnavailableError):
        await suite.chat()
    assert llama.requests == []
