"""LoadModel and UnloadModel: llama-server from recordings, LM Studio and Ollama from their documents."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

import grpc
import pytest

from kala.errors import (
    DeadlineExceededError,
    FailedPreconditionError,
    InvalidArgumentError,
    KalaError,
    NotFoundError,
    UnavailableError,
)
from kala.inference.v1 import inference_pb2 as pb
from services.common.status import translated
from services.inference.backends import llamacpp, ollama
from tests.fakes.model_server import FakeModelServer, Scripted, Seen, as_json
from tests.fakes.recordings import recording
from tests.service.inference.conftest import StartSuite, Suite, action, until

LOAD = "/kala.inference.v1.InferenceService/LoadModel"
ROUTER = "llama-server-router"


@pytest.fixture
async def server() -> AsyncIterator[FakeModelServer]:
    async with FakeModelServer(like_llama_server=False) as fake:
        yield fake


async def load(
    suite: Suite, model: str, context: int | None = None, *, backend: str = "backends/lmstudio"
) -> pb.LoadModelResponse:
    wanted = pb.LoadModelAction(backend=backend, model=model, context_tokens=context)
    with translated():
        return await suite.stub.LoadModel(
            pb.LoadModelRequest(sealed=suite.ethics.seal(wanted, audience=LOAD))
        )


async def unload(suite: Suite, model: str, *, backend: str = "backends/lmstudio") -> pb.Model:
    with translated():
        request = pb.UnloadModelRequest(backend=backend, model=model)
        return (await suite.stub.UnloadModel(request)).model


# --- LM Studio, by its documents


@dataclass
class FakeStudio:
    """LM Studio's models as its REST API tells and changes them."""

    server: FakeModelServer
    instances: dict[str, dict[str, int]] = field(default_factory=lambda: {"qwen/qwen3-4b": {}, "phi": {}})
    """By key: instance id and its context."""

    def tell(self) -> None:
        listed = [
            {
                "type": "llm", "key": key, "max_context_length": 32768, "capabilities": {},
                "loaded_instances": [
                    {"id": name, "config": {"context_length": size}} for name, size in instances.items()
                ],
            }
            for key, instances in self.instances.items()
        ]  # fmt: skip
        self.server.on("GET", "/api/v1/models", as_json({"models": listed}))

    def on_load(
        self, loads: Callable[[Seen], int | None] = lambda seen: seen.json().get("context_length", 4096)
    ) -> None:
        def answer(seen: Seen) -> Scripted:
            key, size = seen.json()["model"], loads(seen)
            if size is None:
                error = {"type": "internal_error", "message": "Failed to load model: out of memory"}
                return as_json({"error": error}, status=500)
            self.instances[key][key] = size
            self.tell()
            return as_json({"type": "llm", "instance_id": key, "status": "loaded", "load_time_seconds": 1.5})

        def gone(seen: Seen) -> Scripted:
            instance = seen.json()["instance_id"]
            for instances in self.instances.values():
                instances.pop(instance, None)
            self.tell()
            return as_json({"instance_id": instance})

        self.server.on("POST", "/api/v1/models/load", answer)
        self.server.on("POST", "/api/v1/models/unload", gone)


@pytest.fixture
def studio(server: FakeModelServer) -> FakeStudio:
    fake = FakeStudio(server)
    fake.on_load()
    fake.tell()
    return fake


def told(server: FakeModelServer, path: str) -> list[dict[str, object]]:
    return [seen.json() for seen in server.requests if seen.path == path]


async def test_lm_studio_loads_with_the_context_asked_for_and_serves_it(
    start: StartSuite, server: FakeModelServer, studio: FakeStudio
) -> None:
    suite = await start(lmstudio_url=server.url)
    response = await load(suite, "qwen/qwen3-4b", 8192)
    assert (response.model.id, response.model.state) == ("qwen/qwen3-4b", pb.LOAD_STATE_LOADED)
    assert response.model.context_tokens == 8192
    assert response.HasField("elapsed")
    # Routing knows at once.
    (backend,) = (await suite.stub.ListBackends(pb.ListBackendsRequest())).backends
    assert backend.state == pb.BACKEND_STATE_READY


