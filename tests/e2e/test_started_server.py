"""A real mlx_lm.server that inference starts by itself for MLX_MODEL_PATH: it answers, comes back, and goes with the suite."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import httpx
import pytest

from services.inference.config import EMBEDDED_MODEL_DIR
from tests.e2e.suites import Suite, running_suite
from tests.fakes.tiny_pythia import make_tiny_pythia

pytest.importorskip("mlx_lm", reason="mlx_lm is not installed: pip install 'mlx[cpu]' mlx-lm")
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

START_SECONDS = 120


def servers(model: Path) -> list[int]:
    """Give the processes that serve this model."""
    found: list[int] = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            words = (place / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"mlx_lm" in words and str(model).encode() in words:
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


def test_a_model_path_is_served_watched_and_let_go(tmp_path: Path) -> None:
    model = EMBEDDED_MODEL_DIR
    if not (model / "model.safetensors").exists():
        model = make_tiny_pythia(tmp_path / "tiny-neox", context_tokens=512)
    with running_suite(tmp_path / "state", MLX_MODEL_PATH=str(model)) as suite:
        assert answered(suite).headers["x-kala-attempts"] == "mlx=ok"
        (first,) = servers(model)
        os.kill(first, signal.SIGKILL)
        answered(suite)
        (second,) = servers(model)
        assert second != first
    assert servers(model) == []
