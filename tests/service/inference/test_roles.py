"""Roles and a backend's defaults, as they arrive at the model server, and what ExplainRoute says of them."""

from __future__ import annotations

import pytest

from kala.errors import FailedPreconditionError, InvalidArgumentError
from kala.inference.v1 import inference_pb2 as pb
from services.common.status import translated
from tests.fakes.model_server import FakeModelServer, as_json, completion, llama_models
from tests.service.inference.conftest import StartSuite, Suite, action

ROLES = {
    "rank": {"model": "small", "temperature": 0.0, "seed": 42, "top_p": 0.9, "max_tokens": 50},
    "read": {"model": "big", "context_tokens": 1024},
}


@pytest.fixture
async def suite(start: StartSuite, llama: FakeModelServer) -> Suite:
    llama.on("GET", "/v1/models", as_json(llama_models("small", "big"), headers={"server": "llama.cpp"}))
    llama.on_chat(as_json(completion(model="small")))
    return await start(llamacpp_url=llama.url, roles=ROLES)


async def test_a_role_brings_its_model_and_its_settings(suite: Suite, llama: FakeModelServer) -> None:
    await suite.chat(action(role="Rank"))
    sent = llama.chats[0].json()
    assert {name: sent[name] for name in ("model", "temperature", "seed", "top_p", "max_tokens")} == {
        "model": "small",
        "temperature": 0.0,
        "seed": 42,
        "top_p": 0.9,
        "max_tokens": 50,
    }


async def test_what_the_request_says_itself_stands(suite: Suite, llama: FakeModelServer) -> None:
    await suite.chat(action(role="rank", model="small", sampling=pb.Sampling(temperature=0.7)))
    sent = llama.chats[0].json()
    assert (sent["temperature"], sent["seed"]) == (0.7, 42)


async def test_an_unknown_role_lists_the_known_ones(suite: Suite, llama: FakeModelServer) -> None:
    with pytest.raises(InvalidArgumentError, match="'extract' is not configured; there are: rank, read"):
        await suite.chat(action(role="extract"))
    assert llama.chats == []


async def test_a_model_with_less_context_than_the_role_asks_for_is_told(suite: Suite) -> None:
    with pytest.raises(FailedPreconditionError, match="256 tokens of context, and 1024 are asked for"):
        await suite.chat(action(role="read"))


async def explained(suite: Suite, **fields: object) -> list[tuple[str, str, bool]]:
    with translated():
        reply = await suite.stub.ExplainRoute(pb.ExplainRouteRequest(**fields))
    return [(one.backend, one.model, one.eligible) for one in reply.candidates]


async def test_an_explanation_knows_roles_tasks_and_permission(suite: Suite) -> None:
    assert await explained(suite, role="rank") == [("backends/llamacpp", "small", True)]
    assert await explained(suite, role="read") == [("backends/llamacpp", "", False)]
    assert await explained(suite, model="small", needs=[pb.CAPABILITY_VISION]) == [
        ("backends/llamacpp", "", False)
    ]
    with pytest.raises(InvalidArgumentError, match="role"):
        await explained(suite, role="nobody")


async def test_lm_studios_defaults_come_after_the_request_and_its_role(start: StartSuite) -> None:
    async with FakeModelServer(like_llama_server=False) as studio:
        loaded = [{"id": "m", "config": {"context_length": 8192}}]
        model = {"key": "m", "type": "llm", "loaded_instances": loaded, "max_context_length": 32768}
        studio.on("GET", "/api/v1/models", as_json({"models": [model]}))
        studio.on_chat(as_json(completion(model="m")))
        suite = await start(
            lmstudio_url=studio.url,
            lmstudio_temperature=0.0,
            lmstudio_seed=42,
            lmstudio_max_tokens=2048,
            lmstudio_max_context=4096,
            roles={"warm": {"temperature": 0.9}},
        )
        await suite.chat(action(role="warm", sampling=pb.Sampling(seed=7)))
        sent = studio.chats[0].json()
        assert (sent["temperature"], sent["seed"], sent["max_tokens"]) == (0.9, 7, 2048)
        models = await suite.stub.ListModels(pb.ListModelsRequest())
        assert models.models[0].context_tokens == 4096
