"""Every kind of call through a real server: answers, errors, bugs and callers that go away."""

from __future__ import annotations

import asyncio
from pathlib import Path

import grpc
import pytest
from google.protobuf.wrappers_pb2 import StringValue

from kala import errors
from services.common.channel import open_channel
from services.common.status import from_error, translated
from tests.fakes.echo import CALLER, METHODS, SERVICE, WAIT, EchoService, echo_and_client, served_echo

KINDS = pytest.mark.parametrize("kind", list(METHODS))


@KINDS
async def test_each_kind_of_call_is_answered(kind: str) -> None:
    async with echo_and_client(EchoService()) as client:
        assert await client.call(kind, "yes") == ["YES"]


@KINDS
async def test_each_kind_of_call_is_answered_over_a_unix_socket(kind: str, private: Path) -> None:
    async with echo_and_client(EchoService(), address=f"unix:{private}/echo.sock") as client:
        assert await client.call(kind, "yes") == ["YES"]


@KINDS
async def test_an_error_arrives_as_the_class_that_was_raised(kind: str) -> None:
    service = EchoService({"bad": errors.InvalidArgumentError("messages[3].content", "must not be empty")})
    async with echo_and_client(service) as client:
        with pytest.raises(errors.InvalidArgumentError, match="must not be empty") as caught, translated():
            await client.call(kind, "bad")
        assert caught.value.field == "messages[3].content"


@pytest.mark.parametrize("kind", ["server-stream", "bidi"])
async def test_an_error_in_a_stream_arrives_after_the_items_before_it(kind: str) -> None:
    received: list[str] = []
    async with echo_and_client(EchoService({"bad": errors.NotFoundError("no such word")})) as client:
        with pytest.raises(errors.NotFoundError, match="no such word"), translated():
            await client.call(kind, "one two bad three", received)
    assert received == ["ONE", "TWO"]


@KINDS
async def test_a_bug_tells_the_caller_nothing(kind: str) -> None:
    async with echo_and_client(EchoService({"bug": KeyError("password=hunter2")})) as client:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await client.call(kind, "bug")
    assert caught.value.code() is grpc.StatusCode.INTERNAL
    assert caught.value.details() == "internal error"
    assert "hunter2" not in str(caught.value.trailing_metadata())


@KINDS
async def test_a_stray_cancellation_in_a_handler_is_a_bug_and_not_a_cancelled_call(kind: str) -> None:
    async with echo_and_client(EchoService({"stray": asyncio.CancelledError()})) as client:
        with pytest.raises(errors.InternalError), translated():
            await client.call(kind, "stray")


@KINDS
async def test_a_caller_that_goes_away_unwinds_the_handler(kind: str) -> None:
    service = EchoService()
    async with echo_and_client(service) as client:
        call = asyncio.create_task(client.call(kind, WAIT))
        await asyncio.wait_for(service.waiting.wait(), 5)
        call.cancel()
        await asyncio.wait_for(service.unwound.wait(), 1)
        with pytest.raises(asyncio.CancelledError):
            await call


@KINDS
async def test_a_deadline_ends_the_call_on_both_sides(kind: str) -> None:
    service = EchoService()
    async with echo_and_client(service) as client:
        with pytest.raises(errors.DeadlineExceededError), translated():
            # Long enough for the handler to start on a busy machine; the deadline ends it while it waits.
            await client.call(kind, WAIT, timeout=1)
        await asyncio.wait_for(service.unwound.wait(), 5)


async def test_a_handlers_own_abort_keeps_its_status() -> None:
    class Aborting(EchoService):
        async def say(self, request: StringValue, context: grpc.aio.ServicerContext) -> StringValue:
            await context.abort(grpc.StatusCode.OUT_OF_RANGE, "past the end")
            raise AssertionError

    async with echo_and_client(Aborting()) as client:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await client.say("x")
    assert caught.value.code() is grpc.StatusCode.OUT_OF_RANGE
    assert isinstance(from_error(caught.value), errors.InvalidArgumentError)


async def test_an_unknown_method_is_unimplemented() -> None:
    async with (
        served_echo(EchoService()) as server,
        open_channel(server.address, peer_name=CALLER) as channel,
    ):
        with pytest.raises(errors.UnimplementedError), translated():
            await channel.unary_unary(f"/{SERVICE}/Shout")(b"")


async def test_a_message_of_32_mib_passes_and_one_over_the_limit_is_refused() -> None:
    async with echo_and_client(EchoService()) as client:
        assert len(await client.say("x" * 32 * 1024 * 1024)) == 32 * 1024 * 1024
        with pytest.raises(errors.ResourceExhaustedError), translated():
            await client.say("x" * 37 * 1024 * 1024)


async def test_a_long_message_in_another_alphabet_still_fits_the_trailers() -> None:
    async with echo_and_client(
        EchoService({"bad": errors.InvalidArgumentError("поле", "я" * 5000)})
    ) as client:
        with pytest.raises(errors.InvalidArgumentError, match="яяя…") as caught, translated():
            await client.say("bad")
    assert caught.value.field == "поле"
