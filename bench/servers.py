"""Starts what is measured: the suite by `kala up`, the peer in its own environment."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench.upstream import MODEL, free_port

ROOT: Final = Path(__file__).resolve().parent.parent
KALA: Final = Path(sys.executable).parent / "kala"
PEER: Final = ROOT / ".venv-litellm" / "bin" / "litellm"

PORTKEY: Final = (
    ROOT / ".venv-portkey" / "node_modules" / "@portkey-ai" / "gateway" / "build" / "start-server.js"
)


@dataclass(frozen=True, slots=True)
class Suite:
    """A running suite."""

    url: str
    key: str
    ready_seconds: float
    pids: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Peer:
    """A running peer."""

    url: str
    key: str
    pid: int


@contextmanager
def suite(state: Path, environment: Mapping[str, str]) -> Iterator[Suite]:
    """Runs `kala up --detach --json` and stops it afterwards; `ready_seconds` is until the command returned."""
    started = time.perf_counter()
    command = [KALA, "up", "--detach", "--json", "--state", state, "--port", str(free_port())]
    done = subprocess.run(
        command, env={**os.environ, **environment}, stdout=subprocess.PIPE, check=True, timeout=120
    )
    seconds = time.perf_counter() - started
    up = json.loads(done.stdout)
    try:
        yield Suite(up["gateway_url"], up["api_key"], seconds, up["pids"])
    finally:
        subprocess.run([KALA, "down", "--state", state], check=False, stdout=subprocess.DEVNULL, timeout=60)


@contextmanager
def litellm(folder: Path, upstream: str, streaming_upstream: str) -> Iterator[Peer | None]:
    """Runs the LiteLLM proxy as a bare pass-through; None when it is not installed. It does not start without a key."""
    if not PEER.exists():
        yield None
        return
    port = free_port()
    models = [
        {
            "model_name": name,
            "litellm_params": {"model": f"openai/{MODEL}", "api_base": f"{url}/v1", "api_key": "none"},
        }
        for name, url in (("whole", upstream), ("stream", streaming_upstream))
    ]
    config = folder / "litellm.yaml"
    config.write_text(json.dumps({"model_list": models}))  # JSON is YAML
    key = f"sk-{secrets.token_hex(32)}"
    environment = {
        **os.environ,
        "LITELLM_MASTER_KEY": key,
        "LITELLM_TELEMETRY": "False",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "NO_PROXY": "127.0.0.1",
    }
    with (folder / "litellm.log").open("wb") as log:
        process = subprocess.Popen(
            [PEER, "--config", config, "--host", "127.0.0.1", "--port", str(port), "--num_workers", "1"],
            env=environment, stdout=log, stderr=log,
        )  # fmt: skip
    try:
        _wait_until_alive(f"http://127.0.0.1:{port}/health/liveliness", process)
        yield Peer(f"http://127.0.0.1:{port}", key, process.pid)
    finally:
        process.terminate()
        process.wait(20)


@contextmanager
def portkey(folder: Path) -> Iterator[Peer | None]:
    """Runs the Portkey gateway, whose requests name their upstream; None when it is not installed."""
    if not PORTKEY.exists():
        yield None
        return
    port = free_port()
    with (folder / "portkey.log").open("wb") as log:
        process = subprocess.Popen(
            ["node", PORTKEY, f"--port={port}", "--headless"], stdout=log, stderr=log, cwd=folder
        )
    try:
        _wait_until_alive(f"http://127.0.0.1:{port}/", process)
        yield Peer(f"http://127.0.0.1:{port}", "none", process.pid)
    finally:
        process.terminate()
        process.wait(20)


def _wait_until_alive(url: str, process: subprocess.Popen[bytes], *, timeout_seconds: float = 120) -> None:
    deadline = time.monotonic() + timeout_seconds
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=2):
                return
        except OSError:
            time.sleep(0.3)
    message = f"{url} did not come alive"
    raise RuntimeError(message)
