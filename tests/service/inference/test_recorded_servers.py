"""Each server as it really answers: recordings of llama-server, mlx_lm.server and llama_cpp.server, documents of the rest."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from kala.errors import (
    FailedPreconditionError,
    InvalidArgumentError,
    KalaError,
    NotFoundError,
    UnavailableError,
)
from kala.inference.v1 import inference_pb2 as pb
from tests.fakes.images import PIXEL
from tests.fakes.model_server import FakeModelServer, as_json, completion
from tests.fakes.recordings import recording
from tests.service.inference.conftest import StartSuite, Suite, action

NEOX = "llama-server-tiny-neox"
MLX = "mlx_lm-0.32.2-tiny-llama"


def replay(server: FakeModelServer, folder: str, cases: dict[tuple[str, str], str]) -> None:
    for (method, path), case in cases.items():
        server.on(method, path, recording(folder, case).scripted(piece_bytes=97))


@pytest.fixture
async def server() -> AsyncIterator[FakeModelServer]:
    async with FakeModelServer(like_llama_server=False) as fake:
        yield fake


async def only_backend(suite: Suite) -> pb.Backend:
    (backend,) = (await suite.stub.ListBackends(pb.ListBackendsRequest())).backends
    return backend


async def models(suite: Suite) -> list[pb.Model]:
    return list((await suite.stub.ListModels(pb.ListModelsRequest())).models)


# --- llama-server


async def test_llama_server_tells_its_model_and_its_context_per_slot(
    start: StartSuite, server: FakeModelServer
) -> None:
    replay(server, NEOX, {("GET", "/health"): "health", ("GET", "/v1/models"): "models"})
    suite = await start(llamacpp_url=server.url)
    assert (await only_backend(suite)).state == pb.BACKEND_STATE_READY
    (model,) = await models(suite)
    assert (model.id, model.context_tokens, model.max_context_tokens) == ("tiny-neox", 256, 512)
    assert model.state == pb.LOAD_STATE_LOADED


@pytest.mark.parametrize("case", ["chat_stream_usage", "chat_stream"])
async def test_llama_server_streams(start: StartSuite, server: FakeModelServer, case: str) -> None:
    replay(server, NEOX, {
        ("GET", "/health"): "health", ("GET", "/v1/models"): "models", ("POST", "/v1/chat/completions"): case,
    })  # fmt: skip
    suite = await start(llamacpp_url=server.url)
    assert (await suite.chat(action(stream=True))).text == "Hello! How can I help you?"


async def test_llama_server_goes_on_with_an_unfinished_answer_and_does_not_repeat_it(
    start: StartSuite, server: FakeModelServer
) -> None:
    replay(server, NEOX, {
        ("GET", "/health"): "health", ("GET", "/v1/models"): "models",
        ("POST", "/v1/chat/completions"): "chat_stream_usage",
    })  # fmt: skip
    suite = await start(llamacpp_url=server.url)
    begun = pb.ChatMessage(role=pb.ROLE_ASSISTANT, content=[pb.ContentPart(text="Once upon")])
    await suite.chat(action(messages=[*action().messages, begun]))
    await suite.chat(action(stream=True))
    going_on, fresh = (seen.json() for seen in server.chats)
    # Without these llama-server says the beginning again, and in a whole answer with them, too.
    assert (going_on["continue_final_message"], going_on["add_generation_prompt"]) == (True, False)
    assert going_on["stream"]
    assert "continue_final_message" not in fresh


async def test_a_swapped_model_behind_llama_server_is_noticed(
    start: StartSuite, server: FakeModelServer
) -> None:
    replay(server, NEOX, {
        ("GET", "/health"): "health", ("GET", "/v1/models"): "models", ("POST", "/v1/chat/completions"): "chat",
    })  # fmt: skip
    suite = await start(llamacpp_url=server.url)
    assert (await suite.chat()).route.model == "tiny-neox"
    server.on_chat(as_json(completion(model="another-model")))
    with pytest.raises(UnavailableError, match="answered as another model than tiny-neox"):
        await suite.chat()


async def test_llama_server_in_router_mode_without_a_model_is_not_ready(
    start: StartSuite, server: FakeModelServer
) -> None:
    replay(server, "llama-server-router", {
        ("GET", "/health"): "health", ("GET", "/v1/models"): "models_before",
        ("POST", "/v1/chat/completions"): "noautoload",
    })  # fmt: skip
    suite = await start(llamacpp_url=server.url)
    # Its /health is 200 with nothing loaded.
    assert (await only_backend(suite)).state == pb.BACKEND_STATE_NO_MODEL
    with pytest.raises(FailedPreconditionError, match="no model is loaded"):
        await suite.chat()
    with pytest.raises(FailedPreconditionError, match="'tiny-llama' not loaded"):
        await suite.chat(action(model="tiny-llama"))


async def test_llama_server_in_router_mode_serves_the_loaded_model(
    start: StartSuite, server: FakeModelServer
) -> None:
    replay(
        server, "llama-server-router", {("GET", "/health"): "health", ("GET", "/v1/models"): "models_after"}
    )
    server.on_chat(as_json(completion(model="tiny-llama")))
    suite = await start(llamacpp_url=server.url)
    assert (await suite.chat()).route.model == "tiny-llama"
    listed = {model.id: model for model in await models(suite)}
    assert listed["tiny-neox"].state == pb.LOAD_STATE_NOT_LOADED
    # What it discloses of its command line stays here.
    assert "/models/" not in str(await only_backend(suite)) + str(listed)


async def test_a_loading_llama_server_is_waited_for_and_not_called_broken(
    start: StartSuite, server: FakeModelServer
) -> None:
    loading = {"error": {"code": 503, "message": "Loading model", "type": "unavailable_error"}}
    server.on("GET", "/health", as_json(loading, status=503))
    suite = await start(llamacpp_url=server.url)
    assert (await only_backend(suite)).state == pb.BACKEND_STATE_LOADING
    with pytest.raises(UnavailableError, match="is loading"):
        await suite.chat()


async def test_a_wrong_api_key_names_its_setting(start: StartSuite, server: FakeModelServer) -> None:
    folder = "llama-server-tiny-llama-auth-tools-draft"
    replay(server, folder, {("GET", "/health"): "health_noauth", ("GET", "/v1/models"): "models_noauth"})
    suite = await start(llamacpp_url=server.url, llamacpp_api_key="wrong")
    backend = await only_backend(suite)
    assert backend.state == pb.BACKEND_STATE_ERROR
    assert "KALA_INFERENCE_LLAMACPP_API_KEY" in backend.detail
    assert server.requests[0].headers["authorization"] == "Bearer wrong"


async def test_llama_cpp_python_is_tolerated_as_one_of_the_kind(
    start: StartSuite, server: FakeModelServer
) -> None:
    folder = "llama-cpp-python-0.3.36"
    replay(server, folder, {
        ("GET", "/health"): "health", ("GET", "/v1/models"): "models", ("POST", "/v1/chat/completions"): "chat",
    })  # fmt: skip
    suite = await start(llamacpp_url=server.url)
    assert (await suite.chat()).text
    replay(server, folder, {("POST", "/v1/chat/completions"): "overflow_stream"})
    with pytest.raises(UnavailableError, match="empty stream"):
        await suite.chat(action(stream=True))


# --- mlx_lm.server


def replay_mlx(server: FakeModelServer, case: str = "chat_stream_usage") -> None:
    replay(server, MLX, {
        ("GET", "/health"): "health", ("GET", "/v1/models"): "models", ("POST", "/v1/chat/completions"): case,
    })  # fmt: skip


async def test_mlx_is_shown_by_its_models_name_without_its_directory(
    start: StartSuite, server: FakeModelServer
) -> None:
    replay_mlx(server)
    suite = await start(mlx_url=server.url)
    (model,) = await models(suite)
    assert (model.id, model.backend_model) == ("tiny-llama-hf", "tiny-llama-hf")


async def test_mlx_without_a_hub_cache_has_no_list_and_serves_all_the_same(
    start: StartSuite, server: FakeModelServer
) -> None:
    replay_mlx(server)
    replay(server, "mlx_lm-0.32.2-tiny-neox", {("GET", "/v1/models"): "models_no_hub_cache"})
    for settings in ({"mlx_url": server.url}, {"discover": True, "discovery_ports": (server.port,)}):
        suite = await start(**settings)
        assert (await suite.chat()).route.model == "default_model"


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("model", ["", "local-model", "tiny-llama-hf", "mlx/tiny-llama-hf"])
async def test_mlx_is_only_ever_sent_its_own_name_and_always_streams(
    start: StartSuite, server: FakeModelServer, model: str, stream: bool
) -> None:
    replay_mlx(server)
    suite = await start(mlx_url=server.url)
    answer = await suite.chat(action(model=model, stream=stream))
    assert answer.text.startswith("The capital of")
    assert answer.route.model == "tiny-llama-hf"
    sent = server.chats[0].json()
    assert (sent["model"], sent["stream"]) == ("default_model", True)
    assert sent["stream_options"] == {"include_usage": True}


async def test_a_models_name_of_the_hub_never_reaches_mlx(start: StartSuite, server: FakeModelServer) -> None:
    replay_mlx(server)
    suite = await start(mlx_url=server.url)
    with pytest.raises(NotFoundError, match="tiny-llama-hf"):
        await suite.chat(action(model="mlx-community/Llama-3.2-1B-Instruct-4bit"))
    assert server.chats == []


async def test_mlx_that_dies_in_mid_stream_is_a_failure_although_it_said_finish(
    start: StartSuite, server: FakeModelServer
) -> None:
    replay_mlx(server, "chat_stream_usage_missingkey")
    suite = await start(mlx_url=server.url)
    with pytest.raises(UnavailableError, match=r"without \[DONE\]"):
        await suite.chat(action(stream=True))


async def test_mlx_404_is_a_failed_generation_and_not_a_missing_model(
    start: StartSuite, server: FakeModelServer
) -> None:
    replay_mlx(server, "err_badmodel")
    suite = await start(mlx_url=server.url)
    with pytest.raises(UnavailableError, match="could not generate"):
        await suite.chat()


async def test_mlx_is_not_sent_images(start: StartSuite, server: FakeModelServer) -> None:
    replay_mlx(server, "image")
    suite = await start(mlx_url=server.url)
    image = pb.ChatMessage(role=pb.ROLE_USER, content=[pb.ContentPart(image_data_uri=PIXEL)])
    with pytest.raises(InvalidArgumentError, match="cannot do vision"):
        await suite.chat(pb.ChatAction(messages=[image]))
    assert server.chats == []


# --- LM Studio, by its documents


def lm_studio(server: FakeModelServer, *loaded: str, idle: tuple[str, ...] = ("idle-model",)) -> None:
    def listed(key: str, instances: list[dict[str, object]]) -> dict[str, object]:
        return {
            "type": "llm", "key": key, "loaded_instances": instances, "max_context_length": 262144,
            "quantization": {"name": "Q4_K_M"}, "capabilities": {"vision": False, "trained_for_tool_use": True},
        }  # fmt: skip

    models = [listed(key, [{"id": key, "config": {"context_length": 4096}}]) for key in loaded]
    models += [listed(key, []) for key in idle]
    models.append({"type": "embedding", "key": "nomic", "loaded_instances": [{"id": "nomic", "config": {}}]})
    server.on("GET", "/lmstudio-greeting", as_json({"lmstudio": True}))
    server.on("GET", "/api/v1/models", as_json({"models": models}))
    server.on_chat(as_json(completion(model=loaded[0] if loaded else "")))


async def test_lm_studio_tells_the_instances_own_context(start: StartSuite, server: FakeModelServer) -> None:
    lm_studio(server, "qwen/qwen3-4b")
    suite = await start(lmstudio_url=server.url + "/v1")
    listed = {model.id: model for model in await models(suite)}
    loaded = listed["qwen/qwen3-4b"]
    assert (loaded.context_tokens, loaded.max_context_tokens, loaded.quantization) == (4096, 262144, "Q4_K_M")
    assert list(listed["nomic"].capabilities) == [pb.CAPABILITY_EMBED]
    await suite.chat(action(model="local-model"))
    assert server.chats[0].json()["model"] == "qwen/qwen3-4b"


async def test_lm_studio_without_a_loaded_model_says_how_to_load_one(
    start: StartSuite, server: FakeModelServer
) -> None:
    lm_studio(server)
    suite = await start(lmstudio_url=server.url)
    assert (await only_backend(suite)).state == pb.BACKEND_STATE_NO_MODEL
    with pytest.raises(FailedPreconditionError, match="lms load"):
        await suite.chat()


async def test_lm_studio_with_several_loaded_models_lists_them(
    start: StartSuite, server: FakeModelServer
) -> None:
    lm_studio(server, "a", "b")
    suite = await start(lmstudio_url=server.url)
    with pytest.raises(InvalidArgumentError, match="lmstudio: a, b; name one") as caught:
        await suite.chat()
    assert caught.value.reason == "SEVERAL_MODELS_LOADED"


async def test_a_model_loaded_a_moment_ago_is_found(start: StartSuite, server: FakeModelServer) -> None:
    lm_studio(server)
    suite = await start(lmstudio_url=server.url)
    await suite.registry.ready()
    lm_studio(server, "late")
    suite.registry._last_round_at = -1e9  # as if the last look had been a while ago
    assert (await suite.chat()).route.model == "late"


@pytest.mark.parametrize(
    ("status", "error", "kind", "problem"),
    [
        (404, {"message": "No models loaded. Please load a model", "code": "model_not_found"},
         FailedPreconditionError, "not loaded"),
        (400, {"message": "No models loaded. Please load a model", "code": None}, FailedPreconditionError, "not loaded"),
        (400, {"message": 'Invalid model identifier "x".', "code": "model_not_found"}, NotFoundError, "does not know"),
        (400, ("The number of tokens to keep from the initial prompt is greater than the context length "
         "(n_keep: 5000>= n_ctx: 4096). Try"), InvalidArgumentError, "has 5000 tokens.*context of 4096 tokens"),
        (400, {"message": "Trying to keep the first 5000 tokens when context the overflows. However, the model is "
         "loaded with context length of only 4096 tokens"}, InvalidArgumentError, "has 5000 tokens.*context of 4096"),
    ],
)  # fmt: skip
async def test_lm_studios_error_texts_are_understood(
    start: StartSuite,
    server: FakeModelServer,
    status: int,
    error: object,
    kind: type[KalaError],
    problem: str,
) -> None:
    lm_studio(server, "m")
    suite = await start(lmstudio_url=server.url)
    await suite.registry.ready()
    server.on_chat(as_json({"error": error}, status=status))
    with pytest.raises(kind, match=problem):
        await suite.chat()


async def test_an_older_lm_studio_is_read_by_its_v0_list(start: StartSuite, server: FakeModelServer) -> None:
    unknown = as_json({"error": "Unexpected endpoint or method. (GET /api/v1/models). Returning 200 anyway"})
    server.on("GET", "/api/v1/models", unknown)
    v0 = {
        "data": [
            {"id": "a", "type": "vlm", "state": "loaded"},
            {"id": "b", "type": "llm", "state": "not-loaded"},
        ]
    }
    server.on("GET", "/api/v0/models", as_json(v0))
    server.on_chat(as_json(completion(model="a")))
    suite = await start(lmstudio_url=server.url)
    assert (await suite.chat()).route.model == "a"


async def test_something_that_answers_200_to_everything_is_not_lm_studio(
    start: StartSuite, server: FakeModelServer
) -> None:
    for path in ("/api/v1/models", "/api/v0/models", "/lmstudio-greeting", "/health", "/v1/models"):
        server.on("GET", path, as_json({"status": "ok"}))
    suite = await start(lmstudio_url=server.url)
    backend = await only_backend(suite)
    assert backend.state == pb.BACKEND_STATE_ERROR
    assert "not LM Studio" in backend.detail


async def test_lm_studio_may_name_a_model_with_or_without_its_publisher(
    start: StartSuite, server: FakeModelServer
) -> None:
    lm_studio(server, "qwen/qwen3-4b")
    suite = await start(lmstudio_url=server.url)
    for name in ("qwen3-4b", "qwen/qwen3-4b:2", "Qwen3-4B@q4_k_m"):
        server.on_chat(as_json(completion(model=name)))
        assert (await suite.chat()).route.model == "qwen/qwen3-4b"
    server.on_chat(as_json(completion(model="llama-3")))
    with pytest.raises(UnavailableError, match="another model"):
        await suite.chat()
