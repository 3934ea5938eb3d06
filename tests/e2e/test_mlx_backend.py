"""A real mlx_lm.server behind a real suite: found out, answered by, streamed, lost and found again."""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from services.inference.config import EMBEDDED_MODEL_DIR
from tests.e2e.suites import Suite, running_suite
from tests.fakes.tiny_pythia import make_tiny_pythia

pytest.importorskip("mlx_lm", reason="mlx_lm is not installed: pip install 'mlx[cpu]' mlx-lm")

LISTEN_SECONDS = 90
ANSWER_SECONDS = 60


@dataclass(slots=True)
class MlxServer:
    """One mlx_lm.server process on a port of its own."""

    model: Path
    port: int
    hub_cache: Path
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Run it, and wait until it is healthy."""
        command = [sys.executable, "-m", "mlx_lm", "server", "--model", str(self.model)]
        self.process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(self.port)],
            # A wrong model name must fail here and never reach the hub; without a cache it cannot list its models.
            env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(self.hub_cache)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        until = time.monotonic() + LISTEN_SECONDS
        while time.monotonic() < until:
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(f"{self.url}/health", timeout=1).json() == {"status": "ok"}:
                    return
            assert self.process.poll() is None, "mlx_lm.server ended"
            time.sleep(0.1)
        raise AssertionError("mlx_lm.server does not listen")

    def kill(self) -> None:
        """End it without a chance to say goodbye."""
        if self.process is not None:
            self.process.kill()
            self.process.wait(10)
            self.process = None


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded demo where there is one, else random weights in the same files."""
    if (EMBEDDED_MODEL_DIR / "model.safetensors").exists():
        return EMBEDDED_MODEL_DIR
    return make_tiny_pythia(tmp_path_factory.mktemp("model") / "tiny-neox", context_tokens=512)


@pytest.fixture(scope="module")
def mlx(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlxServer]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        server = MlxServer(model, probe.getsockname()[1], tmp_path_factory.mktemp("hub"))
    try:
        server.start()
        yield server
    finally:
        server.kill()


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory, mlx: MlxServer) -> Iterator[Suite]:
    state = tmp_path_factory.mktemp("mlx-suite") / "state"
    told = {"KALA_INFERENCE_MLX_CONTEXT_TOKENS": "512"}
    with running_suite(state, KALA_INFERENCE_MLX_URL=mlx.url, **told) as running:
        yield running


def ask(suite: Suite, text: str = "Hello", *, model: str = "auto", stream: bool = False) -> httpx.Response:
    body = {
        "model": model,
        "messages": [{"role": "user", "content": text}],
        "max_tokens": 16,
        "temperature": 0,
        "stream": stream,
    }
    headers = {"authorization": f"Bearer {suite.key}"}
    return httpx.post(f"{suite.url}/v1/chat/completions", json=body, headers=headers, timeout=ANSWER_SECONDS)


def test_it_is_shown_by_its_models_name(suite: Suite, model: Path) -> None:
    headers = {"authorization": f"Bearer {suite.key}"}
    listed = httpx.get(f"{suite.url}/v1/models", headers=headers, timeout=ANSWER_SECONDS).json()["data"]
    assert model.name in {item["id"] for item in listed}
    assert str(model) not in json.dumps(listed)


def test_a_prompt_beyond_its_context_is_an_error_although_it_answers(suite: Suite) -> None:
    sentence = "The train leaves the station at noon and reaches the sea in the evening. "
    response = ask(suite, f"What is this about? {sentence * 40}")
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (400, "context_length_exceeded")
    assert re.search(r"has \d{3,} tokens.*context of 512 tokens", error["message"])


def test_auto_prefers_it_and_the_answer_has_a_receipt(suite: Suite) -> None:
    response = ask(suite)
    assert response.status_code == 200, response.text
    assert response.json()["choices"][0]["finish_reason"] in {"stop", "length"}
    assert response.json()["usage"]["completion_tokens"] >= 1
    assert response.headers["x-kala-receipt"].startswith("rcpt_")
    assert response.headers["x-kala-attempts"] == "mlx=ok"


def test_a_stream_and_a_whole_answer_say_the_same(suite: Suite) -> None:
    lines = [line.removeprefix("data: ") for line in ask(suite, stream=True).text.splitlines() if line]
    assert lines[-1] == "[DONE]"
    chunks = [json.loads(line) for line in lines[:-1] if not line.startswith(":")]
    deltas = [choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"]]
    assert "".join(deltas) == ask(suite).json()["choices"][0]["message"]["content"]


def test_it_says_what_the_same_model_says_in_process(suite: Suite, model: Path) -> None:
    if model != EMBEDDED_MODEL_DIR:
        pytest.skip("the embedded model is not here")
    question = "What is the capital of France?"
    there, here = (ask(suite, question, model=name).json() for name in ("auto", "kala-demo"))
    assert "Paris" in there["choices"][0]["message"]["content"]
    assert there["choices"][0]["message"] == here["choices"][0]["message"]


def test_it_continues_a_text_whole_and_streamed(suite: Suite) -> None:
    body = {"model": "auto", "prompt": "The capital of France is", "max_tokens": 8, "temperature": 0}
    headers = {"authorization": f"Bearer {suite.key}"}
    asked = [
        httpx.post(
            f"{suite.url}/v1/completions", json={**body, **more}, headers=headers, timeout=ANSWER_SECONDS
        )
        for more in ({}, {"stream": True})
    ]
    assert [each.headers["x-kala-attempts"] for each in asked] == ["mlx=ok", "mlx=ok"]
    lines = [line.removeprefix("data: ") for line in asked[1].text.splitlines() if line.startswith("data: {")]
    texts = [choice["text"] for line in lines for choice in json.loads(line)["choices"]]
    assert asked[0].json()["choices"][0]["text"] == "".join(texts) != ""


def test_a_name_of_the_hub_is_unknown_and_is_not_looked_up(suite: Suite) -> None:
    response = ask(suite, model="mlx-community/Llama-3.2-1B-Instruct-4bit")
    assert response.status_code == 404
    assert "is not known" in response.json()["error"]["message"]


def test_killed_it_is_unavailable_with_its_reason_and_back_it_answers_again(
    suite: Suite, mlx: MlxServer
) -> None:
    mlx.kill()
    response = ask(suite)
    assert response.status_code == 503
    assert "mlx" in response.json()["error"]["message"]
    mlx.start()
    until = time.monotonic() + 15
    while (response := ask(suite)).status_code != 200 and time.monotonic() < until:
        time.sleep(0.5)
    assert response.status_code == 200, response.text