async def test_a_model_that_is_loaded_so_already_is_left_alone(
    start: StartSuite, server: FakeModelServer, studio: FakeStudio
) -> None:
    studio.instances["phi"] = {"phi": 4096}
    studio.tell()
    suite = await start(lmstudio_url=server.url)
    assert (await load(suite, "phi")).model.context_tokens == 4096
    assert (await load(suite, "phi", 4096)).model.context_tokens == 4096
    assert told(server, "/api/v1/models/load") == []


async def test_another_context_replaces_every_instance_of_the_model(
    start: StartSuite, server: FakeModelServer, studio: FakeStudio
) -> None:
    studio.instances["phi"] = {"phi": 4096, "phi:2": 4096}
    studio.tell()
    suite = await start(lmstudio_url=server.url)
    assert (await load(suite, "phi", 16384)).model.context_tokens == 16384
    assert told(server, "/api/v1/models/unload") == [{"instance_id": "phi"}, {"instance_id": "phi:2"}]
    assert told(server, "/api/v1/models/load") == [{"model": "phi", "context_length": 16384}]
    assert studio.instances["phi"] == {"phi": 16384}


async def test_unset_context_is_the_configured_one(
    start: StartSuite, server: FakeModelServer, studio: FakeStudio
) -> None:
    suite = await start(lmstudio_url=server.url, lmstudio_max_context=2048)
    assert (await load(suite, "phi")).model.context_tokens == 2048


async def test_lm_studio_unloads_by_instance(
    start: StartSuite, server: FakeModelServer, studio: FakeStudio
) -> None:
    studio.instances["phi"] = {"phi": 4096, "phi:2": 4096}
    studio.tell()
    suite = await start(lmstudio_url=server.url)
    assert (await unload(suite, "phi:2")).state == pb.LOAD_STATE_NOT_LOADED
    assert studio.instances["phi"] == {}
    # What is not loaded is left alone.
    assert (await unload(suite, "phi")).state == pb.LOAD_STATE_NOT_LOADED
    assert len(told(server, "/api/v1/models/unload")) == 2


async def test_a_context_beyond_the_models_own_is_refused_with_both_numbers(
    start: StartSuite, server: FakeModelServer, studio: FakeStudio
) -> None:
    suite = await start(lmstudio_url=server.url)
    with pytest.raises(InvalidArgumentError, match=r"context_tokens: must be at most 32768.*it is 99999"):
        await load(suite, "phi", 99999)


async def test_an_unknown_model_lists_the_known_ones_and_the_cure(
    start: StartSuite, server: FakeModelServer, studio: FakeStudio
) -> None:
    suite = await start(lmstudio_url=server.url)
    with pytest.raises(NotFoundError, match="there are: qwen/qwen3-4b, phi; get it with `lms get nope`"):
        await load(suite, "nope")


async def test_a_context_that_was_not_applied_is_not_called_success(
    start: StartSuite, server: FakeModelServer, studio: FakeStudio
) -> None:
    studio.on_load(lambda seen: 4096)
    suite = await start(lmstudio_url=server.url)
    with pytest.raises(FailedPreconditionError, match="with 4096 tokens of context instead of 8192"):
        await load(suite, "phi", 8192)


async def test_a_load_that_fails_says_so(
    start: StartSuite, server: FakeModelServer, studio: FakeStudio
) -> None:
    studio.on_load(lambda seen: None)
    suite = await start(lmstudio_url=server.url)
    with pytest.raises(UnavailableError, match=r"lmstudio answered 500.*out of memory"):
        await load(suite, "phi")


