"""What the gateway's bench measures side by side: the suite, its twin without the classifier, the peers, the bare upstream."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench.http_load import Call
from bench.measure import NUMBER
from bench.paced_upstream import paced_model_server
from bench.servers import ROOT, Suite, litellm, portkey, suite
from bench.upstream import MODEL, free_port, static_model_servers

DIRECT: Final = "direct"
KALA: Final = "kala"
RULES: Final = "kala, rules alone"
LITELLM: Final = "litellm"
PORTKEY: Final = "portkey"
GUARDED_PARTS: Final = ("gateway", "ethics", "audit", "inference")
"""What a chat passes; the other parts of the suite run beside them and are asked nothing."""

QUESTION: Final = [
    {"role": "user", "content": f"Say something about fox {NUMBER.decode()} and a dog, please."}
]
START_SECONDS: Final = 60.0
ROOM: Final = {
    "KALA_GATEWAY_MAX_CONCURRENT_REQUESTS": "1200",
    "KALA_INFERENCE_MAX_IN_FLIGHT": "1200",
    "KALA_INFERENCE_MAX_WAITING": "1200",
}
"""For a thousand streams at once."""


@dataclass(frozen=True, slots=True)
class Arm:
    """One server: how to ask it for a whole answer and for a stream, and its processes."""

    name: str
    whole: Call
    streamed: Call
    pids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Arms:
    """All of them, running; `paced` is the URL of the upstream that streams."""

    all: Mapping[str, Arm]
    paced: str


@contextmanager
def running_arms(folder: Path) -> Iterator[Arms]:
    """Everything on one machine; a peer that is not installed is left out."""
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        whole, _ = stack.enter_context(static_model_servers(folder / "nginx"))
        paced = stack.enter_context(paced_model_server())
        environment = {
            "KALA_INFERENCE_LLAMACPP_URL": whole,
            "KALA_INFERENCE_MLX_URL": paced,
            "KALA_INFERENCE_DISCOVER": "false",
            "KALA_INFERENCE_EMBEDDED": "false",
            **ROOM,
        }
        running = stack.enter_context(suite(folder / "state", environment))
        twin = stack.enter_context(_without_classifier(running, folder))
        arms = [
            Arm(DIRECT, _call(whole, MODEL), _call(paced, MODEL, stream=True)),
            _kala(KALA, running.url, running.key, tuple(running.pids[part] for part in GUARDED_PARTS)),
            _kala(RULES, twin, running.key, ()),
        ]
        if (peer := stack.enter_context(litellm(folder, whole, paced))) is not None:
            asked = [
                _call(peer.url, model, peer.key, stream=model == "stream") for model in ("whole", "stream")
            ]
            arms.append(Arm(LITELLM, asked[0], asked[1], (peer.pid,)))
        if (peer := stack.enter_context(portkey(folder))) is not None:
            named = [
                {"x-portkey-provider": "openai", "x-portkey-custom-host": f"{url}/v1"}
                for url in (whole, paced)
            ]
            asked = [
                _call(peer.url, MODEL, stream=stream, headers=headers)
                for stream, headers in zip((False, True), named, strict=True)
            ]
            arms.append(Arm(PORTKEY, asked[0], asked[1], (peer.pid,)))
        yield Arms({arm.name: arm for arm in arms}, paced)


def _kala(name: str, url: str, key: str, pids: tuple[int, ...]) -> Arm:
    return Arm(name, _call(url, f"llamacpp/{MODEL}", key), _call(url, f"mlx/{MODEL}", key, stream=True), pids)


def _call(
    base: str,
    model: str,
    key: str = "none",
    *,
    stream: bool = False,
    headers: Mapping[str, str] | None = None,
) -> Call:
    body = json.dumps({"model": model, "messages": QUESTION, "stream": stream}).encode()
    return Call(f"{base}/v1/chat/completions", body, {"authorization": f"Bearer {key}", **(headers or {})})


@contextmanager
def _without_classifier(running: Suite, folder: Path) -> Iterator[str]:
    """A second gateway and an ethics without its classifier, before the same log and the same backends."""
    home = folder / "twin"
    home.mkdir(mode=0o700)
    address = f"unix:{home}/ethics.sock"
    port = free_port()
    own = {
        "ethics": {"ADDRESS": address, "METRICS_PORT": "off", "SPOOL_DIR": f"{home}/ethics"},
        "gateway": {
            "ETHICS_ADDRESS": address,
            "PORT": str(port),
            "METRICS_PORT": "off",
            "SPOOL_DIR": f"{home}/gateway",
            "CHECKPOINT_FILE": f"{home}/checkpoint",
            "PRODUCER_ID": "gateway-twin",
        },
    }
    modules = {"ethics": "bench.rules_ethics", "gateway": "gateway"}
    with ExitStack() as stack:
        for part, settings in own.items():
            environment = _environment_of(running.pids[part]) | {
                f"KALA_{part.upper()}_{name}": value for name, value in settings.items()
            }
            log = stack.enter_context((home / f"{part}.log").open("wb"))
            process = subprocess.Popen(
                [sys.executable, "-m", modules[part]], env=environment, cwd=ROOT, stdout=log, stderr=log
            )
            stack.callback(process.wait, 30)
            stack.callback(process.terminate)
        url = f"http://127.0.0.1:{port}"
        _wait_until_ready(f"{url}/readyz", home)
        yield url


def _environment_of(pid: int) -> dict[str, str]:
    """The environment that a process was started with (proc(5))."""
    pairs = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return dict(os.fsdecode(pair).split("=", 1) for pair in pairs if b"=" in pair)


def _wait_until_ready(url: str, home: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(url, timeout=2):
                return
        except OSError:
            time.sleep(0.1)
    raise RuntimeError("\n".join(path.read_text()[-2000:] for path in home.glob("*.log")))
