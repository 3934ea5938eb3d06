"""Starts one service as in production, `python -m services.<name>` over a unix socket, and waits until it serves."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.common.peers import GATEWAY, PEER_METADATA_KEY

ROOT: Final = Path(__file__).resolve().parent.parent
POLL_SECONDS: Final = 0.005
# The channel tries again this often while nothing listens yet; its own first wait would be a second.
BACKOFF: Final = [(f"grpc.{name}_reconnect_backoff_ms", 10) for name in ("initial", "min", "max")]
START_SECONDS: Final = 120.0
MIB: Final = 1024


@contextmanager
def serving(
    module: str, home: Path, address: str, settings: Mapping[str, str]
) -> Iterator[tuple[int, float]]:
    """The process with its id and the seconds that it took to serve; its log lies in `home`."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    began = time.perf_counter()
    with (home / "log").open("wb") as log:
        running = subprocess.Popen(
            [sys.executable, "-m", module], cwd=ROOT, env={**environment, **settings}, stdout=log, stderr=log
        )
    try:
        with grpc.insecure_channel(address, BACKOFF) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            while not _is_serving(stub):
                if running.poll() is not None or time.perf_counter() - began > START_SECONDS:
                    raise RuntimeError((home / "log").read_text())
                time.sleep(POLL_SECONDS)
            taken = time.perf_counter() - began
        yield running.pid, taken
    finally:
        running.terminate()
        running.wait(30)


def memory_mib(pid: int, field: str = "VmRSS") -> float:
    """A line of /proc/pid/status, which counts in KiB (proc(5))."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(f"{field}:"))) / MIB


def _is_serving(stub: Any) -> bool:  # Any: grpc_health has no stubs of its methods
    try:
        answer = stub.Check(
            health_pb2.HealthCheckRequest(), timeout=1, metadata=[(PEER_METADATA_KEY, GATEWAY)]
        )
    except grpc.RpcError:
        return False
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)
