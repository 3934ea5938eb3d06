"""A real ethics server in this process, over a unix socket, with the shipped constitution."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from kala.common.v1 import clearance_pb2
from kala.ethics.constitution import verify_constitution
from kala.ethics.v1 import ethics_pb2 as pb
from kala.ethics.v1 import ethics_pb2_grpc
from kala.inference.v1 import inference_pb2 as inference
from services.common.channel import open_channel
from services.common.interceptors import CallPolicy
from services.common.keys import write_private_key
from services.common.sealing import pack
from services.common.server import serving
from services.ethics.__main__ import make_bench, make_servicer, may_call
from services.ethics.bench import Bench
from services.ethics.config import EthicsSettings
from services.ethics.watch import ConstitutionWatch

if TYPE_CHECKING:
    from kala.ethics.v1.ethics_pb2_grpc import EthicsServiceAsyncStub

CHAT = "/kala.inference.v1.InferenceService/Chat"
EXECUTE = "/kala.tools.v1.ToolsService/Execute"


@dataclass(slots=True)
class Ethics:
    """The running server; `stub` speaks as the gateway."""

    settings: EthicsSettings
    key: Ed25519PrivateKey
    watch: ConstitutionWatch
    stub: EthicsServiceAsyncStub
    stack: AsyncExitStack

    async def as_peer(self, name: str) -> EthicsServiceAsyncStub:
        channel = await self.stack.enter_async_context(open_channel(self.settings.address, peer_name=name))
        return ethics_pb2_grpc.EthicsServiceStub(channel)


@pytest.fixture(scope="module")
def key_file(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Ed25519PrivateKey]:
    path, key = tmp_path_factory.mktemp("keys") / "ethics.key", Ed25519PrivateKey.generate()
    write_private_key(path, key)
    return path, key


@pytest.fixture(scope="session")
def bench() -> Bench:
    """The judges over the shipped constitution; compiling them takes most of a start."""
    settings = EthicsSettings(trust="development")
    return make_bench(settings, verify_constitution(settings.constitution, settings.constitution_trust))


@pytest.fixture
def overrides() -> dict[str, object]:
    """Settings that a test changes."""
    return {}


@pytest.fixture
async def ethics(
    key_file: tuple[Path, Ed25519PrivateKey], overrides: dict[str, object], bench: Bench
) -> AsyncIterator[Ethics]:
    async with AsyncExitStack() as stack:
        # A unix socket's path must be short.
        directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="kala-"))
        values = {
            "address": f"unix:{directory}/e.sock",
            "trust": "development",
            "signing_key_file": key_file[0],
            "balancer_wait_seconds": 0.0,
        }
        settings = EthicsSettings(**(values | overrides))
        watch = ConstitutionWatch(settings.constitution, settings.constitution_trust, interval_seconds=1000)
        chosen = make_bench(settings, watch.in_force) if "unjudged_parts" in overrides else bench
        register = partial(
            ethics_pb2_grpc.add_EthicsServiceServicer_to_server, make_servicer(settings, watch, chosen)
        )
        server = await stack.enter_async_context(
            serving(settings, [register], policy=CallPolicy(may_call=may_call))
        )
        await server.set_serving()
        channel = await stack.enter_async_context(open_channel(settings.address, peer_name="gateway"))
        yield Ethics(settings, key_file[1], watch, ethics_pb2_grpc.EthicsServiceStub(channel), stack)


PRINCIPAL = clearance_pb2.Principal(id="key-1", tenant="acme")


def chat(*turns: str, role: inference.Role = inference.ROLE_USER) -> inference.ChatAction:
    action = inference.ChatAction(model="auto")
    for turn in turns:
        action.messages.add(role=role).content.add(text=turn)
    return action


def check(judged: inference.ChatAction, **changes: object) -> pb.CheckActionRequest:
    values: dict[str, object] = {
        "action": pack(judged),
        "audience": CHAT,
        "principal": PRINCIPAL,
        "purpose": clearance_pb2.PURPOSE_REQUEST,
    }
    return pb.CheckActionRequest(**(values | changes))  # type: ignore[arg-type] # built from a dictionary on purpose
