"""Programs that are started beside gRPC's threads run: its handlers around a fork crashed some before they began."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

BUSY = """
import asyncio, collections, sys
import services.common.server
import grpc, uvloop
from grpc_health.v1 import health, health_pb2, health_pb2_grpc


async def main(socket):
    server, servicer = grpc.aio.server(), health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    await servicer.set("", health_pb2.HealthCheckResponse.SERVING)
    server.add_insecure_port(socket)
    await server.start()
    async with grpc.aio.insecure_channel(socket) as channel:
        stub = health_pb2_grpc.HealthStub(channel)

        async def ask():
            while True:
                await stub.Check(health_pb2.HealthCheckRequest())

        asking = [asyncio.ensure_future(ask()) for _ in range(4)]
        ends = collections.Counter()
        for _ in range(50):
            started = [await asyncio.create_subprocess_exec("/bin/true") for _ in range(6)]
            ends.update([await each.wait() for each in started])
        for each in asking:
            each.cancel()
    await server.stop(0)
    print(dict(ends))


uvloop.run(main("unix:" + sys.argv[1]))
"""


def said(*arguments: str) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "GRPC_ENABLE_FORK_SUPPORT"}
    # However gRPC polls: with its own pool of threads the crash is frequent.
    environment["GRPC_EXPERIMENTS"] = ""
    command = [sys.executable, "-c", *arguments]
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, check=True, timeout=120
    ).stdout.strip()


@pytest.mark.parametrize("part", ["services.tools", "services.trainer", "services.inference", "gateway"])
def test_grpc_is_told_to_leave_forks_alone_before_it_is_imported(part: str) -> None:
    program = f"import {part}, os, sys; print('grpc' in sys.modules, os.environ['GRPC_ENABLE_FORK_SUPPORT'])"
    assert said(program) == "False 0"


def test_every_program_that_is_started_beside_busy_grpc_runs(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    socket = tmp_path_factory.mktemp("s") / "s"
    assert said(BUSY, str(socket)) == "{0: 300}"
