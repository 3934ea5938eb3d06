"""Model servers that misbehave, seen by a client of the gateway: a clear error and an audit record each."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path

import pytest
import pytest_asyncio

from kala.inference.v1 import inference_pb2, inference_pb2_grpc
from services.common.clearance import ClearanceVerifier, guard_for
from services.common.interceptors import CallPolicy
from services.common.server import serving
from services.inference.__main__ import make_registry
from services.inference.backends.make import pythia_backends
from services.inference.config import InferenceSettings
from services.inference.protection.guard import Guard
from services.inference.registry.registry import Registry
from services.inference.servicer import Service, inference_servicer
from tests.fakes.gateway_suite import Suite, running_suite
from tests.fakes.model_server import (
    Cut,
    FakeModelServer,
    Gate,
    Scripted,
    Step,
    as_json,
    as_stream,
    chunk,
    completion,
)
from tests.fakes.scripted_ethics import ScriptedEthics

pytestmark = pytest.mark.asyncio(loop_scope="module")

HTML = {"content-type": "text/html"}
LONG = "A first part that is long enough to leave before the end. "


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def llama() -> AsyncIterator[FakeModelServer]:
    async with FakeModelServer() as server:
        yield server


@pytest.fixture(scope="module")
def settings(llama: FakeModelServer, tmp_path_factory: pytest.TempPathFactory) -> InferenceSettings:
    return InferenceSettings(
        address=f"unix:{tmp_path_factory.mktemp('inference')}/real.sock",
        embedded=False,
        discover=False,
        llamacpp_url=llama.url,
        metrics_port=None,
    )


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def registry(settings: InferenceSettings) -> AsyncIterator[Registry]:
    made = make_registry(settings, pythia_backends(settings))
    yield made
    await made.aclose()


@pytest.fixture(autouse=True)
def _forgiven(registry: Registry) -> None:
    """Forget what the tests before have done to the breakers."""
    for entry in registry.entries():
        entry.guard = Guard()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def real(
    settings: InferenceSettings, registry: Registry, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Suite]:
    """A gateway before the real inference service."""
    directory: Path = tmp_path_factory.mktemp("real")
    ethics = ScriptedEthics()
    verifier = ClearanceVerifier({ethics.signer.key_id: ethics.signer.public_key})
    servicer = inference_servicer(
        Service(registry, verifier.recheck, settings.max_act_seconds, settings.routing)
    )
    register = partial(inference_pb2_grpc.add_InferenceServiceServicer_to_server, servicer)
    policy = CallPolicy(guard_for=guard_for(verifier, [inference_pb2.DESCRIPTOR]))
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(serving(settings, [register], policy=policy))
        refreshing = asyncio.create_task(registry.run())
        stack.callback(refreshing.cancel)
        await server.set_serving()
        yield await stack.enter_async_context(
            running_suite(
                directory,
                judge=ethics,
                judge_key=ethics.signer.public_key,
                inference_address=server.address,
            )
        )


async def test_a_good_server_answers(real: Suite, llama: FakeModelServer) -> None:
    await real.reset()
    llama.on_chat(as_json(completion("Hello")))
    response = await real.chat()
    assert response.status_code == 200, response.text
    assert response.headers["x-kala-attempts"] == "llamacpp=ok"


@pytest.mark.parametrize(
    "scripted",
    [
        pytest.param(Scripted([b"<html>oops</html>"], 500, HTML), id="HTML"),
        pytest.param(Scripted([b"<html>"], 200, HTML), id="200 with HTML"),
        pytest.param(Scripted([], 200, {"content-type": "application/json"}), id="200 with an empty body"),
        pytest.param(
            Scripted([b'{"choices": [', Cut()], 200, {"content-type": "application/json"}), id="cut"
        ),
    ],
)
@pytest.mark.parametrize("is_stream", [False, True], ids=["whole", "stream"])
async def test_a_server_that_does_not_answer_is_named_and_logged(
    real: Suite, llama: FakeModelServer, scripted: Scripted, *, is_stream: bool
) -> None:
    await real.reset()
    llama.on_chat(scripted)
    body = {"messages": [{"role": "user", "content": "Hi"}], "stream": is_stream}
    response = await real.post("/v1/chat/completions", body)
    error = response.json()["error"]
    assert (response.status_code, error["type"]) == (503, "server_error")
    assert "llamacpp" in error["message"]
    assert response.headers["x-kala-attempts"].startswith("llamacpp=")
    assert "<html" not in response.text
    (outcome,) = await real.leaves(kind="chat.outcome")
    assert outcome["result"]["status"] == "error"
    assert outcome["result"]["attempts"][0]["outcome"] == "failed"


@pytest.mark.parametrize(
    "end",
    [
        pytest.param([Cut()], id="cut"),
        pytest.param([chunk(finish="stop")], id="no [DONE]"),
        pytest.param([b"data: {broken\n\n"], id="a malformed chunk"),
    ],
)
async def test_a_stream_that_fails_in_the_middle_ends_with_an_error_and_is_logged(
    real: Suite, llama: FakeModelServer, end: list[Step]
) -> None:
    await real.reset()
    has_begun = asyncio.Event()
    llama.on_chat(as_stream(chunk(LONG), Gate(has_begun), *end))
    body = {"messages": [{"role": "user", "content": "Hi"}], "stream": True}
    async with real.http.stream("POST", "/v1/chat/completions", json=body, headers=real.bearer()) as response:
        lines = response.aiter_lines()
        assert "A first part" in await anext(lines)
        has_begun.set()
        rest = [line async for line in lines if line]
    assert response.status_code == 200
    assert json.loads(rest[-1].removeprefix("data: "))["error"]["code"] == "backend_failed_mid_stream"
    assert "data: [DONE]" not in rest
    (outcome,) = await real.leaves(kind="chat.outcome")
    assert (outcome["result"]["status"], outcome["result"]["code"]) == ("error", "BACKEND_FAILED_MID_STREAM")


async def test_an_unknown_model_is_404_and_logged(real: Suite) -> None:
    await real.reset()
    response = await real.chat(model="nothing-like-it")
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (404, "model_not_found", "model")
    assert (await real.leaves(kind="chat.outcome"))[0]["result"]["code"] == "MODEL_NOT_FOUND"
