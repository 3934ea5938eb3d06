"""A prompt over the context: one error with both numbers and the cure, whatever the backend says or does not say."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

import pytest

from kala.errors import InvalidArgumentError, UnavailableError
from kala.inference.v1 import inference_pb2 as pb
from services.common.status import translated
from tests.fakes.model_server import DONE, FakeModelServer, as_json, as_stream, chunk
from tests.fakes.recordings import recording
from tests.service.inference.conftest import StartSuite, action

NEOX, MLX, PYTHON = "llama-server-tiny-neox", "mlx_lm-0.32.2-tiny-llama", "llama-cpp-python-0.3.36"
LONG = "word " * 5000

Set = Callable[[FakeModelServer], dict[str, object]]


@pytest.fixture
async def server() -> AsyncIterator[FakeModelServer]:
    async with FakeModelServer(like_llama_server=False) as fake:
        yield fake


def llama_server(server: FakeModelServer) -> dict[str, object]:
    server.on("GET", "/health", recording(NEOX, "health").scripted())
    server.on("GET", "/v1/models", recording(NEOX, "models").scripted())
    server.on_chat(recording(NEOX, "overflow").scripted())
    return {"llamacpp_url": server.url}


def llama_cpp_server(server: FakeModelServer) -> dict[str, object]:
    server.on("GET", "/health", as_json({}, status=404))
    server.on("GET", "/v1/models", recording(PYTHON, "models").scripted())
    server.on_chat(recording(PYTHON, "overflow").scripted())
    return {"llamacpp_url": server.url}


def lm_studio(server: FakeModelServer) -> dict[str, object]:
    loaded = [{"id": "m", "config": {"context_length": 4096}}]
    server.on("GET", "/lmstudio-greeting", as_json({"lmstudio": True}))
    listed = {"models": [{"type": "llm", "key": "m", "loaded_instances": loaded}]}
    server.on("GET", "/api/v1/models", as_json(listed))
    error = (
        "The number of tokens to keep from the initial prompt is greater than the context length (n_keep: 5000>= "
        "n_ctx: 4096). Try to load the model with a larger context length, or provide a shorter input"
    )
    server.on_chat(as_json({"error": error}, status=400))
    return {"lmstudio_url": server.url}


def ollama(server: FakeModelServer) -> dict[str, object]:
    server.on("GET", "/api/version", as_json({"version": "0.12.0"}))
    server.on("GET", "/api/tags", as_json({"models": [{"name": "m"}]}))
    server.on("GET", "/api/ps", as_json({"models": [{"name": "m", "context_length": 4096}]}))
    server.on("POST", "/api/show", as_json({"capabilities": ["completion"]}))
    error = "the prompt is longer than the context length currently available to the model; shorten it"
    server.on("POST", "/api/chat", as_json({"error": error}, status=400))
    return {"ollama_url": server.url}


def mlx(server: FakeModelServer) -> dict[str, object]:
    server.on("GET", "/health", recording(MLX, "health").scripted())
    server.on("GET", "/v1/models", recording(MLX, "models").scripted())
    usage = {"prompt_tokens": 908, "completion_tokens": 2, "total_tokens": 910}
    server.on_chat(as_stream(chunk("So"), chunk(finish="stop"), chunk(usage=usage), DONE))
    return {"mlx_url": server.url, "mlx_context_tokens": 512}


@pytest.mark.parametrize(
    ("backend", "prompt", "context"),
    [
        pytest.param(llama_server, r"has 408 tokens", 256, id="llama-server"),
        pytest.param(llama_cpp_server, r"has 422 tokens", 256, id="llama_cpp.server"),
        pytest.param(lm_studio, r"has 5000 tokens", 4096, id="LM Studio"),
        pytest.param(ollama, r"about 5\d\d\d tokens by estimate", 4096, id="Ollama tells no numbers"),
        pytest.param(mlx, r"has 908 tokens", 512, id="mlx_lm.server says nothing at all"),
    ],
)
async def test_both_numbers_and_the_cure(
    start: StartSuite, server: FakeModelServer, backend: Set, prompt: str, context: int
) -> None:
    suite = await start(**backend(server))
    with pytest.raises(InvalidArgumentError, match=prompt) as refused:
        await suite.chat(action(LONG))
    assert (refused.value.field, refused.value.reason) == ("messages", "CONTEXT_LENGTH_EXCEEDED")
    assert f"context of {context} tokens" in refused.value.message
    assert "shorten the conversation or load the model with a longer context" in refused.value.message


async def test_a_stream_beyond_mlx_context_ends_in_an_error_that_says_so(
    start: StartSuite, server: FakeModelServer
) -> None:
    suite = await start(**mlx(server))
    said: list[str] = []

    async def read() -> None:
        with translated():
            async for response in suite.call(action(LONG, stream=True)):
                said.append(response.delta.text)  # noqa: PERF401 - what came before the error counts

    with pytest.raises(UnavailableError, match="takes no prompt longer than its context") as broken:
        await read()
    assert "".join(said) == "So"
    assert broken.value.reason == "BACKEND_FAILED_MID_STREAM"


async def test_without_a_configured_context_mlx_is_taken_at_its_word(
    start: StartSuite, server: FakeModelServer
) -> None:
    suite = await start(**(mlx(server) | {"mlx_context_tokens": None}))
    assert (await suite.chat(action(LONG))).text == "So"


async def test_the_client_that_made_it_too_long_trips_no_breaker(
    start: StartSuite, server: FakeModelServer
) -> None:
    suite = await start(**llama_server(server))
    for _ in range(20):
        with pytest.raises(InvalidArgumentError):
            await suite.chat(action(LONG))
    (backend,) = (await suite.stub.ListBackends(pb.ListBackendsRequest())).backends
    assert backend.breaker == pb.BREAKER_STATE_CLOSED
