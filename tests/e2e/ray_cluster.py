"""A Ray cluster of real processes on this machine: a head and a worker node, started apart, with a token."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.error import URLError

START_SECONDS = 90


@dataclass(frozen=True)
class RayCluster:
    address: str
    token_file: Path


@contextmanager
def ray_cluster(*, nodes: int = 2, cpus_per_node: int = 1) -> Iterator[RayCluster]:
    """Start it, and end its processes, by what each has of this cluster in its command line or environment."""
    # Short: Ray's sockets lie below it.
    root = Path(tempfile.mkdtemp(prefix="kr-"))
    token_file = root / "token"
    token_file.write_text(secrets.token_hex(32))
    ports = free_ports(3)
    environ = os.environ | {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token_file),
        "RAY_USAGE_STATS_ENABLED": "0",
        "OMP_NUM_THREADS": "1",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONWARNINGS": "ignore",
    }
    common = [
        "--node-ip-address=127.0.0.1",
        f"--num-cpus={cpus_per_node}",
        "--block",
        "--disable-usage-stats",
    ]
    common += ["--object-store-memory=80000000"]
    head = ["--head", f"--port={ports[0]}", "--dashboard-host=127.0.0.1", f"--dashboard-port={ports[1]}"]
    head += [f"--ray-client-server-port={ports[2]}", f"--temp-dir={root / 'ray'}"]
    started = []
    try:
        started.append(_start([*head, *common], environ, root / "head.log"))
        address = f"http://127.0.0.1:{ports[1]}"
        _wait_for(address, token_file.read_text(), started[0], root / "head.log")
        for number in range(1, nodes):
            # One reader of logs is enough for nodes that share a directory; two would tell everything twice.
            join = [f"--address=127.0.0.1:{ports[0]}", "--include-log-monitor=False"]
            started.append(_start([*join, *common], environ, root / f"node{number}.log"))
        yield RayCluster(address, token_file)
    finally:
        # The polite end takes half a minute, and nothing here is worth keeping.
        _kill_all(str(token_file))
        for process in started:
            process.wait()
        shutil.rmtree(root, ignore_errors=True)


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


def _start(arguments: list[str], environ: dict[str, str], log: Path) -> subprocess.Popen[bytes]:
    with log.open("wb") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "ray.scripts.scripts", "start", *arguments],
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def _wait_for(address: str, token: str, process: subprocess.Popen[bytes], log: Path) -> None:
    request = urllib.request.Request(f"{address}/api/jobs/", headers={"Authorization": f"Bearer {token}"})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until:
        if process.poll() is not None:
            break
        with suppress(URLError, OSError):
            if opener.open(request, timeout=5).status == 200:
                return
        time.sleep(0.2)
    raise RuntimeError(f"Ray's head did not start: {log.read_text()[-2000:]}")


def _kill_all(token_file: str) -> None:
    """Kill the processes of this cluster, and nothing else: its token's file is in the environment of each process."""
    mark = f"RAY_AUTH_TOKEN_PATH={token_file}".encode()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                if mark in (entry / "environ").read_bytes().split(b"\0"):
                    os.kill(int(entry.name), signal.SIGKILL)
