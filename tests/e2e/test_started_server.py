"""Real model servers that inference starts by itself for a model path: they answer, come back, and go with the suite."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from pathlib import Path

import httpx
import pytest

from services.inference.config import EMBEDDED_MODEL_DIR
from tests.e2e.suites import Suite, running_suite
from tests.fakes.tiny_pythia import make_tiny_pythia

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

LLAMA_SERVER = os.environ.get("KALA_TEST_LLAMA_SERVER") or shutil.which("llama-server")

START_SECONDS = 120


def servers(model: Path) -> list[int]:
    """Give the processes that serve this model."""
    found: list[int] = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            words = (place / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if str(model).encode() in words and b"--port" in words:
            found.append(int(place.name))
    return found


def ask(suite: Suite) -> httpx.Response:
    body = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 8, "temperature": 0}
    headers = {"authorization": f"Bearer {suite.key}"}
    return httpx.post(f"{suite.url}/v1/chat/completions", json=body, headers=headers, timeout=60)


def answered(suite: Suite) -> httpx.Response:
    """Ask until it answers; it takes seconds to start."""
    until = time.monotonic() + START_SECONDS
    while (response := ask(suite)).status_code != 200 and time.monotonic() < until:
        time.sleep(0.5)
    assert response.status_code == 200, response.text
    return response


def watched(state: Path, model: Path, kind: str, **settings: str) -> None:
    """See a server through: asked, killed, asked again, and gone with the suite."""
    with running_suite(state, **settings) as suite:
        assert answered(suite).headers["x-kala-attempts"] == f"{kind}=ok"
        (first,) = servers(model)
        os.kill(first, signal.SIGKILL)
        answered(suite)
        (second,) = servers(model)
        assert second != first
    assert servers(model) == []


def test_mlx_lm_server_is_started_watched_and_let_go(tmp_path: Path) -> None:
    pytest.importorskip("mlx_lm", reason="mlx_lm is not installed: pip install 'mlx[cpu]' mlx-lm")
    model = EMBEDDED_MODEL_DIR
    if not (model / "model.safetensors").exists():
        model = make_tiny_pythia(tmp_path / "tiny-neox", context_tokens=512)
    watched(tmp_path / "state", model, "mlx", MLX_MODEL_PATH=str(model))


@pytest.mark.skipif(
    LLAMA_SERVER is None, reason="no llama-server on PATH and none named by KALA_TEST_LLAMA_SERVER"
)
def test_llama_server_is_started_watched_and_let_go(tmp_path: Path) -> None:
    from tests.fakes.tiny_gguf import make_tiny_llama

    model = make_tiny_llama(tmp_path / "tiny.gguf", context_tokens=512)
    settings = {
        "LLAMACPP_MODEL_PATH": str(model),
        "LLAMACPP_N_CTX": "512",
        "KALA_INFERENCE_LLAMACPP_PROGRAM": str(LLAMA_SERVER),
    }
    watched(tmp_path / "state", model, "llamacpp", **settings)
