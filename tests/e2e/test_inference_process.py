"""The inference process by itself: quick to start, without torch, strict about its settings, and gone when told."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from kala.inference.v1 import inference_pb2 as pb
from kala.inference.v1 import inference_pb2_grpc
from services.common.channel import open_channel
from tests.e2e.suites import environment
from tests.fakes.clearances import FakeEthics
from tests.fakes.model_server import FakeModelServer

READY_SECONDS = 2.0
SLACK_SECONDS = 8.0
"""On a machine that runs other tests beside this one, starting an interpreter alone can take seconds."""


def command(*flags: str | Path) -> list[str]:
    return [sys.executable, "-m", "services.inference", "--metrics-port", "off", *map(str, flags)]


@contextlib.contextmanager
def process(address: str, *flags: str | Path) -> Iterator[subprocess.Popen[bytes]]:
    running = subprocess.Popen(
        command("--address", address, *flags), env=environment(), stderr=subprocess.DEVNULL
    )
    try:
        yield running
    finally:
        running.terminate()
        running.wait(15)


async def until_serving(channel: grpc.aio.Channel) -> None:
    request = health_pb2.HealthCheckRequest(service="kala.inference.v1.InferenceService")
    stub = health_pb2_grpc.HealthStub(channel)
    async with asyncio.timeout(READY_SECONDS + SLACK_SECONDS):
        for _ in range(1000):
            with contextlib.suppress(grpc.aio.AioRpcError):
                if (await stub.Check(request)).status == health_pb2.HealthCheckResponse.SERVING:
                    return
            await asyncio.sleep(0.02)


async def ask(address: str, ethics: FakeEthics) -> list[pb.ChatResponse]:
    async with open_channel(address, peer_name="gateway") as channel:
        await until_serving(channel)
        message = pb.ChatMessage(role=pb.ROLE_USER, content=[pb.ContentPart(text="Hi")])
        await asyncio.sleep(0.01)  # a clearance must be younger than the process
        sealed = ethics.seal(
            pb.ChatAction(messages=[message]), audience="/kala.inference.v1.InferenceService/Chat"
        )
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        return [reply async for reply in stub.Chat(pb.ChatRequest(sealed=sealed))]


def has_torch(process_id: int) -> bool:
    return b"libtorch" in Path(f"/proc/{process_id}/maps").read_bytes()


async def test_it_serves_soon_and_without_torch_and_ends_when_told(tmp_path: Path) -> None:
    ethics = FakeEthics()
    address = f"unix:{tmp_path}/i.sock"
    async with FakeModelServer() as llama:
        flags = ("--ethics-public-keys", ethics.public_key_file(tmp_path), "--llamacpp-url", llama.url)
        started = time.monotonic()
        with process(address, *flags) as running:
            answered = await ask(address, ethics)
            assert time.monotonic() - started < READY_SECONDS + SLACK_SECONDS
            assert answered[-1].HasField("finish")
            assert not has_torch(running.pid)
        assert running.returncode == 0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        pytest.param((), "KALA_INFERENCE_ETHICS_PUBLIC_KEYS", id="no key"),
        pytest.param(
            ("--ethics-public-keys", "/nowhere.pub"), "/nowhere.pub cannot be read", id="no such key"
        ),
        pytest.param(("--lmstudio-url", "http://169.254.169.254"), "link-local", id="metadata address"),
        pytest.param(("--provider", "openai"), "provider", id="provider of a later release"),
        pytest.param(("--no-such-flag", "1"), "--no-such-flag", id="unknown flag"),
    ],
)
def test_a_wrong_setting_ends_it_with_one_line(flags: tuple[str, ...], message: str) -> None:
    done = subprocess.run(
        command(*flags), env=environment(), capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
