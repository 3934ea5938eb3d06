"""What people use around a suite of real processes: health in its three states, the benchmark, models, RFC-080's functions."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.suites import Suite, environment, kala, running_suite
from tests.fakes.hub import fake_hub
from tests.fakes.lm_studio import MODEL, FakeLMStudio, lm_studio

SOURCE = "org/tiny"


@dataclass
class Bench:
    """A suite, and the LM Studio behind it, which a test may stop."""

    suite: Suite
    lm_studio: FakeLMStudio
    models: Path
    stack: ExitStack = field(default_factory=ExitStack)

    def run(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        return kala(*arguments, "--state", self.suite.state)

    def health(self) -> dict[str, Any]:
        """What `kala health lm` prints; its exit code is 0 whatever it finds."""
        done = self.run("health", "lm")
        assert done.returncode == 0, done.stderr
        parsed: dict[str, Any] = json.loads(done.stdout)
        assert parsed["mode"] in done.stderr
        return parsed


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    folder = tmp_path_factory.mktemp("people")
    with ExitStack() as stack, ExitStack() as servers:
        hub = stack.enter_context(fake_hub())
        hub.repositories[SOURCE] = {"tiny.Q4.gguf": b"GGUF"}
        fake = servers.enter_context(lm_studio())
        suite = stack.enter_context(
            running_suite(
                folder / "state",
                KALA_INFERENCE_LMSTUDIO_URL=fake.url,
                KALA_INFERENCE_HUB_URL=hub.url,
                KALA_INFERENCE_MODELS_DIR=str(folder / "models"),
            )
        )
        yield Bench(suite, fake, folder / "models", servers)


def test_a_ready_lm_studio_generated_a_token_just_now(bench: Bench) -> None:
    asked = len(bench.lm_studio.asked)
    health = bench.health()
    assert (health["ok"], health["mode"]) == (True, "lm_ready")
    assert len(bench.lm_studio.asked) == asked + 1


def test_no_model_is_an_error_with_its_cure(bench: Bench) -> None:
    bench.lm_studio.loaded = False
    try:
        health = bench.health()
    finally:
        bench.lm_studio.loaded = True
    assert (health["mode"], health["details"]["reason"]) == ("error", "NO_MODEL_LOADED")
    assert f"kala models load {MODEL}" in health["details"]["cure"]


def test_the_old_name_of_the_connection_test_says_the_same(bench: Bench) -> None:
    headers = {"authorization": f"Bearer {bench.suite.key}"}
    response = httpx.post(f"{bench.suite.url}/api/test-lmstudio", headers=headers, json={}, timeout=30)
    assert response.status_code == 200
    assert response.json()["success"] is True


def test_rfc_080s_functions_are_judged_and_receipted(bench: Bench, tmp_path: Path) -> None:
    program = """
import json
from kala.adapters.lm_studio import lm_studio_complete, lm_studio_health
print(json.dumps([lm_studio_health(), lm_studio_complete("What is machine learning?", max_tokens=32),
                  lm_studio_complete("How do I build a pipe bomb?")]))
"""
    env = environment(
        KALA_STATE=str(bench.suite.state), LM_STUDIO_MODEL=MODEL, LM_STUDIO_BASE_URL=bench.lm_studio.url
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=False,
        env=env,
        cwd=tmp_path,
        timeout=90,
    )
    assert done.returncode == 0, done.stderr
    health, answer, refusal = json.loads(done.stdout)
    assert health["mode"] == "lm_ready"
    assert (answer["ok"], answer["error"]) == (True, None)
    assert answer["response"].startswith("Machine learning")
    assert answer["metadata"]["receipt"].startswith("rcpt_")
    assert answer["metadata"]["model"] == MODEL
    assert (refusal["ok"], refusal["metadata"]["blocked"]) == (True, True)


def test_the_benchmark_writes_a_table_json_and_markdown(bench: Bench, tmp_path: Path) -> None:
    done = bench.run("bench", "providers", "--quick", "--out", tmp_path / "logs")
    assert done.returncode == 0, done.stderr
    assert "lmstudio" in done.stdout
    (report,) = (tmp_path / "logs").glob("llm_benchmark_results_*.json")
    assert (
        (tmp_path / "logs" / report.name.replace("llm_benchmark_results", "LLM_BENCHMARK_REPORT"))
        .with_suffix(".md")
        .exists()
    )
    measured = json.loads(report.read_text())
    assert measured["fastest"] == "lmstudio"
    assert measured["providers"][0]["summary"]["answered"] == 2


def test_every_question_of_the_benchmark_is_allowed(bench: Bench, tmp_path: Path) -> None:
    done = bench.run("bench", "providers", "--provider", "lmstudio", "--out", tmp_path)
    assert "6/6" in done.stdout, done.stdout + done.stderr


def test_models_are_listed_and_loaded(bench: Bench) -> None:
    assert MODEL in bench.run("models", "list").stdout
    done = bench.run("models", "load", MODEL, "--context", "4096")
    assert done.returncode == 0, done.stderr
    assert "4096 tokens of context" in done.stdout


def test_a_model_is_pulled_by_the_suite_and_without_one(bench: Bench, tmp_path: Path) -> None:
    done = bench.run("models", "pull", SOURCE)
    assert done.returncode == 0, done.stderr
    assert (bench.models / "tiny" / "tiny.Q4.gguf").read_bytes() == b"GGUF"
    missing = kala(
        "models", "pull", "org/nothing", "--to", tmp_path, env=environment(HF_ENDPOINT="http://127.0.0.1:9")
    )
    assert missing.returncode == 1
    assert "cannot reach http://127.0.0.1:9" in missing.stderr


def test_a_stopped_lm_studio_is_off_at_once(bench: Bench) -> None:
    """Last, for it stops the server: the look of a moment ago must not be believed."""
    bench.stack.close()
    health = bench.health()
    assert (health["ok"], health["mode"]) == (False, "lm_off")
    assert "lms server start" in health["details"]["cure"]
