"""Everything that a model server can do wrong, byte by byte, and what the caller learns of it."""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import Callable

import grpc
import pytest

from kala.errors import DeadlineExceededError, InvalidArgumentError, KalaError, UnavailableError
from kala.inference.v1 import inference_pb2 as pb
from services.common.status import from_error, translated
from services.inference.backend import State
from services.inference.backends import http
from services.inference.backends.model_server import ModelServerBackend
from services.inference.servicer import ATTEMPTS_METADATA_KEY
from tests.fakes.model_server import (
    DONE,
    Cut,
    Drip,
    FakeModelServer,
    Gate,
    Hang,
    Scripted,
    Step,
    as_json,
    as_stream,
    chunk,
    completion,
    llama_models,
)
from tests.fakes.recordings import recording
from tests.service.inference.conftest import StartSuite, Suite, action

STREAM = {"content-type": "text/event-stream"}


async def failed(
    suite: Suite, wanted: pb.ChatAction, *, on_text: Callable[[], None] = lambda: None
) -> tuple[KalaError, str, list[pb.Attempt]]:
    """Run a chat that fails: the error, the text released before it, and the attempts in its trailers."""
    text, call = "", suite.call(wanted)
    try:
        async for response in call:
            text += response.delta.text
            if text:
                on_text()
    except grpc.aio.AioRpcError as error:
        trailers = dict(await call.trailing_metadata() or ())
        attempts = pb.ChatFinish.FromString(trailers.get(ATTEMPTS_METADATA_KEY, b"")).attempts
        return from_error(error), text, list(attempts)
    raise AssertionError("the chat did not fail")


def streamed(*steps: Step, headers: dict[str, str] | None = None, framing: str = "chunked") -> Scripted:
    return Scripted(steps, 200, headers or STREAM, framing=framing)


BEFORE_THE_FIRST_TOKEN = [
    pytest.param(
        Scripted([b"<html>oops</html>"], 500, {"content-type": "text/html"}), "NOT_AN_API", id="500 with HTML"
    ),
    pytest.param(Scripted([b"<html>"], 200, {"content-type": "text/html"}), "NOT_AN_API", id="200 with HTML"),
    pytest.param(as_json({"error": {"message": "oops"}}), "BACKEND_ERROR", id="200 with an error body"),
    pytest.param(
        as_json({"error": "Unexpected endpoint"}), "BACKEND_ERROR", id="LM Studio's 200 for a strange path"
    ),
    pytest.param(Scripted([], 200, STREAM), "EMPTY_ANSWER", id="200 with an empty body"),
    pytest.param(
        recording("llama-cpp-python-0.3.36", "overflow_stream").scripted(),
        "EMPTY_ANSWER",
        id="empty, recorded",
    ),
    pytest.param(streamed(b": keepalive\n\n", Cut()), "STREAM_CUT", id="cut after a comment"),
    pytest.param(streamed(b'data: {"choi', Cut()), "STREAM_CUT", id="cut in an event"),
    pytest.param(
        streamed(b'data: {"error":{"message":"x"}}\n\n'), "BACKEND_ERROR", id="error first in the stream"
    ),
    pytest.param(streamed(b"data: {oops}\n\n"), "MALFORMED_ANSWER", id="broken chunk"),
    pytest.param(streamed(b"hello, I am a teapot"), "EMPTY_ANSWER", id="no events at all"),
    pytest.param(Scripted([Cut()], 200, STREAM), "", id="cut after the head"),
    pytest.param(as_json({"error": "x"}, status=503), "BACKEND_LOADING", id="503"),
    pytest.param(as_json({"error": "x"}, status=429), "BACKEND_BUSY", id="429"),
    pytest.param(as_json({"detail": "Invalid API key"}, status=401), "AUTHENTICATION_FAILED", id="401"),
    pytest.param(Scripted([], 302, {"location": "http://169.254.169.254/"}), "HTTP_302", id="redirect"),
    pytest.param(
        streamed(chunk("Hi", model="other"), chunk(finish="stop"), DONE), "WRONG_MODEL", id="another model"
    ),
    pytest.param(as_json(completion(model="other")), "WRONG_MODEL", id="another model, not streaming"),
]


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
@pytest.mark.parametrize(("script", "reason"), BEFORE_THE_FIRST_TOKEN)
async def test_a_failure_before_the_first_token_goes_to_the_next_backend(
    start: StartSuite, llama: FakeModelServer, script: Scripted, reason: str, stream: bool
) -> None:
    async with FakeModelServer() as studio:
        studio.on("GET", "/api/v0/models", as_json({"data": [{"id": "s", "type": "llm", "state": "loaded"}]}))
        good = as_stream(chunk("fine", model="s"), chunk(finish="stop", model="s"), DONE)
        studio.on_chat(good if stream else as_json(completion("fine", model="s")))
        suite = await start(llamacpp_url=llama.url, lmstudio_url=studio.url)
        llama.on_chat(script)
        answer = await suite.chat(action(stream=stream))
    assert (answer.text, answer.route.backend) == ("fine", "backends/lmstudio")
    first, second = answer.finish.attempts
    assert (first.backend, second.backend, second.reason) == ("backends/llamacpp", "backends/lmstudio", "")
    assert first.reason
    if stream and reason:
        assert first.reason == reason
    assert answer.route.attempts[0] == first


