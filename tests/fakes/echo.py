"""A service with one RPC of each kind, whose handlers do what the words they receive ask for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Final

import grpc
from google.protobuf.wrappers_pb2 import StringValue

from kala.errors import KalaError
from services.common.channel import open_channel
from services.common.interceptors import CallPolicy
from services.common.server import ServerHandle, serving
from services.common.settings import GrpcServerSettings
from services.common.status import translated
from services.common.telemetry import RpcTelemetry

SERVICE: Final = "kala.test.v1.EchoService"
SAY: Final = f"/{SERVICE}/Say"
SPLIT: Final = f"/{SERVICE}/Split"
JOIN: Final = f"/{SERVICE}/Join"
TALK: Final = f"/{SERVICE}/Talk"
METHODS: Final = {"unary": SAY, "server-stream": SPLIT, "client-stream": JOIN, "bidi": TALK}

WAIT: Final = "wait"
"""The word at which a handler stops until `release` is set."""

CALLER: Final = "gateway"

Answer = Callable[[grpc.aio.ServicerContext[Any, Any]], str]


class EchoService:
    """Gives words back in capitals; `failures` says at which words to raise, `answers` which to compute."""

    def __init__(
        self, failures: Mapping[str, BaseException] | None = None, answers: Mapping[str, Answer] | None = None
    ) -> None:
        self.failures = dict(failures or {})
        self.answers = dict(answers or {})
        self.heard: list[str] = []
        self.waiting = asyncio.Event()
        self.release = asyncio.Event()
        self.unwound = asyncio.Event()

    async def _answer(self, word: str, context: grpc.aio.ServicerContext[Any, Any]) -> StringValue:
        self.heard.append(word)
        if word in self.failures:
            raise self.failures[word]
        if word in self.answers:
            return StringValue(value=self.answers[word](context))
        if word == WAIT:
            self.waiting.set()
            try:
                await self.release.wait()
            finally:
                self.unwound.set()
        return StringValue(value=word.upper())

    async def say(self, request: StringValue, context: grpc.aio.ServicerContext[Any, Any]) -> StringValue:
        return await self._answer(request.value, context)

    async def split(
        self, request: StringValue, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[StringValue]:
        for word in request.value.split():
            yield await self._answer(word, context)

    async def join(
        self, request: AsyncIterator[StringValue], context: grpc.aio.ServicerContext[Any, Any]
    ) -> StringValue:
        words = [(await self._answer(message.value, context)).value async for message in request]
        return StringValue(value=" ".join(words))

    async def talk(
        self, request: AsyncIterator[StringValue], context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[StringValue]:
        async for message in request:
            yield await self._answer(message.value, context)


def register(service: EchoService, server: grpc.aio.Server) -> None:
    """Add the service as generated code would."""
    codec: dict[str, Any] = {
        "request_deserializer": StringValue.FromString,
        "response_serializer": StringValue.SerializeToString,
    }
    handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
        "Say": grpc.unary_unary_rpc_method_handler(service.say, **codec),
        "Split": grpc.unary_stream_rpc_method_handler(service.split, **codec),
        "Join": grpc.stream_unary_rpc_method_handler(service.join, **codec),
        "Talk": grpc.stream_stream_rpc_method_handler(service.talk, **codec),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    server.add_registered_method_handlers(SERVICE, handlers)


class EchoClient:
    """Calls each kind; every call takes words and gives words."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._channel: Any = channel
        codec: dict[str, Any] = {
            "request_serializer": StringValue.SerializeToString,
            "response_deserializer": StringValue.FromString,
        }
        self.say_call: Any = channel.unary_unary(SAY, **codec)
        self.split_call: Any = channel.unary_stream(SPLIT, **codec)
        self.join_call: Any = channel.stream_unary(JOIN, **codec)
        self.talk_call: Any = channel.stream_stream(TALK, **codec)

    async def say(self, word: str, **options: Any) -> str:
        return (await self.say_call(StringValue(value=word), **options)).value

    async def send_garbage(self, kind: str) -> None:
        """Call one kind with bytes that are no message of any type."""
        garbage, method = b"\xff\xff\xff", METHODS[kind]
        match kind:
            case "unary":
                await self._channel.unary_unary(method)(garbage)
            case "server-stream":
                await anext(aiter(self._channel.unary_stream(method)(garbage)))
            case "client-stream":
                await self._channel.stream_unary(method)(iter([garbage]))
            case "bidi":
                await anext(aiter(self._channel.stream_stream(method)(iter([garbage]))))

    async def first_failure(self, **options: Any) -> KalaError:
        """Call until a call fails, as the first one that meets a drain does."""
        while True:
            try:
                with translated():
                    await self.say("new", **options)
            except KalaError as error:
                return error

    async def call(
        self, kind: str, words: str, received: list[str] | None = None, **options: Any
    ) -> list[str]:
        """Call one kind with space-separated words; `received` keeps what came before an error."""
        received = [] if received is None else received
        messages = [StringValue(value=word) for word in words.split()]
        match kind:
            case "unary":
                received.append((await self.say_call(messages[0], **options)).value)
            case "server-stream":
                async for item in self.split_call(StringValue(value=words), **options):
                    received.append(item.value)
            case "client-stream":
                received.extend((await self.join_call(iter(messages), **options)).value.split())
            case "bidi":
                async for item in self.talk_call(iter(messages), **options):
                    received.append(item.value)
        return received


@asynccontextmanager
async def served_echo(
    service: EchoService,
    *,
    policy: CallPolicy | None = None,
    telemetry: RpcTelemetry | None = None,
    **settings: Any,
) -> AsyncIterator[ServerHandle]:
    """Serve the echo on a free loopback port and say that it is ready."""
    settings = {"allowed_peers": (CALLER,), "drain_seconds": 0.2, "balancer_wait_seconds": 0} | settings
    async with serving(
        GrpcServerSettings(**settings), [partial(register, service)], policy=policy, telemetry=telemetry
    ) as server:
        await server.set_serving()
        yield server


@asynccontextmanager
async def echo_and_client(
    service: EchoService,
    *,
    policy: CallPolicy | None = None,
    telemetry: RpcTelemetry | None = None,
    **settings: Any,
) -> AsyncIterator[EchoClient]:
    """Serve the echo and open a client that calls it as the gateway."""
    async with (
        served_echo(service, policy=policy, telemetry=telemetry, **settings) as server,
        open_channel(server.address, peer_name=CALLER) as channel,
    ):
        yield EchoClient(channel)
