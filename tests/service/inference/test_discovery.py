"""Servers that nobody configured: found by what they answer, taken up when they start, passed over when they are KALA."""

from __future__ import annotations

import time

import pytest

from kala.errors import UnavailableError
from kala.inference.v1 import inference_pb2 as pb
from tests.fakes.model_server import FakeModelServer, Hang, Scripted, as_json, completion
from tests.fakes.recordings import recording
from tests.service.inference.conftest import StartSuite, Suite, action, until

MLX = "mlx_lm-0.32.2-tiny-llama"


async def found(suite: Suite) -> dict[str, pb.Backend]:
    return {b.name: b for b in (await suite.stub.ListBackends(pb.ListBackendsRequest())).backends}


def as_mlx(server: FakeModelServer) -> None:
    server.on("GET", "/health", recording(MLX, "health").scripted())
    server.on("GET", "/v1/models", recording(MLX, "models").scripted())
    server.on_chat(recording(MLX, "chat_stream_usage").scripted())


def as_lm_studio(server: FakeModelServer, headers: dict[str, str] | None = None) -> None:
    # LM Studio answers 200 to what it does not know.
    for path in ("/health", "/api/version"):
        server.on("GET", path, as_json({"error": "Unexpected endpoint or method."}, headers=headers))
    server.on("GET", "/lmstudio-greeting", as_json({"lmstudio": True}, headers=headers))
    server.on("GET", "/v1/models", as_json({"data": [{"id": "s"}]}, headers=headers))
    server.on("GET", "/api/v0/models", as_json({"data": [{"id": "s", "type": "llm", "state": "loaded"}]}))
    server.on_chat(as_json(completion(model="s")))


async def test_every_kind_is_told_by_its_answers(start: StartSuite) -> None:
    servers = [FakeModelServer(like_llama_server=number == 0) for number in range(4)]
    async with servers[0] as llama, servers[1] as mlx, servers[2] as studio, servers[3] as ollama:
        as_mlx(mlx)
        as_lm_studio(studio)
        ollama.on("GET", "/api/version", as_json({"version": "0.9.0"}))
        ollama.on("GET", "/api/tags", as_json({"models": []}))
        ollama.on("GET", "/api/ps", as_json({"models": []}))
        ports = tuple(server.port for server in (llama, studio, ollama, mlx))
        suite = await start(discover=True, discovery_ports=ports)
        backends = await found(suite)
        assert list(backends) == ["backends/mlx", "backends/llamacpp", "backends/lmstudio", "backends/ollama"]
        assert all(backend.discovered for backend in backends.values())
        assert (await suite.chat()).route.backend == "backends/mlx"


async def test_two_of_a_kind_get_two_names(start: StartSuite, llama: FakeModelServer) -> None:
    async with FakeModelServer() as second:
        suite = await start(discover=True, discovery_ports=(llama.port, second.port))
        assert list(await found(suite)) == ["backends/llamacpp", "backends/llamacpp-2"]
        listed = (await suite.stub.ListModels(pb.ListModelsRequest())).models
        assert [model.id for model in listed] == ["llamacpp/tiny", "llamacpp-2/tiny"]
        assert (await suite.chat(action(model="llamacpp-2/tiny"))).route.backend == "backends/llamacpp-2"


async def test_a_server_that_starts_later_is_taken_up(start: StartSuite, llama: FakeModelServer) -> None:
    await llama.stop()
    suite = await start(discover=True, discovery_ports=(llama.port,), refresh_seconds=0.1)
    assert await found(suite) == {}
    with pytest.raises(UnavailableError, match="start LM Studio"):
        await suite.chat()
    await llama.start()
    await until(lambda: bool(suite.registry.views()))
    assert (await suite.chat()).text == "Hello"


async def test_another_kala_is_passed_over(start: StartSuite) -> None:
    async with FakeModelServer(like_llama_server=False) as other:
        as_lm_studio(other, headers={"x-kala-overhead-ms": "1"})
        suite = await start(discover=True, discovery_ports=(other.port,))
        assert await found(suite) == {}


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(as_json({"status": "ok"}), id="200 to everything"),
        pytest.param(
            Scripted([b"<html>Tomcat</html>"], 200, {"content-type": "text/html"}), id="a web server"
        ),
        pytest.param(Scripted([], 404), id="404"),
        pytest.param(as_json({"data": "x"}), id="odd JSON"),
    ],
)
async def test_a_stranger_is_passed_over_and_then_left_alone(start: StartSuite, answer: Scripted) -> None:
    async with FakeModelServer(like_llama_server=False) as stranger:
        for path in ("/v1/models", "/health", "/lmstudio-greeting", "/api/version"):
            stranger.on("GET", path, answer)
        suite = await start(discover=True, discovery_ports=(stranger.port,))
        assert await found(suite) == {}
        seen = len(stranger.requests)
        await suite.registry.refresh()
        assert len(stranger.requests) == seen


async def test_a_silent_port_costs_half_a_second_at_most(start: StartSuite, llama: FakeModelServer) -> None:
    async with FakeModelServer(like_llama_server=False) as silent:
        silent.on("GET", "/v1/models", Scripted([Hang()]))
        started = time.monotonic()
        suite = await start(discover=True, discovery_ports=(silent.port, llama.port))
        assert list(await found(suite)) == ["backends/llamacpp"]
        assert time.monotonic() - started < 1.0


async def test_a_configured_server_is_not_found_twice(start: StartSuite, llama: FakeModelServer) -> None:
    url = f"http://localhost:{llama.port}/v1"
    suite = await start(discover=True, discovery_ports=(llama.port,), llamacpp_url=url)
    backends = await found(suite)
    assert list(backends) == ["backends/llamacpp"]
    assert not backends["backends/llamacpp"].discovered


async def test_a_switched_off_kind_is_not_taken_up(start: StartSuite, llama: FakeModelServer) -> None:
    suite = await start(discover=True, discovery_ports=(llama.port,), llamacpp_enabled=False)
    assert await found(suite) == {}


async def test_a_server_that_was_only_found_is_not_sent_the_kinds_key(
    start: StartSuite, llama: FakeModelServer
) -> None:
    # Whoever listens on a usual port of this machine, another user of it included, would have had the key.
    suite = await start(discover=True, discovery_ports=(llama.port,), llamacpp_api_key="secret")
    assert (await suite.chat()).text == "Hello"
    assert all("authorization" not in seen.headers for seen in llama.requests)


async def test_a_server_that_the_settings_name_is_sent_its_key(
    start: StartSuite, llama: FakeModelServer
) -> None:
    suite = await start(
        discover=True,
        discovery_ports=(llama.port,),
        llamacpp_url=f"http://localhost:{llama.port}",
        llamacpp_api_key="secret",
    )
    assert (await suite.chat()).text == "Hello"
    assert llama.chats[0].headers["authorization"] == "Bearer secret"