async def test_a_lone_backends_failure_is_unavailable_with_its_reason(
    start: StartSuite, llama: FakeModelServer
) -> None:
    suite = await start(llamacpp_url=llama.url)
    llama.on_chat(Scripted([b"<html>"], 502, {"content-type": "text/html"}))
    error, text, attempts = await failed(suite, action())
    assert isinstance(error, UnavailableError)
    assert "llamacpp answered 502 with a web page" in error.message
    assert text == ""
    assert [(attempt.backend, attempt.reason) for attempt in attempts] == [
        ("backends/llamacpp", "NOT_AN_API")
    ]


async def test_when_all_fail_each_has_its_reason(start: StartSuite, llama: FakeModelServer) -> None:
    async with FakeModelServer() as studio:
        studio.on("GET", "/api/v0/models", as_json({"data": [{"id": "s", "type": "llm", "state": "loaded"}]}))
        studio.on_chat(as_json({"error": "oops"}, status=500))
        suite = await start(llamacpp_url=llama.url, lmstudio_url=studio.url)
        await suite.registry.ready()
        await llama.stop()
        error, _, attempts = await failed(suite, action())
    assert error.reason == "ALL_BACKENDS_FAILED"
    assert "llamacpp nothing listens" in error.message
    assert "lmstudio answered 500" in error.message
    assert [attempt.reason for attempt in attempts] == ["CONNECTION_REFUSED", "HTTP_500"]


AFTER_THE_FIRST_TOKEN = [
    pytest.param([Cut()], "closed the connection", id="cut"),
    pytest.param(["é".encode()[:1], Cut()], "closed the connection", id="cut inside a character"),
    pytest.param([b'data: {"error":"oops"}\n\n'], "reported an error", id="error in the stream"),
    pytest.param([b"data: {oops}\n\n"], "not JSON", id="broken chunk"),
    pytest.param([chunk(finish="stop")], r"without \[DONE\]", id="no [DONE]"),
    pytest.param([DONE], "in the middle", id="[DONE] without a finish reason"),
    pytest.param([], "in the middle", id="simply ended"),
]


@pytest.mark.parametrize(("steps", "problem"), AFTER_THE_FIRST_TOKEN)
async def test_a_failure_after_the_first_token_ends_the_stream_and_is_not_retried(
    start: StartSuite, llama: FakeModelServer, steps: list[Step], problem: str
) -> None:
    released = asyncio.Event()
    llama.on_chat(streamed(chunk("Hel"), Gate(released), *steps))
    async with FakeModelServer() as studio:
        studio.on("GET", "/api/v0/models", as_json({"data": [{"id": "s", "type": "llm", "state": "loaded"}]}))
        suite = await start(llamacpp_url=llama.url, lmstudio_url=studio.url)
        error, text, _ = await failed(suite, action(stream=True), on_text=released.set)
        assert re.search(problem, error.message)
        assert studio.chats == []
    assert (text, error.reason) == ("Hel", "BACKEND_FAILED_MID_STREAM")


async def test_keep_alive_comments_and_a_duplicate_done_are_tolerated(
    start: StartSuite, llama: FakeModelServer
) -> None:
    llama.on_chat(
        streamed(
            b": keepalive 1/9\n\n", b": keepalive 9/9\n\n", chunk("Hi"), chunk(finish="stop"), DONE, DONE
        )
    )
    suite = await start(llamacpp_url=llama.url)
    assert (await suite.chat(action(stream=True))).text == "Hi"


async def test_a_character_cut_between_two_reads_arrives_whole(
    start: StartSuite, llama: FakeModelServer
) -> None:
    event = 'data: {"model":"tiny","choices":[{"delta":{"content":"漢字"}}]}\n\n'.encode()
    place = event.index("漢".encode()) + 1
    llama.on_chat(streamed(event[:place], event[place:], chunk(finish="stop"), DONE))
    suite = await start(llamacpp_url=llama.url)
    assert (await suite.chat(action(stream=True))).text == "漢字"


