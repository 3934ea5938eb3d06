"""One HTTP exchange in plain ASGI, without a server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import pytest

from gateway.acts import Served
from gateway.background import Background
from gateway.edge import Endpoint, Exchange, Handler, until_disconnect
from gateway.errors import openai_body
from gateway.gate import BodyRoom
from kala.errors import InternalError, UnavailableError
from kala.inference.v1 import inference_pb2
from services.common.telemetry import RpcTelemetry

Message = MutableMapping[str, Any]


class Client:
    """Sends scripted messages, then waits; remembers what it gets."""

    def __init__(
        self, *messages: Message, method: str = "POST", headers: dict[str, str] | None = None
    ) -> None:
        self.scope = {
            "type": "http", "method": method, "path": "/x", "query_string": b"",
            "headers": [(k.encode(), v.encode()) for k, v in (headers or {}).items()],
        }  # fmt: skip
        self._messages = list(messages)
        self.got: list[Message] = []
        self.left = asyncio.Event()

    async def receive(self) -> Message:
        if self._messages:
            return self._messages.pop(0)
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        self.got.append(message)

    @property
    def status(self) -> int:
        return int(self.got[0]["status"])

    @property
    def headers(self) -> dict[str, str]:
        return {name.decode(): value.decode() for name, value in self.got[0]["headers"]}

    @property
    def body(self) -> Any:
        return json.loads(b"".join(message.get("body", b"") for message in self.got[1:]))


async def serve(handler: Handler, client: Client) -> None:
    telemetry = RpcTelemetry().of_method("HTTP POST /x")
    endpoint = Endpoint(handler, methods=["POST"], error_body=openai_body, telemetry=telemetry)
    await endpoint(client.scope, client.receive, client.send)


def part(body: bytes, *, more: bool = False) -> Message:
    return {"type": "http.request", "body": body, "more_body": more}


async def read(exchange: Exchange) -> None:
    body = await exchange.read_body(max_bytes=10, timeout_seconds=0.05)
    await exchange.send_json(200, {"body": body.decode()})


async def test_a_body_comes_in_parts() -> None:
    client = Client(part(b"ab", more=True), part(b"cd", more=True), part(b"ef"))
    await serve(read, client)
    assert client.body == {"body": "abcdef"}


@pytest.mark.parametrize(
    ("client", "status", "code"),
    [
        (Client(part(b"x" * 6, more=True), part(b"x" * 6)), 413, "request_too_large"),
        (Client(headers={"content-length": "11"}), 413, "request_too_large"),
        (Client(part(b"x", more=True)), 504, "body_timeout"),
        (Client(method="PUT"), 405, "method_not_allowed"),
    ],
    ids=["too large", "declared too large", "too slow", "wrong method"],
)
async def test_a_body_that_cannot_be_read_is_explained(client: Client, status: int, code: str) -> None:
    await serve(read, client)
    assert (client.status, client.body["error"]["code"]) == (status, code)


async def test_a_client_that_leaves_within_its_body_is_not_answered() -> None:
    client = Client(part(b"x", more=True), {"type": "http.disconnect"})
    await serve(read, client)
    assert client.got == []


async def test_a_bug_is_500_without_its_words() -> None:
    async def broken(_exchange: Exchange) -> None:
        raise RuntimeError("secret detail")

    client = Client()
    await serve(broken, client)
    assert client.status == 500
    assert "secret" not in str(client.got)


async def test_an_error_after_the_headers_ends_the_stream() -> None:
    async def late(exchange: Exchange) -> None:
        await exchange.begin_stream("text/plain")
        await exchange.send_part(b"a")
        raise InternalError("too late")

    client = Client()
    await serve(late, client)
    assert [message.get("body") for message in client.got] == [None, b"a", b""]


async def test_a_header_cannot_be_ended_by_its_value() -> None:
    async def answer(exchange: Exchange) -> None:
        exchange.is_audited = True
        attempt = inference_pb2.Attempt(backend="backends/a\r\nset-cookie: x=ü")
        exchange.served = Served(attempts=[attempt])
        await exchange.send_json(200, {})

    client = Client()
    await serve(answer, client)
    assert client.headers["x-kala-attempts"] == "a??set-cookie: x=?=ok"


async def test_work_is_cancelled_when_its_client_leaves_and_nobody_hears_of_it() -> None:
    began = asyncio.Event()
    ended: list[str] = []

    async def work() -> None:
        began.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            ended.append("cancelled")
            raise

    async def handler(exchange: Exchange) -> None:
        await until_disconnect(exchange, work())

    client = Client()
    serving = asyncio.create_task(serve(handler, client))
    await began.wait()
    client.left.set()
    await serving
    assert ended == ["cancelled"]
    assert client.got == []


async def test_a_stop_of_the_server_is_not_taken_for_a_client_that_left() -> None:
    began = asyncio.Event()

    async def work() -> None:
        began.set()
        await asyncio.Event().wait()

    async def handler(exchange: Exchange) -> None:
        await until_disconnect(exchange, work())

    serving = asyncio.create_task(serve(handler, Client()))
    await began.wait()
    serving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await serving


def _failing() -> Callable[[], Awaitable[None]]:
    async def fail() -> None:
        raise UnavailableError("the log is away")

    return fail


async def test_background_work_is_waited_for_and_its_failure_is_nobodys(
    capsys: pytest.CaptureFixture[str],
) -> None:
    background, done = Background(), []

    async def work() -> None:
        await asyncio.sleep(0)
        done.append(1)

    background.spawn(work())
    background.spawn(_failing()())  # type: ignore[arg-type]
    await background.drain()
    await background.drain()
    assert done == [1]
    assert "background work failed" in capsys.readouterr().out


async def test_bodies_share_room_until_their_answers_end() -> None:
    # Room for acts begins behind the body: a single key could bring 32 MiB on each of 4,096 connections before.
    room, answered = BodyRoom(10), asyncio.Event()

    async def answer(exchange: Exchange) -> None:
        exchange.body_room = room
        await exchange.read_body(max_bytes=10, timeout_seconds=1)
        await answered.wait()
        await exchange.send_json(200, {})

    first = asyncio.ensure_future(serve(answer, Client(part(b"x" * 6))))
    await asyncio.sleep(0)
    full = Client(part(b"x" * 3, more=True), part(b"x" * 2))
    await serve(answer, full)
    assert full.status == 429
    assert full.headers["retry-after"] == "1"
    answered.set()
    await first
    whole = Client(part(b"x" * 10))
    await serve(answer, whole)
    assert whole.status == 200
