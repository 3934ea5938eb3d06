"""OpenAI and Anthropic: never asked without leave, by their own protocols with it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from kala.errors import (
    InvalidArgumentError,
    KalaError,
    NotFoundError,
    UnavailableError,
)
from kala.inference.v1 import inference_pb2 as pb
from services.common.settings import load
from services.inference.backends.make_remote import remote_backends
from services.inference.config import SECTION, InferenceSettings
from tests.fakes.model_server import (
    DONE,
    FakeModelServer,
    Hang,
    Scripted,
    as_json,
    as_stream,
    chunk,
    completion,
)
from tests.fakes.recordings import recording
from tests.service.inference.conftest import StartSuite, Suite, action

STREAM = {"content-type": "text/event-stream"}


@pytest.fixture
async def server() -> AsyncIterator[FakeModelServer]:
    async with FakeModelServer(like_llama_server=False) as fake:
        yield fake


def openai(server: FakeModelServer) -> dict[str, object]:
    return {"openai_api_key": "sk-test", "openai_url": server.url + "/v1", "openai_model": "gpt-4o-mini"}


def anthropic(server: FakeModelServer, model: str = "tiny-neox") -> dict[str, object]:
    return {"anthropic_api_key": "sk-ant", "anthropic_url": server.url, "anthropic_model": model}


def leaving(text: str = "Hello", **fields: object) -> pb.ChatAction:
    return action(text, **{"allow_remote": True, **fields})


async def backends(suite: Suite) -> dict[str, pb.Backend]:
    listed = (await suite.stub.ListBackends(pb.ListBackendsRequest())).backends
    return {backend.name: backend for backend in listed}


# --- Nothing leaves without leave


async def test_nothing_at_all_is_sent_before_a_request_allows_it(
    start: StartSuite, server: FakeModelServer
) -> None:
    suite = await start(**openai(server), **anthropic(server))
    await suite.registry.refresh()
    listed = await backends(suite)
    assert all(backend.remote and backend.state == pb.BACKEND_STATE_READY for backend in listed.values())
    assert "before a request allows it" in listed["backends/openai"].detail
    for wanted in (action(), action(model="gpt-4o-mini"), action(model="openai/gpt-4o-mini")):
        with pytest.raises(KalaError):
            await suite.chat(wanted)
    assert server.connections == 0


async def test_a_local_backend_that_fails_is_not_replaced_by_a_remote_one(
    start: StartSuite, server: FakeModelServer, llama: FakeModelServer
) -> None:
    suite = await start(llamacpp_url=llama.url, **openai(server))
    llama.on_chat(Scripted(status=500))
    with pytest.raises(UnavailableError):
        await suite.chat(action())
    assert server.connections == 0
    server.on_chat(as_json(completion(model="gpt-4o-mini")))
    answer = await suite.chat(leaving())
    assert (answer.route.backend, answer.route.remote) == ("backends/openai", True)
    assert [attempt.backend for attempt in answer.finish.attempts] == ["backends/llamacpp", "backends/openai"]


@pytest.mark.parametrize(
    ("environ", "names"),
    [
        ({}, []),
        ({"OPENAI_API_KEY": "sk-x"}, ["openai"]),
        ({"ANTHROPIC_API_KEY": "sk-x"}, ["anthropic"]),
        ({"OPENAI_API_KEY": "sk-x", "KALA_INFERENCE_OPENAI_ENABLED": "false"}, []),
        # A client's key of this suite is none of OpenAI's, and must not be sent there.
        ({"OPENAI_API_KEY": "kala_abc", "OPENAI_API_BASE": "http://127.0.0.1:8800/v1"}, []),
        ({"OPENAI_API_KEY": ""}, []),
    ],
    ids=["nothing", "openai", "anthropic", "switched off", "a key of KALA's", "an empty key"],
)
async def test_without_a_key_of_its_own_there_is_no_remote_backend(
    tmp_path: Path, environ: dict[str, str], names: list[str]
) -> None:
    settings = load(InferenceSettings, section=SECTION, argv=[], environ=environ, cwd=tmp_path)
    made = remote_backends(settings)
    assert [backend.identity.name for backend in made] == names
    for backend in made:
        await backend.aclose()


@pytest.mark.parametrize(
    ("environ", "problem"),
    [
        ({"LLM_PROVIDER": "openai"}, "provider openai needs OPENAI_API_KEY"),
        ({"LLM_PROVIDER": "anthropic"}, "provider anthropic needs ANTHROPIC_API_KEY"),
        (
            {"OPENAI_API_KEY": "sk-x", "OPENAI_API_BASE": "http://api.openai.com/v1"},
            "openai_url must be https",
        ),
        (
            {"ANTHROPIC_API_KEY": "k", "KALA_INFERENCE_ANTHROPIC_URL": "http://169.254.169.254"},
            "anthropic_url: .*link-local",
        ),
    ],
)
def test_a_remote_that_cannot_be_or_must_not_be_stops_the_start(
    tmp_path: Path, environ: dict[str, str], problem: str
) -> None:
    with pytest.raises(InvalidArgumentError, match=problem):
        load(InferenceSettings, section=SECTION, argv=[], environ=environ, cwd=tmp_path)


async def test_one_that_is_away_gets_no_requests_until_a_look_finds_it(
    start: StartSuite, server: FakeModelServer
) -> None:
    suite = await start(**openai(server))
    await server.stop()
    with pytest.raises(UnavailableError):
        await suite.chat(leaving())
    await suite.registry.refresh()
    assert (await backends(suite))["backends/openai"].state == pb.BACKEND_STATE_OFF
    await server.start()
    server.on("GET", "/v1/models", as_json({"data": []}))
    server.on_chat(as_json(completion(model="gpt-4o-mini")))
    await suite.registry.refresh()
    assert (await suite.chat(leaving())).text == "Hello"
    seen = len(server.requests)
    await suite.registry.refresh()
    assert len(server.requests) == seen


# --- OpenAI


async def test_openai_is_asked_in_its_own_dialect(start: StartSuite, server: FakeModelServer) -> None:
    # It answers with the dated name of what was asked for.
    server.on_chat(
        as_stream(
            chunk("Hi", model="gpt-4o-mini-2024-07-18"),
            chunk(finish="stop", model="gpt-4o-mini-2024-07-18"),
            DONE,
        )
    )
    suite = await start(**openai(server))
    answer = await suite.chat(leaving(stream=True))
    assert (answer.text, answer.route.model) == ("Hi", "gpt-4o-mini")
    (seen,) = server.chats
    asked = seen.json()
    assert (asked["store"], asked["max_completion_tokens"]) == (False, 16384)
    assert "max_tokens" not in asked
    assert seen.headers["authorization"] == "Bearer sk-test"


async def test_openai_has_no_top_k_and_is_not_sent_one(start: StartSuite, server: FakeModelServer) -> None:
    suite = await start(**openai(server))
    with pytest.raises(InvalidArgumentError, match=r"sampling\.top_k: OpenAI has none"):
        await suite.chat(leaving(sampling=pb.Sampling(top_k=5)))
    assert server.chats == []


async def test_only_configured_models_are_asked_for(start: StartSuite, server: FakeModelServer) -> None:
    server.on_chat(as_json(completion(model="gpt-4.1")))
    suite = await start(**openai(server), openai_models=("gpt-4.1",))
    assert (await suite.chat(leaving(model="openai/gpt-4.1"))).route.model == "gpt-4.1"
    with pytest.raises(NotFoundError):
        await suite.chat(leaving(model="openai/o3-pro"))


async def test_an_answer_of_another_model_is_noticed(start: StartSuite, server: FakeModelServer) -> None:
    server.on_chat(as_json(completion(model="gpt-4o-2024-07-18")))
    suite = await start(**openai(server))
    with pytest.raises(UnavailableError, match="another model than gpt-4o-mini"):
        await suite.chat(leaving())


# --- Anthropic


async def test_anthropic_answers_in_its_own_protocol(start: StartSuite, server: FakeModelServer) -> None:
    recorded = recording("llama-server-tiny-neox", "anthropic_stream")
    server.on("POST", "/v1/messages", recorded.scripted(piece_bytes=61))
    suite = await start(**anthropic(server))
    for stream in (True, False):
        answer = await suite.chat(leaving(stream=stream))
        assert (answer.text, answer.route.backend) == ("Hello! How can I help you?", "backends/anthropic")
        assert (answer.finish.reason, answer.finish.usage.input_tokens) == (pb.FINISH_REASON_STOP, 7)
    seen = next(seen for seen in server.requests if seen.path == "/v1/messages")
    assert (seen.headers["x-api-key"], seen.headers["anthropic-version"]) == ("sk-ant", "2023-06-01")
    assert "authorization" not in seen.headers


@pytest.mark.parametrize(
    ("status", "error", "kind", "problem"),
    [
        (
            400,
            {"type": "invalid_request_error", "message": "messages: bad"},
            InvalidArgumentError,
            "messages: bad",
        ),
        (
            400,
            {
                "type": "invalid_request_error",
                "message": "prompt is too long: 250000 tokens > 200000 maximum",
            },
            InvalidArgumentError,
            "has 250000 tokens.*context of 200000",
        ),
        (
            401,
            {"type": "authentication_error", "message": "invalid x-api-key"},
            UnavailableError,
            "answered 401",
        ),
        (
            404,
            {"type": "not_found_error", "message": "model: tiny-neox"},
            NotFoundError,
            "does not know the model",
        ),
        (529, {"type": "overloaded_error", "message": "Overloaded"}, UnavailableError, "answered 529"),
    ],
)
async def test_anthropics_errors_are_understood(
    start: StartSuite,
    server: FakeModelServer,
    status: int,
    error: dict[str, str],
    kind: type[KalaError],
    problem: str,
) -> None:
    server.on("POST", "/v1/messages", as_json({"type": "error", "error": error}, status=status))
    suite = await start(**anthropic(server))
    with pytest.raises(kind, match=problem):
        await suite.chat(leaving())


async def test_an_error_in_anthropics_stream_is_no_success(
    start: StartSuite, server: FakeModelServer
) -> None:
    whole = recording("llama-server-tiny-neox", "anthropic_stream").body
    start_of_it = whole[: whole.index(b"event: content_block_stop")]
    error = {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}
    last = b"event: error\ndata: " + json.dumps(error).encode() + b"\n\n"
    server.on("POST", "/v1/messages", Scripted([start_of_it, last], 200, STREAM, framing="chunked"))
    suite = await start(**anthropic(server))
    with pytest.raises(UnavailableError, match="error inside its answer"):
        await suite.chat(leaving(stream=True))


@pytest.mark.parametrize(
    ("steps", "problem"),
    [
        ([], "empty stream"),
        (
            [b'event: message_start\ndata: {"type":"message_start","message":{"model":"tiny-neox"}}'],
            "in the middle",
        ),
    ],
    ids=["nothing", "an event without its end"],
)
async def test_a_stream_of_anthropics_that_breaks_off_is_no_success(
    start: StartSuite, server: FakeModelServer, steps: list[bytes], problem: str
) -> None:
    server.on("POST", "/v1/messages", Scripted(steps, 200, STREAM, framing="chunked"))
    suite = await start(**anthropic(server))
    with pytest.raises(UnavailableError, match=problem):
        await suite.chat(leaving())


async def test_a_client_that_leaves_ends_the_generation(start: StartSuite, server: FakeModelServer) -> None:
    whole = recording("llama-server-tiny-neox", "anthropic_stream").body
    begun = whole[: whole.index(b"event: content_block_stop")]
    server.on("POST", "/v1/messages", Scripted([begun, Hang()], 200, STREAM, framing="chunked"))
    suite = await start(**anthropic(server))
    call = suite.call(leaving(stream=True))
    assert (await anext(aiter(call))).HasField("route")
    call.cancel()
    async with asyncio.timeout(5):
        await server.client_left.wait()


# --- A test by a person


async def test_a_check_tells_the_way_the_key_and_the_model_apart(
    start: StartSuite, server: FakeModelServer
) -> None:
    suite = await start(**openai(server), connect_seconds=1)
    request = pb.CheckBackendRequest(name="backends/openai")
    server.on("GET", "/v1/models", as_json({"error": {"message": "bad key"}}, status=401))
    (failed,) = (await suite.stub.CheckBackend(request)).checks
    assert (failed.step, failed.passed) == ("identify", False)
    assert "OPENAI_API_KEY" in failed.cure
    server.on("GET", "/v1/models", as_json({"data": [{"id": "gpt-4o-mini"}]}))
    server.on_chat(as_json(completion(model="gpt-4o-mini")))
    checks = (await suite.stub.CheckBackend(request)).checks
    assert [(check.step, check.passed) for check in checks] == [
        ("connect", True),
        ("identify", True),
        ("answer", True),
        ("speed", True),
    ]
    other = pb.CheckBackendRequest(name="backends/openai", model="o3-pro")
    failed = (await suite.stub.CheckBackend(other)).checks[-1]
    assert (failed.step, failed.passed, failed.cure) == ("models", False, "configured are: gpt-4o-mini")
    server.on("GET", "/v1/models", as_json({"hello": "world"}))
    (failed,) = (await suite.stub.CheckBackend(request)).checks
    assert (failed.step, failed.cure) == ("identify", "check the base URL")
    await server.stop()
    (failed,) = (await suite.stub.CheckBackend(request)).checks
    assert (failed.step, failed.passed) == ("connect", False)