async def test_an_endless_line_is_given_up(start: StartSuite, llama: FakeModelServer) -> None:
    llama.on_chat(streamed(b"data: ", *[b"x" * 1_000_000] * 100))
    suite = await start(llamacpp_url=llama.url)
    error, _, attempts = await failed(suite, action(stream=True))
    assert isinstance(error, UnavailableError)
    assert attempts[0].reason == "MALFORMED_ANSWER"


async def test_an_endless_body_is_given_up(start: StartSuite, llama: FakeModelServer) -> None:
    llama.on_chat(
        Scripted([b" " * 1_000_000] * 100, 200, {"content-type": "application/json"}, framing="chunked")
    )
    suite = await start(llamacpp_url=llama.url)
    _, _, attempts = await failed(suite, action())
    assert attempts[0].reason == "ANSWER_TOO_LONG"


async def test_a_stream_of_more_than_any_answer_is_given_up(
    start: StartSuite, llama: FakeModelServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Every event is short and comes in time: only a limit for all of them ends this before the act's end.
    monkeypatch.setattr(http, "MAX_STREAM_BYTES", 1_000_000)
    llama.on_chat(streamed(*[chunk("l" * 10_000)] * 200))
    suite = await start(llamacpp_url=llama.url)
    error, _, attempts = await failed(suite, action(stream=True))
    assert (error.reason, attempts[0].reason) == ("BACKEND_FAILED_MID_STREAM", "ANSWER_TOO_LONG")


async def test_a_list_of_models_without_an_end_is_given_up(start: StartSuite, llama: FakeModelServer) -> None:
    llama.on("GET", "/v1/models", Scripted([b" " * 1_000_000] * 10, 200, {"server": "llama.cpp"}, "chunked"))
    suite = await start(llamacpp_url=llama.url)
    await suite.registry.refresh()
    entry = suite.registry.get("llamacpp")
    assert entry is not None
    assert (entry.status.state, entry.status.reason) == (State.ERROR, "ANSWER_TOO_LONG")


@pytest.mark.parametrize("name", ["x" * 257, "tiny\r\nx-kala-model: other", "\x1b[2J"])
async def test_a_model_whose_name_would_break_what_shows_it_is_left_out(
    start: StartSuite, llama: FakeModelServer, name: str
) -> None:
    llama.on("GET", "/v1/models", as_json(llama_models(name, "tiny"), headers={"server": "llama.cpp"}))
    suite = await start(llamacpp_url=llama.url)
    await suite.registry.refresh()
    assert [model.id for model in suite.registry.views()[0].status.models] == ["tiny"]
    assert (await suite.chat()).route.model == "tiny"


async def test_a_server_that_tells_its_state_for_ever_holds_up_no_other(
    start: StartSuite, llama: FakeModelServer
) -> None:
    llama.on("GET", "/lora-adapters", streamed(Hang()))
    suite = await start(llamacpp_url=llama.url)
    entry = suite.registry.get("llamacpp")
    assert entry is not None
    assert isinstance(entry.backend, ModelServerBackend)
    entry.backend.state_seconds = 0.1
    await suite.registry.look(entry)
    assert (entry.status.state, entry.status.reason) == (State.ERROR, "STATE_TIMED_OUT")


async def test_a_test_of_a_server_that_answers_for_ever_ends_with_the_act(
    start: StartSuite, llama: FakeModelServer
) -> None:
    llama.on_chat(
        Scripted([b'{"choices":', Drip(b" ")], 200, {"content-type": "application/json"}, "chunked")
    )
    suite = await start(llamacpp_url=llama.url, max_act_seconds=0.3)
    with pytest.raises(DeadlineExceededError), translated():
        await suite.stub.CheckBackend(pb.CheckBackendRequest(name="backends/llamacpp"))


async def test_a_silent_server_is_given_up_after_the_first_byte_limit(
    start: StartSuite, llama: FakeModelServer
) -> None:
    llama.on_chat(streamed(Hang()))
    suite = await start(llamacpp_url=llama.url, first_byte_seconds=0.2, idle_seconds=30)
    _, _, attempts = await failed(suite, action(stream=True))
    assert attempts[0].reason == "FIRST_BYTE_TIMED_OUT"


async def test_a_server_without_a_head_is_given_up_too(start: StartSuite, llama: FakeModelServer) -> None:
    llama.on_chat(Scripted([], head_after=asyncio.Event()))
    suite = await start(llamacpp_url=llama.url, first_byte_seconds=0.2, idle_seconds=30)
    _, _, attempts = await failed(suite, action(stream=True))
    assert attempts[0].reason == "FIRST_BYTE_TIMED_OUT"


async def test_a_stalled_stream_is_given_up_after_the_idle_limit(
    start: StartSuite, llama: FakeModelServer
) -> None:
    llama.on_chat(streamed(chunk("Hel"), Hang()))
    suite = await start(llamacpp_url=llama.url, first_byte_seconds=30, idle_seconds=0.2)
    error, text, attempts = await failed(suite, action(stream=True))
    assert (text, error.reason) == ("Hel", "BACKEND_FAILED_MID_STREAM")
    assert attempts[0].reason == "STREAM_STALLED"


async def test_an_act_ends_after_its_total_time(start: StartSuite, llama: FakeModelServer) -> None:
    llama.on_chat(streamed(chunk("Hel"), Hang()))
    suite = await start(llamacpp_url=llama.url, max_act_seconds=0.3)
    error, text, _ = await failed(suite, action(stream=True))
    assert isinstance(error, DeadlineExceededError)
    assert (text, error.reason) == ("Hel", "MAX_ACT_SECONDS")
    await asyncio.wait_for(llama.client_left.wait(), 1)


@pytest.mark.parametrize(
    ("script", "message"),
    [
        pytest.param(
            recording("llama-server-tiny-neox", "overflow_stream").scripted(),
            r"has 408 tokens.*context of 256 tokens.*shorten the conversation or load",
            id="overflow, recorded",
        ),
        pytest.param(
            recording("llama-server-tiny-neox", "err_nomessages").scripted(),
            "'messages' is required",
            id="400",
        ),
        pytest.param(
            recording("llama-server-tiny-neox", "image_unsupported").scripted(),
            "image input is not supported",
            id="500",
        ),
    ],
)
async def test_a_mistake_of_the_caller_is_told_and_tried_nowhere_else(
    start: StartSuite, llama: FakeModelServer, script: Scripted, message: str
) -> None:
    llama.on_chat(script)
    async with FakeModelServer() as studio:
        studio.on("GET", "/api/v0/models", as_json({"data": [{"id": "s", "type": "llm", "state": "loaded"}]}))
        suite = await start(llamacpp_url=llama.url, lmstudio_url=studio.url)
        with pytest.raises(InvalidArgumentError, match=message):
            await suite.chat(action(stream=True))
        assert studio.chats == []


async def test_a_name_that_does_not_resolve_is_said(start: StartSuite) -> None:
    suite = await start(llamacpp_url="http://no-such-host.invalid:8080")
    with pytest.raises(UnavailableError, match="cannot be resolved"):
        await suite.chat()


async def test_a_name_that_resolves_to_a_metadata_address_is_refused(
    start: StartSuite, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def resolve(*_args: object, **_options: object) -> list[tuple[object, ...]]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("169.254.169.254", 80))]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", resolve)
    suite = await start(llamacpp_url="http://innocent.example")
    with pytest.raises(UnavailableError, match="link-local or metadata"):
        await suite.chat()