async def test_a_200_that_is_no_load_is_no_success(
    start: StartSuite, server: FakeModelServer, studio: FakeStudio
) -> None:
    server.on("POST", "/api/v1/models/load", as_json({"error": "Unexpected endpoint or method."}))
    suite = await start(lmstudio_url=server.url)
    with pytest.raises(UnavailableError, match="Unexpected endpoint"):
        await load(suite, "phi")


async def test_an_lm_studio_without_the_api_says_how_else(start: StartSuite, server: FakeModelServer) -> None:
    server.on("GET", "/api/v0/models", as_json({"data": [{"id": "a", "type": "llm", "state": "loaded"}]}))
    suite = await start(lmstudio_url=server.url)
    with pytest.raises(
        FailedPreconditionError, match=r"before LM Studio 0.4.0.*lms load a.*--context-length"
    ):
        await load(suite, "a", 4096)


async def test_a_load_lasts_no_longer_than_an_act_may(
    start: StartSuite, server: FakeModelServer, studio: FakeStudio
) -> None:
    server.on("POST", "/api/v1/models/load", Scripted(head_after=asyncio.Event()))
    suite = await start(lmstudio_url=server.url, max_act_seconds=0.2)
    with pytest.raises(DeadlineExceededError) as caught:
        await load(suite, "phi")
    assert caught.value.reason == "MAX_ACT_SECONDS"


async def test_one_model_is_loaded_at_a_time_and_once(
    start: StartSuite, server: FakeModelServer, studio: FakeStudio
) -> None:
    suite = await start(lmstudio_url=server.url)
    first, second = await asyncio.gather(load(suite, "phi", 8192), load(suite, "phi", 8192))
    assert first.model == second.model
    assert len(told(server, "/api/v1/models/load")) == 1


async def test_a_clearance_that_ended_while_waiting_loads_nothing(
    start: StartSuite, server: FakeModelServer, studio: FakeStudio
) -> None:
    gate = asyncio.Event()
    server.on("POST", "/api/v1/models/unload", Scripted([b"{}"], head_after=gate))
    studio.instances["phi"] = {"phi": 4096}
    studio.tell()
    suite = await start(lmstudio_url=server.url)
    holding = asyncio.create_task(unload(suite, "phi"))
    await until(lambda: any(seen.path == "/api/v1/models/unload" for seen in server.requests))
    waiting = asyncio.create_task(load(suite, "qwen/qwen3-4b"))
    await asyncio.sleep(0)
    await suite.stub.ListBackends(pb.ListBackendsRequest())  # by now the load has been verified and waits
    suite.clock.ahead_seconds = 120
    gate.set()
    with pytest.raises(KalaError):
        await holding  # its answer was no answer
    with pytest.raises(KalaError, match=r"(?i)expired|clearance"):
        await waiting
    assert told(server, "/api/v1/models/load") == []


async def test_loading_needs_a_clearance(
    start: StartSuite, server: FakeModelServer, studio: FakeStudio
) -> None:
    suite = await start(lmstudio_url=server.url)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await suite.stub.LoadModel(pb.LoadModelRequest())
    assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
    assert told(server, "/api/v1/models/load") == []


@pytest.mark.parametrize(
    ("wanted", "problem"),
    [
        (pb.LoadModelAction(backend="lmstudio", model="phi"), "backend: must be backends/<name>"),
        (pb.LoadModelAction(backend="backends/nope", model="phi"), "there are: backends/lmstudio"),
        (pb.LoadModelAction(backend="backends/lmstudio"), "model: must be 1 to 256"),
        (pb.LoadModelAction(backend="backends/lmstudio", model="x" * 257), "model: must be 1 to 256"),
        (
            pb.LoadModelAction(backend="backends/lmstudio", model="phi", context_tokens=0),
            "context_tokens: must be at least 1",
        ),
        (
            pb.LoadModelAction(backend="backends/lmstudio", model="phi", files=[{"name": "w.gguf"}]),
            "files: must be empty",
        ),
    ],
    ids=["bare name", "unknown backend", "no model", "long name", "no context", "files"],
)
async def test_what_is_wrong_with_an_order_is_named(
    start: StartSuite,
    server: FakeModelServer,
    studio: FakeStudio,
    wanted: pb.LoadModelAction,
    problem: str,
) -> None:
    suite = await start(lmstudio_url=server.url)
    request = pb.LoadModelRequest(sealed=suite.ethics.seal(wanted, audience=LOAD))
    with pytest.raises(KalaError, match=problem), translated():
        await suite.stub.LoadModel(request)


