"""Servers that are slow in every part of an answer, name another type, or change their model."""

from __future__ import annotations

import asyncio

import pytest

from kala.errors import DeadlineExceededError
from tests.fakes.model_server import (
    DONE,
    Drip,
    FakeModelServer,
    Gate,
    Scripted,
    Step,
    as_json,
    as_stream,
    chunk,
    completion,
    llama_models,
)
from tests.service.inference.conftest import StartSuite, action
from tests.service.inference.test_faults import failed

HEAD = b"HTTP/1.1 200 OK\r\nx-slow: "


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
async def test_a_head_that_never_ends_is_given_up(
    start: StartSuite, llama: FakeModelServer, stream: bool
) -> None:
    # Every byte comes quickly: only a limit for the whole head ends this.
    llama.on_chat(Scripted([HEAD, Drip(b"a")], framing="raw"))
    suite = await start(llamacpp_url=llama.url, first_byte_seconds=0.3, max_act_seconds=0.8)
    error, _, attempts = await failed(suite, action(stream=stream))
    if stream:
        assert [attempt.reason for attempt in attempts] == ["FIRST_BYTE_TIMED_OUT"]
    else:
        # A server that does not stream has all the time of the act for its head.
        assert isinstance(error, DeadlineExceededError) or attempts[0].reason == "FIRST_BYTE_TIMED_OUT"
    await asyncio.wait_for(llama.client_left.wait(), 1)


@pytest.mark.parametrize(
    ("stream", "steps"),
    [
        pytest.param(True, [chunk("Hel"), Drip(b": keepalive\n\n")], id="a stream of comments"),
        pytest.param(True, [chunk("Hel"), Drip(chunk("l"))], id="a stream without an end"),
        pytest.param(False, [b'{"choices":', Drip(b" ")], id="a body without an end"),
    ],
)
async def test_a_body_that_never_ends_is_given_up_with_the_act(
    start: StartSuite, llama: FakeModelServer, stream: bool, steps: list[Step]
) -> None:
    kind = "text/event-stream" if stream else "application/json"
    llama.on_chat(Scripted(steps, 200, {"content-type": kind}, "chunked"))
    suite = await start(llamacpp_url=llama.url, idle_seconds=30, max_act_seconds=0.5)
    error, _, _ = await failed(suite, action(stream=stream))
    assert isinstance(error, DeadlineExceededError)
    await asyncio.wait_for(llama.client_left.wait(), 1)


@pytest.mark.parametrize("kind", ["text/plain", "application/octet-stream", "image/png", ""])
async def test_a_stream_under_another_type_is_read_as_what_it_is(
    start: StartSuite, llama: FakeModelServer, kind: str
) -> None:
    steps = [chunk("Hi"), chunk(finish="stop"), DONE]
    llama.on_chat(Scripted(steps, 200, {"content-type": kind} if kind else {}, "chunked"))
    suite = await start(llamacpp_url=llama.url)
    assert (await suite.chat(action(stream=True))).text == "Hi"


@pytest.mark.parametrize(
    ("kind", "body", "reason"),
    [
        ("image/png", b"\x89PNG\r\n\x1a\n\x00\x00", "EMPTY_ANSWER"),
        ("text/plain", b"Hello, I am a proxy.", "EMPTY_ANSWER"),
        ("application/json", b"Hello, I am a proxy.", "MALFORMED_ANSWER"),
        ("text/html; charset=utf-8", b"<!doctype html><p>Sign in", "NOT_AN_API"),
    ],
)
async def test_a_stream_that_is_something_else_goes_to_the_next_backend(
    start: StartSuite, llama: FakeModelServer, kind: str, body: bytes, reason: str
) -> None:
    llama.on_chat(Scripted([body], 200, {"content-type": kind}))
    async with FakeModelServer() as second:
        second.on_chat(as_stream(chunk("fine"), chunk(finish="stop"), DONE))
        suite = await start(llamacpp_url=llama.url, llamacpp_urls=(second.url,))
        answer = await suite.chat(action(stream=True))
    assert answer.text == "fine"
    assert answer.finish.attempts[0].reason == reason


async def test_a_model_that_changes_in_the_middle_ends_the_stream(
    start: StartSuite, llama: FakeModelServer
) -> None:
    released = asyncio.Event()
    llama.on_chat(as_stream(chunk("Hel"), Gate(released), chunk("lo", model="other"), DONE))
    suite = await start(llamacpp_url=llama.url)
    error, text, attempts = await failed(suite, action(stream=True), on_text=released.set)
    assert (text, error.reason) == ("Hel", "BACKEND_FAILED_MID_STREAM")
    assert attempts[0].reason == "WRONG_MODEL"


async def test_a_model_that_is_named_late_is_still_looked_at(
    start: StartSuite, llama: FakeModelServer
) -> None:
    llama.on_chat(as_stream(chunk(model=""), chunk("Hel", model="other"), chunk(finish="stop"), DONE))
    suite = await start(llamacpp_url=llama.url)
    _, text, attempts = await failed(suite, action(stream=True))
    assert (text, attempts[0].reason) == ("", "WRONG_MODEL")


async def test_a_model_that_was_swapped_since_the_last_look_is_not_taken_for_the_old_one(
    start: StartSuite, llama: FakeModelServer
) -> None:
    suite = await start(llamacpp_url=llama.url)
    await suite.chat(action(model="tiny"))
    llama.on("GET", "/v1/models", as_json(llama_models("other"), headers={"server": "llama.cpp"}))
    llama.on_chat(as_json(completion("I am another.", model="other")))
    error, text, attempts = await failed(suite, action(model="tiny"))
    assert text == ""
    assert attempts[0].reason == "WRONG_MODEL"
    assert "answered as another model than tiny" in error.message
