"""One conversation over three real backends that die and come back in the middle of it; the log shows every attempt.

The llama.cpp part needs a llama-server: KALA_TEST_LLAMA_SERVER names the program, or it is on PATH.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.suites import Suite, running_suite
from tests.e2e.test_mlx_backend import MlxServer
from tests.fakes.tiny_gguf import make_tiny_llama
from tests.fakes.tiny_pythia import make_tiny_pythia

LLAMA_SERVER = os.environ.get("KALA_TEST_LLAMA_SERVER") or shutil.which("llama-server")
BACK_SECONDS = 30


@dataclass(slots=True)
class LlamaServer:
    """One llama-server process on a port of its own."""

    model: Path
    port: int
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Run it, and wait until it is healthy."""
        command = [str(LLAMA_SERVER), "--model", str(self.model), "--threads", "1", "--offline"]
        self.process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(self.port)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        until = time.monotonic() + BACK_SECONDS
        while time.monotonic() < until:
            try:
                if httpx.get(f"{self.url}/health", timeout=1).status_code == 200:
                    return
            except httpx.HTTPError:
                time.sleep(0.05)
        raise AssertionError("llama-server does not listen")

    def kill(self) -> None:
        """End it without a chance to say goodbye."""
        if self.process is not None:
            self.process.kill()
            self.process.wait(10)
            self.process = None


@dataclass(slots=True)
class Conversation:
    """A conversation that grows by one question and one answer a turn."""

    suite: Suite
    messages: list[dict[str, str]] = field(default_factory=list)
    receipts: list[int] = field(default_factory=list)

    def turn(self, text: str) -> httpx.Response:
        """Ask, and keep the answer; the server that answers is nobody's choice."""
        self.messages.append({"role": "user", "content": text})
        body = {"model": "auto", "messages": self.messages, "max_tokens": 8, "temperature": 0}
        response = httpx.post(
            f"{self.suite.url}/v1/chat/completions", json=body, headers=self.headers, timeout=60
        )
        assert response.status_code == 200, response.text
        self.receipts.append(response.json()["kala"]["receipt"]["index"])
        self.messages.append(
            {"role": "assistant", "content": response.json()["choices"][0]["message"]["content"]}
        )
        return response

    def attempts(self, text: str) -> str:
        """What the answer says of who was tried."""
        return str(self.turn(text).headers["x-kala-attempts"])

    def until_answered_by(self, backend: str) -> None:
        """Ask until a server that came back is used again."""
        until = time.monotonic() + BACK_SECONDS
        while f"{backend}=ok" not in (seen := self.attempts("And again?")):
            assert time.monotonic() < until, seen
            # Every turn makes the conversation longer, and the models are small.
            del self.messages[2:]
            time.sleep(0.5)

    def logged(self, turn: int) -> list[dict[str, Any]]:
        """The attempts that the log tells of this turn."""
        path = f"/kala/v1/audit/entries/{self.receipts[turn]}"
        entry = httpx.get(f"{self.suite.url}{path}", headers=self.headers, timeout=30).json()
        leaf = json.loads(base64.b64decode(entry["entry"]["leaf"]))
        return list(leaf["result"]["attempts"])

    @property
    def headers(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self.suite.key}"}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def servers(folder: Path, *kinds: MlxServer | LlamaServer) -> Iterator[None]:
    folder.mkdir(exist_ok=True)
    with ExitStack() as stack:
        for server in kinds:
            stack.callback(server.kill)
            server.start()
        yield


@pytest.fixture(scope="module")
def neox(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_pythia(tmp_path_factory.mktemp("model") / "tiny-neox", context_tokens=2048)


def test_mlx_dies_pythia_goes_on_and_mlx_comes_back(neox: Path, tmp_path: Path) -> None:
    pytest.importorskip("mlx_lm", reason="mlx_lm is not installed: pip install 'mlx[cpu]' mlx-lm")
    mlx = MlxServer(neox, free_port(), tmp_path / "hub")
    settings = {"KALA_INFERENCE_MLX_URL": mlx.url, "KALA_INFERENCE_MODEL_DIR": str(neox)}
    with servers(tmp_path / "hub", mlx), running_suite(tmp_path / "state", **settings) as suite:
        conversation = Conversation(suite)
        assert conversation.attempts("Hello") == "mlx=ok"
        mlx.kill()
        assert conversation.attempts("What is a tree?").endswith("pythia=ok")
        mlx.start()
        conversation.until_answered_by("mlx")
        assert [attempt["backend"] for attempt in conversation.logged(0)] == ["backends/mlx"]
        assert conversation.logged(1)[-1]["backend"] == "backends/pythia"
        assert conversation.logged(-1)[-1]["backend"] == "backends/mlx"


@pytest.mark.skipif(
    LLAMA_SERVER is None, reason="no llama-server on PATH and none named by KALA_TEST_LLAMA_SERVER"
)
def test_three_backends_die_and_come_back_in_one_conversation(neox: Path, tmp_path: Path) -> None:
    pytest.importorskip("mlx_lm", reason="mlx_lm is not installed: pip install 'mlx[cpu]' mlx-lm")
    mlx = MlxServer(neox, free_port(), tmp_path / "hub")
    llama = LlamaServer(make_tiny_llama(tmp_path / "tiny.gguf", context_tokens=1024), free_port())
    settings = {
        "KALA_INFERENCE_MLX_URL": mlx.url,
        "KALA_INFERENCE_LLAMACPP_URL": llama.url,
        "KALA_INFERENCE_MODEL_DIR": str(neox),
    }
    with servers(tmp_path / "hub", mlx, llama), running_suite(tmp_path / "state", **settings) as suite:
        conversation = Conversation(suite)
        assert conversation.attempts("Hello") == "mlx=ok"
        mlx.kill()
        assert conversation.attempts("What is a tree?").endswith("llamacpp=ok")
        llama.kill()
        assert conversation.attempts("How old do they get?").endswith("pythia=ok")
        llama.start()
        conversation.until_answered_by("llamacpp")
        mlx.start()
        conversation.until_answered_by("mlx")
        last = [conversation.logged(turn)[-1]["backend"] for turn in range(3)]
        assert last == ["backends/mlx", "backends/llamacpp", "backends/pythia"]
        # The first request after a death shows who was tried in vain, unless a look has found it out before.
        tried = [attempt["backend"] for attempt in conversation.logged(1)]
        assert tried in (["backends/mlx", "backends/llamacpp"], ["backends/llamacpp"])