# --- llama-server, recorded


def router(server: FakeModelServer, models: str, **posts: str) -> None:
    server.on("GET", "/health", recording(ROUTER, "health").scripted())
    server.on("GET", "/v1/models", recording(ROUTER, models).scripted())
    server.on("GET", "/lora-adapters", as_json([]))
    for path, case in posts.items():
        server.on("POST", f"/models/{path}", recording(ROUTER, case).scripted())


def then(server: FakeModelServer, path: str, case: str, models: str) -> None:
    """After this order the list is another one."""

    def answer(seen: Seen) -> Scripted:
        server.on("GET", "/v1/models", recording(ROUTER, models).scripted())
        return recording(ROUTER, case).scripted()

    server.on("POST", path, answer)


async def test_llama_server_in_router_mode_loads_and_serves(
    start: StartSuite, server: FakeModelServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llamacpp, "POLL_SECONDS", 0.001)
    router(server, "models_before")
    then(server, "/models/load", "load", "models_after")
    suite = await start(llamacpp_url=server.url)
    response = await load(suite, "tiny-llama", backend="backends/llamacpp")
    assert (response.model.state, response.model.context_tokens) == (pb.LOAD_STATE_LOADED, 256)
    assert told(server, "/models/load") == [{"model": "tiny-llama"}]
    then(server, "/models/unload", "unload", "models_before")
    assert (await unload(suite, "tiny-llama", backend="backends/llamacpp")).state == pb.LOAD_STATE_NOT_LOADED


async def test_a_model_that_another_client_loaded_meanwhile_counts(
    start: StartSuite, server: FakeModelServer
) -> None:
    router(server, "models_before")
    then(server, "/models/load", "load_again", "models_after")
    suite = await start(llamacpp_url=server.url)
    assert (await load(suite, "tiny-llama", backend="backends/llamacpp")).model.context_tokens == 256


async def test_a_model_that_another_client_unloaded_meanwhile_counts(
    start: StartSuite, server: FakeModelServer
) -> None:
    router(server, "models_after")
    then(server, "/models/unload", "unload_again", "models_before")
    suite = await start(llamacpp_url=server.url)
    assert (await unload(suite, "tiny-llama", backend="backends/llamacpp")).state == pb.LOAD_STATE_NOT_LOADED


async def test_llama_servers_context_is_its_own_and_a_load_with_less_is_undone(
    start: StartSuite, server: FakeModelServer
) -> None:
    router(server, "models_before")
    then(server, "/models/load", "load", "models_after")
    then(server, "/models/unload", "unload", "models_before")
    suite = await start(llamacpp_url=server.url)
    with pytest.raises(FailedPreconditionError, match=r"256 tokens of context instead of 512; .*--ctx-size"):
        await load(suite, "tiny-llama", 512, backend="backends/llamacpp")
    assert told(server, "/models/unload") == [{"model": "tiny-llama"}]


async def test_a_model_that_never_comes_is_given_up(
    start: StartSuite, server: FakeModelServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llamacpp, "POLL_SECONDS", 0.001)
    router(server, "models_before", load="load")
    suite = await start(llamacpp_url=server.url)
    with pytest.raises(UnavailableError, match="could not load tiny-llama; its own log says why"):
        await load(suite, "tiny-llama", backend="backends/llamacpp")


