"""The tools service as a process of its own, of a user without rights, with a log and a client."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import IO

from kala.tools.v1 import tools_pb2 as pb
from kala.tools.v1 import tools_pb2_grpc
from services.common.channel import open_channel
from services.common.keys import write_public_key
from services.common.principals import principal_metadata
from tests.fakes.audit_server import served_log
from tests.fakes.clearances import FakeEthics
from tests.service.tools.conftest import ANN, Tools
from tests.tools_runtime import (
    unprivileged_python,
)

START_SECONDS = 120


@asynccontextmanager
async def process(
    folder: Path, home: Path, **settings: str
) -> AsyncIterator[tuple[Tools, subprocess.Popen[bytes]]]:
    """Start one service and give its client once it answers; the log is this process's."""
    ethics = FakeEthics()
    async with AsyncExitStack() as stack:
        log = await stack.enter_async_context(served_log(folder / "audit.db"))
        key = home / "ethics.pub"
        write_public_key(key, ethics.signer.public_key)
        key.chmod(0o644)
        socket = home / "tools.sock"
        environment = {
            "PATH": "/usr/bin:/bin",
            "KALA_TOOLS_ADDRESS": f"unix:{socket}",
            "KALA_TOOLS_METRICS_PORT": "off",
            "KALA_TOOLS_ETHICS_PUBLIC_KEYS": str(key),
            "KALA_TOOLS_AUDIT_ADDRESS": log.address,
            "KALA_TOOLS_STATE_DIR": str(home / "state"),
            **{f"KALA_TOOLS_{name}": value for name, value in settings.items()},
        }
        log_file: IO[bytes] = stack.enter_context((folder / "tools.log").open("wb"))
        service = _started(environment, log_file)
        stack.callback(_stop, service)
        channel = await stack.enter_async_context(open_channel(f"unix:{socket}", peer_name="gateway"))
        stub = tools_pb2_grpc.ToolsServiceStub(channel)
        await _until_it_answers(stub, service, folder / "tools.log")
        yield Tools(stub, ethics.signer, log), service


def _started(environment: Mapping[str, str], log: IO[bytes]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [*unprivileged_python(), "-P", "-m", "services.tools"],
        env=dict(environment),
        cwd="/",
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
    )


async def _until_it_answers(
    stub: tools_pb2_grpc.ToolsServiceAsyncStub, service: subprocess.Popen[bytes], log: Path
) -> None:
    async with asyncio.timeout(START_SECONDS):
        while True:
            assert service.poll() is None, _words(log)
            with contextlib.suppress(Exception):
                await stub.GetPolicy(pb.GetPolicyRequest(), metadata=principal_metadata(ANN))
                return
            await asyncio.sleep(0.1)


def _words(log: Path) -> str:
    return log.read_text()


def _stop(service: subprocess.Popen[bytes]) -> None:
    service.terminate()
    try:
        service.wait(20)
    except subprocess.TimeoutExpired:
        service.kill()
        service.wait()
