"""What an RPC over a unix socket costs by how gRPC polls: `python -m bench.grpc_polling`. Both ways in turn, echo of 600 bytes."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import grpc
import uvloop

from services import GRPC_EXPERIMENTS

DATA: Final = b"x" * 600
CALLS: Final = 400
WARM_UP: Final = 50
WAYS: Final = {"gRPC's own": "event_engine_client,event_engine_listener", "KALA's": GRPC_EXPERIMENTS}


async def _echo(request: bytes, _context: object) -> bytes:
    return request


async def _echo_first(requests: AsyncIterator[bytes], context: Any) -> None:  # Any: grpc.aio's context
    async for request in requests:
        await context.write(request)
        return


async def _serve(address: str) -> None:
    server = grpc.aio.server()
    handlers: dict[str, Any] = {  # Any: as above
        "whole": grpc.unary_unary_rpc_method_handler(_echo),
        "stream": grpc.stream_stream_rpc_method_handler(_echo_first),
    }
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("bench.Echo", handlers)])
    server.add_insecure_port(address)
    await server.start()
    await server.wait_for_termination()


async def _measure(address: str, pid: int) -> None:
    async with grpc.aio.insecure_channel(address) as channel:
        await channel.channel_ready()
        whole: Any = channel.unary_unary("/bench.Echo/whole")  # Any: untyped without a contract
        stream: Any = channel.stream_stream("/bench.Echo/stream")

        async def both_ways() -> None:
            call = stream(timeout=5)
            await call.write(DATA)
            await call.read()

        calls: dict[str, Callable[[], Awaitable[object]]] = {
            "whole": lambda: whole(DATA),
            "stream": both_ways,
        }
        for name, call in calls.items():
            for _ in range(WARM_UP):
                await call()
            began, before = time.perf_counter(), [_spent(os.getpid()), _spent(pid)]
            for _ in range(CALLS):
                await call()
            seconds = time.perf_counter() - began
            pairs = zip(before, [_spent(os.getpid()), _spent(pid)], strict=True)
            (cpu, switches), (peer_cpu, peer_switches) = (
                [(b - a) / CALLS for a, b in zip(old, new, strict=True)] for old, new in pairs
            )
            print(
                f"| {sys.argv[3]} | {name} | {seconds / CALLS * 1000:.2f} | {cpu:.2f} | {peer_cpu:.2f}"
                f" | {switches + peer_switches:.0f} |",
                flush=True,
            )


def _spent(pid: int) -> tuple[float, float]:
    """Milliseconds of CPU and context switches of all threads (proc(5))."""
    tasks = list(Path(f"/proc/{pid}/task").iterdir())
    lines = [line for task in tasks for line in (task / "status").read_text().splitlines()]
    switches = sum(int(line.split()[1]) for line in lines if "ctxt_switches" in line)
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e6, switches


def main() -> None:
    """Run both ways, twice."""
    print("| polling | call | ms | client's CPU ms | server's CPU ms | context switches |")
    print("| --- | --- | --- | --- | --- | --- |", flush=True)
    with tempfile.TemporaryDirectory(prefix="kala-grpc-") as folder:
        for number in range(2):
            for name, experiments in WAYS.items():
                environment = {**os.environ, "GRPC_EXPERIMENTS": experiments}
                address = f"unix:{folder}/{number}{len(name)}.sock"
                command = [sys.executable, "-m", "bench.grpc_polling"]
                server = subprocess.Popen([*command, "serve", address], env=environment)
                try:
                    subprocess.run([*command, address, str(server.pid), name], env=environment, check=True)
                finally:
                    server.kill()
                    server.wait()


if __name__ == "__main__":
    if len(sys.argv) == 1:
        main()
    elif sys.argv[1] == "serve":
        uvloop.run(_serve(sys.argv[2]))
    else:
        uvloop.run(_measure(sys.argv[1], int(sys.argv[2])))