async def test_llama_server_with_one_model_keeps_it(start: StartSuite, server: FakeModelServer) -> None:
    server.on("GET", "/health", recording("llama-server-tiny-neox", "health").scripted())
    server.on("GET", "/v1/models", recording("llama-server-tiny-neox", "models").scripted())
    suite = await start(llamacpp_url=server.url)
    assert (await load(suite, "tiny-neox", 256, backend="backends/llamacpp")).model.context_tokens == 256
    with pytest.raises(FailedPreconditionError, match="one fixed model"):
        await unload(suite, "tiny-neox", backend="backends/llamacpp")


async def test_no_lora_of_llama_servers_command_line_serves_without_its_gates(
    start: StartSuite, server: FakeModelServer
) -> None:
    folder = "llama-server-tiny-neox"
    server.on("GET", "/health", recording(folder, "health").scripted())
    server.on("GET", "/v1/models", recording(folder, "models").scripted())
    server.on("GET", "/lora-adapters", recording(folder, "lora_get").scripted())
    per_request = recording(folder, "lora_per_request")
    server.on_chat(per_request.scripted())
    suite = await start(llamacpp_url=server.url)
    (backend,) = (await suite.stub.ListBackends(pb.ListBackendsRequest())).backends
    assert "LoRA adapters of its own are switched off (1)" in backend.detail
    assert (await suite.chat()).text == "Hello!"
    # As the recorded request, which changed what the model said.
    assert server.chats[0].json()["lora"] == json.loads(per_request.request_body)["lora"]


# --- Ollama, by its documents


async def test_ollama_loads_keeps_and_unloads(
    start: StartSuite, server: FakeModelServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ollama, "POLL_SECONDS", 0.001)
    running: list[dict[str, object]] = []
    server.on("GET", "/api/tags", as_json({"models": [{"name": "m:latest", "digest": "1"}]}))
    server.on("POST", "/api/show", as_json({"model_info": {"x.context_length": 8192}}))
    server.on("GET", "/api/ps", lambda seen: as_json({"models": running}))

    def generate(seen: Seen) -> Scripted:
        asked = seen.json()
        size = asked.get("options", {}).get("num_ctx", 4096)
        running[:] = [{"name": asked["model"], "context_length": size}] if asked["keep_alive"] else []
        reason = "load" if asked["keep_alive"] else "unload"
        return as_json({"model": asked["model"], "response": "", "done": True, "done_reason": reason})

    server.on("POST", "/api/generate", generate)
    end = {"model": "m:latest", "message": {"content": "Hi"}, "done": True, "done_reason": "stop"}
    server.on("POST", "/api/chat", as_json(end, headers={"content-type": "application/x-ndjson"}))
    suite = await start(ollama_url=server.url)
    response = await load(suite, "m", 8192, backend="backends/ollama")
    assert (response.model.backend_model, response.model.context_tokens) == ("m:latest", 8192)
    await suite.chat(action())
    (asked,) = told(server, "/api/chat")
    # Another context or a time to live would load it anew, or put it away.
    assert (asked["options"], asked["keep_alive"]) == ({"num_predict": 16384, "num_ctx": 8192}, -1)
    with pytest.raises(InvalidArgumentError, match="at most 8192"):
        await load(suite, "m", 9000, backend="backends/ollama")
    with pytest.raises(NotFoundError, match="ollama pull nope"):
        await load(suite, "nope", backend="backends/ollama")
    assert (await unload(suite, "m", backend="backends/ollama")).state == pb.LOAD_STATE_NOT_LOADED


# --- Those that take no orders


async def test_mlx_says_how_its_model_is_chosen(start: StartSuite, server: FakeModelServer) -> None:
    server.on("GET", "/health", recording("mlx_lm-0.32.2-tiny-llama", "health").scripted())
    server.on("GET", "/v1/models", recording("mlx_lm-0.32.2-tiny-llama", "models").scripted())
    suite = await start(mlx_url=server.url)
    with pytest.raises(FailedPreconditionError, match="start it with --model some/model"):
        await load(suite, "some/model", backend="backends/mlx")
