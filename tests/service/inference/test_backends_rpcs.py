"""ListModels, ListBackends, GetBackend, CheckBackend and ExplainRoute."""

from __future__ import annotations

import pytest

from kala.errors import InvalidArgumentError, NotFoundError
from kala.inference.v1 import inference_pb2 as pb
from services.common.status import translated
from tests.fakes.model_server import FakeModelServer, as_json, llama_models
from tests.service.inference.conftest import StartSuite, Suite


@pytest.fixture
async def suite(start: StartSuite, llama: FakeModelServer) -> Suite:
    return await start(llamacpp_url=llama.url, lmstudio_url="http://127.0.0.1:9")


async def test_backends_come_in_chain_order_with_reason_and_cure(suite: Suite) -> None:
    first, second = (await suite.stub.ListBackends(pb.ListBackendsRequest())).backends
    assert (first.name, first.position, first.state) == ("backends/llamacpp", 0, pb.BACKEND_STATE_READY)
    assert (second.name, second.position, second.state) == ("backends/lmstudio", 1, pb.BACKEND_STATE_OFF)
    assert "lms server start" in second.detail
    assert first.HasField("checked_at")
    assert first.latency.ToMilliseconds() < 1000


async def test_lists_have_pages(suite: Suite) -> None:
    first = await suite.stub.ListBackends(pb.ListBackendsRequest(page_size=1))
    second = await suite.stub.ListBackends(
        pb.ListBackendsRequest(page_size=1, page_token=first.next_page_token)
    )
    assert [b.name for b in (*first.backends, *second.backends)] == ["backends/llamacpp", "backends/lmstudio"]
    assert second.next_page_token == ""


async def test_only_models_of_answering_backends_are_listed(suite: Suite) -> None:
    listed = (await suite.stub.ListModels(pb.ListModelsRequest())).models
    assert [(model.id, model.backend) for model in listed] == [("tiny", "backends/llamacpp")]
    assert (await suite.stub.ListModels(pb.ListModelsRequest(backend="backends/lmstudio"))).models == []


async def test_a_backend_is_named_in_full(suite: Suite) -> None:
    with pytest.raises(NotFoundError, match="backends/llamacpp, backends/lmstudio"), translated():
        await suite.stub.GetBackend(pb.GetBackendRequest(name="backends/mlx"))
    with pytest.raises(InvalidArgumentError, match="backends/<name>"), translated():
        await suite.stub.GetBackend(pb.GetBackendRequest(name="llamacpp"))
    assert (
        await suite.stub.GetBackend(pb.GetBackendRequest(name="backends/llamacpp"))
    ).backend.kind == "llamacpp"


async def check(suite: Suite, name: str, model: str = "") -> pb.CheckBackendResponse:
    return await suite.stub.CheckBackend(pb.CheckBackendRequest(name=name, model=model))


async def test_a_test_goes_as_far_as_one_generated_token(suite: Suite, llama: FakeModelServer) -> None:
    reply = await check(suite, "backends/llamacpp")
    assert [(step.step, step.passed) for step in reply.checks] == [
        ("connect", True),
        ("identify", True),
        ("models", True),
        ("context", True),
        ("answer", True),
        ("speed", True),
    ]
    assert llama.chats[-1].json()["max_tokens"] == 1


async def test_a_test_ends_at_the_first_failure_with_its_cure(suite: Suite, llama: FakeModelServer) -> None:
    (connect,) = (await check(suite, "backends/lmstudio")).checks
    assert (connect.step, connect.passed) == ("connect", False)
    assert "lms server start" in connect.cure
    last = (await check(suite, "backends/llamacpp", model="other")).checks[-1]
    assert (last.step, last.passed, last.detail) == ("models", False, "model 'other' is not there")
    llama.on_chat(as_json({"error": "boom"}, status=500))
    last = (await check(suite, "backends/llamacpp")).checks[-1]
    assert (last.step, last.passed, last.detail) == ("answer", False, "answered 500")


async def test_a_test_sees_what_changed_a_moment_ago(suite: Suite, llama: FakeModelServer) -> None:
    await suite.registry.ready()
    llama.on("GET", "/v1/models", as_json(llama_models("new"), headers={"server": "llama.cpp"}))
    await check(suite, "backends/llamacpp", model="new")
    listed = (await suite.stub.ListModels(pb.ListModelsRequest())).models
    assert [model.id for model in listed] == ["new"]


async def test_a_route_is_explained_without_being_taken(suite: Suite, llama: FakeModelServer) -> None:
    first, second = (await suite.stub.ExplainRoute(pb.ExplainRouteRequest())).candidates
    assert (first.backend, first.model, first.eligible) == ("backends/llamacpp", "tiny", True)
    assert (second.backend, second.eligible) == ("backends/lmstudio", False)
    assert "nothing listens" in second.reason
    assert llama.chats == []


async def test_the_configured_provider_is_the_default(start: StartSuite, llama: FakeModelServer) -> None:
    suite = await start(llamacpp_url=llama.url, lmstudio_url="http://127.0.0.1:9", provider="lmstudio")
    candidates = (await suite.stub.ExplainRoute(pb.ExplainRouteRequest())).candidates
    assert [candidate.backend for candidate in candidates] == ["backends/lmstudio"]
