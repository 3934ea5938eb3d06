"""Ollama by its native API, as its documents and its source describe it; it was not run here."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import pytest

from kala.errors import FailedPreconditionError, InvalidArgumentError, NotFoundError, UnavailableError
from kala.inference.v1 import inference_pb2 as pb
from services.inference.backends import ollama as ollama_backend
from services.inference.backends.ollama import OllamaBackend
from tests.fakes.model_server import Cut, FakeModelServer, Hang, Scripted, Seen, Step, as_json
from tests.service.inference.conftest import StartSuite, Suite, action

NDJSON = {"content-type": "application/x-ndjson"}


@pytest.fixture
async def server() -> AsyncIterator[FakeModelServer]:
    async with FakeModelServer(like_llama_server=False) as fake:
        yield fake


def ollama(server: FakeModelServer, *installed: str, running: dict[str, int] | None = None) -> None:
    server.on("GET", "/api/version", as_json({"version": "0.12.0"}))
    tags = [{"name": name, "digest": name, "details": {"quantization_level": "Q4_0"}} for name in installed]
    server.on("GET", "/api/tags", as_json({"models": tags}))
    loaded = [{"name": name, "context_length": size} for name, size in (running or {}).items()]
    server.on("GET", "/api/ps", as_json({"models": loaded}))
    server.on("POST", "/api/show", as_json({"capabilities": ["completion", "tools"]}))


def lines(*values: dict[str, object]) -> list[Step]:
    return [json.dumps(value).encode() + b"\n" for value in values]


def says(text: str, model: str = "llama3:latest") -> dict[str, object]:
    return {"model": model, "message": {"role": "assistant", "content": text}, "done": False}


def ends(model: str = "llama3:latest", reason: str = "stop") -> dict[str, object]:
    end = {"done": True, "done_reason": reason, "prompt_eval_count": 7, "eval_count": 2}
    return {"model": model, "message": {"role": "assistant", "content": ""}, **end}


def on_chat(server: FakeModelServer, *steps: Step) -> None:
    server.on("POST", "/api/chat", Scripted(steps, 200, NDJSON, framing="chunked"))


async def models(suite: Suite) -> dict[str, pb.Model]:
    return {model.id: model for model in (await suite.stub.ListModels(pb.ListModelsRequest())).models}


def chats(server: FakeModelServer) -> list[dict[str, object]]:
    return [seen.json() for seen in server.requests if seen.path == "/api/chat"]


@pytest.mark.parametrize("stream", [True, False])
async def test_what_runs_serves_in_the_context_it_runs_with(
    start: StartSuite, server: FakeModelServer, stream: bool
) -> None:
    ollama(server, "llama3:latest", "phi3:mini", running={"llama3:latest": 4096})
    on_chat(server, *lines(says("Hé"), says("llo"), ends()))
    suite = await start(ollama_url=server.url)
    answer = await suite.chat(action(stream=stream))
    assert (answer.text, answer.route.model) == ("Héllo", "llama3:latest")
    assert (answer.finish.reason, answer.finish.usage.input_tokens) == (pb.FINISH_REASON_STOP, 7)
    (asked,) = chats(server)
    assert (asked["truncate"], asked["shift"]) == (False, False)
    # Any other context would make Ollama load the model again.
    assert asked["options"]["num_ctx"] == 4096  # type: ignore[index]
    listed = await models(suite)
    assert listed["llama3:latest"].context_tokens == 4096
    assert listed["phi3:mini"].state == pb.LOAD_STATE_NOT_LOADED
    assert (await suite.chat(action(model="llama3"))).route.model == "llama3:latest"


async def test_with_nothing_running_it_needs_a_name_or_a_setting(
    start: StartSuite, server: FakeModelServer
) -> None:
    ollama(server, "a", "b")
    on_chat(server, *lines(says("Hi", "b"), ends("b")))
    suite = await start(ollama_url=server.url)
    with pytest.raises(FailedPreconditionError, match="ollama run"):
        await suite.chat()
    assert (await suite.chat(action(model="b"))).route.model == "b"


async def test_a_model_on_ollamas_own_servers_is_not_offered_as_local(
    start: StartSuite, server: FakeModelServer
) -> None:
    server.on("GET", "/api/version", as_json({"version": "0.12.0"}))
    tags = [
        {"name": "gpt-oss:120b-cloud", "digest": "1"},
        {"name": "mine", "digest": "2", "remote_host": "https://ollama.com:443", "remote_model": "gpt-oss"},
        {"name": "shown", "digest": "3"},
        {"name": "here", "digest": "4"},
    ]
    server.on("GET", "/api/tags", as_json({"models": tags}))
    server.on("GET", "/api/ps", as_json({"models": []}))
    server.on("POST", "/api/show", as_json({"capabilities": ["completion"]}))
    suite = await start(ollama_url=server.url)
    assert set(await models(suite)) == {"shown", "here"}
    server.on("GET", "/api/tags", as_json({"models": [{**tags[2], "digest": "5"}]}))
    server.on("POST", "/api/show", as_json({"remote_host": "https://ollama.com:443"}))
    await suite.registry.refresh()
    assert await models(suite) == {}
    with pytest.raises(NotFoundError):
        await suite.chat(action(model="mine"))
    assert chats(server) == []


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(as_json({"error": "busy"}, status=500), id="an error"),
        pytest.param(as_json({"error": "busy"}), id="an error as 200"),
        pytest.param(as_json([]), id="odd JSON"),
        pytest.param(Scripted([b"<html>"], 200, {"content-type": "text/html"}), id="no JSON"),
        pytest.param(Scripted([Cut()], 200), id="cut off"),
    ],
)
async def test_a_model_is_not_offered_before_it_is_known_to_be_here(
    start: StartSuite, server: FakeModelServer, answer: Scripted
) -> None:
    # Its place was taken to be here, and a cloud model under a name of one's own left this machine.
    ollama(server, "mine", running={"mine": 4096})
    server.on("POST", "/api/show", answer)
    suite = await start(ollama_url=server.url)
    assert await models(suite) == {}
    with pytest.raises((NotFoundError, UnavailableError)):
        await suite.chat(action(model="mine"))
    assert chats(server) == []
    server.on("POST", "/api/show", as_json({"capabilities": ["completion"]}))
    await suite.registry.refresh()
    assert set(await models(suite)) == {"mine"}


async def test_models_beyond_one_looks_number_follow_with_the_next_looks(
    start: StartSuite, server: FakeModelServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ollama_backend, "MAX_SHOWN", 2)
    ollama(server, "a", "b", "c")

    def show(seen: Seen) -> Scripted:
        is_broken = seen.json()["model"] != "c"
        return as_json({}, status=500) if is_broken else as_json({"capabilities": ["completion"]})

    server.on("POST", "/api/show", show)
    suite = await start(ollama_url=server.url)
    assert await models(suite) == {}
    # Those that cannot be learnt do not keep the others from being asked.
    await suite.registry.refresh()
    assert set(await models(suite)) == {"c"}


async def test_what_a_model_can_do_is_asked_once(start: StartSuite, server: FakeModelServer) -> None:
    ollama(server, "llava")
    shown = {"capabilities": ["completion", "vision"], "model_info": {"llama.context_length": 8192}}
    server.on("POST", "/api/show", as_json(shown))
    suite = await start(ollama_url=server.url)
    model = (await models(suite))["llava"]
    assert pb.CAPABILITY_VISION in model.capabilities
    assert pb.CAPABILITY_TOOLS not in model.capabilities
    assert model.max_context_tokens == 8192
    await suite.registry.refresh()
    assert len([seen for seen in server.requests if seen.path == "/api/show"]) == 1


async def test_a_model_that_is_gone_is_forgotten(start: StartSuite, server: FakeModelServer) -> None:
    ollama(server, "old", "llama3:latest")
    suite = await start(ollama_url=server.url)
    await suite.registry.refresh()
    ollama(server, "llama3:latest")
    await suite.registry.refresh()
    entry = suite.registry.get("ollama")
    assert entry is not None
    assert isinstance(entry.backend, OllamaBackend)
    assert list(entry.backend._shown) == [("llama3:latest", "llama3:latest")]


async def test_an_overflow_tells_the_context_and_the_cure(start: StartSuite, server: FakeModelServer) -> None:
    ollama(server, "m", running={"m": 4096})
    error = "the prompt is longer than the context length currently available to the model; shorten it"
    server.on("POST", "/api/chat", as_json({"error": error}, status=400))
    suite = await start(ollama_url=server.url)
    with pytest.raises(InvalidArgumentError, match="context of 4096 tokens; shorten") as caught:
        await suite.chat()
    assert caught.value.reason == "CONTEXT_LENGTH_EXCEEDED"


@pytest.mark.parametrize(
    ("steps", "problem"),
    [
        ([*lines(says("Hel", "m")), Cut()], "in the middle"),
        (lines(says("Hel", "m")), "in the middle"),
        ([*lines(says("Hel", "m")), b'{"error":"the runner has died"}\n'], "error inside its answer"),
        ([*lines(says("Hel", "m")), b"<html>"], "web page"),
    ],
    ids=["cut", "no end", "error line", "garbage"],
)
async def test_a_failure_in_the_middle_is_no_success(
    start: StartSuite, server: FakeModelServer, steps: list[Step], problem: str
) -> None:
    ollama(server, "m", running={"m": 4096})
    on_chat(server, *steps)
    suite = await start(ollama_url=server.url)
    with pytest.raises(UnavailableError, match=problem):
        await suite.chat(action(stream=True))


async def test_an_empty_200_is_no_success(start: StartSuite, server: FakeModelServer) -> None:
    ollama(server, "m", running={"m": 4096})
    on_chat(server)
    suite = await start(ollama_url=server.url)
    with pytest.raises(UnavailableError, match="empty stream"):
        await suite.chat()


async def test_an_answer_of_another_model_is_noticed(start: StartSuite, server: FakeModelServer) -> None:
    ollama(server, "m", running={"m": 4096})
    on_chat(server, *lines(says("Hi", "other"), ends("other")))
    suite = await start(ollama_url=server.url)
    with pytest.raises(UnavailableError, match="another model than m"):
        await suite.chat()


async def test_a_client_that_leaves_ends_the_generation(start: StartSuite, server: FakeModelServer) -> None:
    ollama(server, "m", running={"m": 4096})
    on_chat(server, *lines(says("Hel", "m")), Hang())
    suite = await start(ollama_url=server.url)
    call = suite.call(action(stream=True))
    assert (await anext(aiter(call))).delta.text == "Hel"
    call.cancel()
    await server.client_left.wait()


async def test_tools_are_called_by_their_answer(start: StartSuite, server: FakeModelServer) -> None:
    ollama(server, "m", running={"m": 4096})
    called = {"content": "", "tool_calls": [{"function": {"name": "look_up", "arguments": {"q": "x"}}}]}
    on_chat(server, *lines({"model": "m", "message": called, "done": False}, ends("m")))
    suite = await start(ollama_url=server.url)
    answer = await suite.chat(action(tools=[pb.ToolDefinition(name="look_up")]))
    (call,) = answer.deltas[0].tool_calls
    assert (call.name, json.loads(call.arguments)) == ("look_up", {"q": "x"})
    assert answer.finish.reason == pb.FINISH_REASON_TOOL_CALLS
