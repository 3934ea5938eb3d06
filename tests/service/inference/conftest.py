"""A real inference server in this process, in front of scripted model servers."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import grpc
import pytest

from kala.inference.v1 import inference_pb2 as pb
from kala.inference.v1 import inference_pb2_grpc
from services.common.channel import open_channel
from services.common.clearance import ClearanceVerifier
from services.common.server import serving
from services.common.service_records import Writer
from services.common.status import translated
from services.inference.__main__ import adapter_desk, call_policy, make_prober, make_registry
from services.inference.backends.make import pythia_backends
from services.inference.config import InferenceSettings
from services.inference.protection.protection import Protection
from services.inference.pull.pulling import Pulling, flags_of
from services.inference.records import Records
from services.inference.registry.registry import Registry
from services.inference.servicer import Service, inference_servicer
from services.inference.started.server import StartedServer
from tests.fakes.clearances import FakeEthics, MovingClock
from tests.fakes.model_server import FakeModelServer
from tests.fakes.tiny_pythia import make_tiny_pythia

CHAT = "/kala.inference.v1.InferenceService/Chat"


async def until(holds: Callable[[], bool], *, within_seconds: float = 5) -> None:
    """Wait for a state that has no event of its own; fails when it takes too long."""
    for _ in range(round(within_seconds * 200)):
        if holds():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it did not come to that")


@dataclass(slots=True)
class Answer:
    """One collected answer."""

    responses: list[pb.ChatResponse]

    @property
    def text(self) -> str:
        return "".join(response.delta.text for response in self.responses)

    @property
    def route(self) -> pb.RouteInfo:
        routes = [response.route for response in self.responses if response.HasField("route")]
        assert len(routes) == 1
        return routes[0]

    @property
    def finish(self) -> pb.ChatFinish:
        assert self.responses[-1].HasField("finish")
        return self.responses[-1].finish

    @property
    def deltas(self) -> list[pb.ChatDelta]:
        return [response.delta for response in self.responses if response.HasField("delta")]


def action(text: str = "Hello", **fields: object) -> pb.ChatAction:
    """Write a ChatAction of one user message."""
    message = pb.ChatMessage(role=pb.ROLE_USER, content=[pb.ContentPart(text=text)])
    return pb.ChatAction(**{"messages": [message], **fields})


@dataclass(slots=True)
class Suite:
    """The running server and its only caller, the gateway."""

    stub: inference_pb2_grpc.InferenceServiceStub
    ethics: FakeEthics
    registry: Registry
    clock: MovingClock
    address: str

    def call(self, wanted: pb.ChatAction) -> grpc.aio.UnaryStreamCall[pb.ChatRequest, pb.ChatResponse]:
        """Start a cleared Chat."""
        return self.stub.Chat(pb.ChatRequest(sealed=self.ethics.seal(wanted, audience=CHAT)))

    async def chat(self, wanted: pb.ChatAction | None = None) -> Answer:
        """Run a cleared Chat to its end; raises the KalaError."""
        with translated():
            return Answer([response async for response in self.call(wanted or action())])


StartSuite = Callable[..., "asyncio.Future[Suite]"]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_pythia(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def long(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_pythia(tmp_path_factory.mktemp("long"), context_tokens=100_000)


@pytest.fixture
async def start(tmp_path: Path) -> AsyncIterator[StartSuite]:
    """Start an inference server with these settings."""
    async with AsyncExitStack() as stack:

        async def starter(**settings: object) -> Suite:
            return await stack.enter_async_context(running(tmp_path, **settings))

        yield starter


@asynccontextmanager
async def running(
    tmp_path: Path,
    *,
    writer: Writer | None = None,
    started: Sequence[StartedServer] = (),
    **fields: object,
) -> AsyncIterator[Suite]:
    """Run the service as `__main__` puts it together; whoever gives `started` servers runs them."""
    clock = MovingClock()
    ethics = FakeEthics(clock)
    settings = InferenceSettings(
        **{
            "address": f"unix:{tmp_path}/inference-{secrets.token_hex(4)}.sock",
            "embedded": False,
            "refresh_seconds": 60,
            **fields,
        }
    )
    verifier = ClearanceVerifier({ethics.signer.key_id: ethics.signer.public_key}, clock=clock)
    registry = make_registry(settings, pythia_backends(settings), started)
    protection = Protection()
    servicer = inference_servicer(
        Service(
            registry,
            verifier.recheck,
            settings.max_act_seconds,
            settings.routing,
            protection,
            Pulling(flags_of(settings)),
            adapters=adapter_desk(settings, registry),
        )
    )
    register = partial(inference_pb2_grpc.add_InferenceServiceServicer_to_server, servicer)
    policy = call_policy(verifier, Records(writer))
    async with AsyncExitStack() as stack:
        stack.push_async_callback(registry.aclose)
        server = await stack.enter_async_context(serving(settings, [register], policy=policy))
        for background in (registry.run(), make_prober(settings, registry, protection).run()):
            stack.callback(asyncio.create_task(background).cancel)
        await server.set_serving()
        channel = await stack.enter_async_context(
            open_channel(server.address, peer_name="gateway", default_timeout_seconds=20)
        )
        yield Suite(inference_pb2_grpc.InferenceServiceStub(channel), ethics, registry, clock, server.address)


@pytest.fixture
async def llama() -> AsyncIterator[FakeModelServer]:
    """Run a scripted llama-server."""
    async with FakeModelServer() as server:
        yield server