@pytest.mark.parametrize(("scheme", "problem"), [("http", "not HTTP"), ("https", "TLS")])
async def test_a_server_that_speaks_something_else_is_said(
    start: StartSuite, scheme: str, problem: str
) -> None:
    async def babble(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"SSH-2.0-OpenSSH_9.2\r\n\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(babble, "127.0.0.1", 0)
    async with server:
        suite = await start(llamacpp_url=f"{scheme}://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        with pytest.raises(UnavailableError, match=problem):
            await suite.chat()


async def test_a_pooled_connection_that_was_closed_meanwhile_is_replaced(
    start: StartSuite, llama: FakeModelServer
) -> None:
    suite = await start(llamacpp_url=llama.url)
    await suite.chat()
    await llama.stop()
    await llama.start()
    answer = await suite.chat()
    assert [attempt.reason for attempt in answer.finish.attempts] == [""]


async def test_a_refused_connection_costs_little_and_takes_the_host_out(
    start: StartSuite, llama: FakeModelServer
) -> None:
    async with FakeModelServer() as studio:
        studio.on("GET", "/api/v0/models", as_json({"data": [{"id": "s", "type": "llm", "state": "loaded"}]}))
        studio.on_chat(as_json(completion("fine", model="s")))
        suite = await start(llamacpp_url=llama.url, lmstudio_url=studio.url)
        await suite.chat()
        await llama.stop()
        first = await suite.chat()
        refused = first.finish.attempts[0]
        assert refused.reason == "CONNECTION_REFUSED"
        assert refused.elapsed.ToMilliseconds() <= 50
        # From now on it gets no traffic until a look finds it again.
        second = await suite.chat()
        assert [attempt.backend for attempt in second.finish.attempts] == ["backends/lmstudio"]


async def test_a_server_that_came_back_is_used_again(start: StartSuite, llama: FakeModelServer) -> None:
    suite = await start(llamacpp_url=llama.url)
    await llama.stop()
    with pytest.raises(UnavailableError):
        await suite.chat()
    await llama.start()
    await asyncio.sleep(0.6)  # a fruitless request looks again at most twice a second
    assert (await suite.chat()).text == "Hello"
