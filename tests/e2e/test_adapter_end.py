"""What becomes of a served adapter: verified offline, exported and revoked, through `kala` over a whole suite.

Its gate asks for integrity alone, so that two steps of training pass it: what is tested here comes after the gate.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from google.protobuf import json_format

from kala.common.v1 import gate_pb2
from kala.common.v1.measurement_pb2 import MEASURER_TRAINER
from tests.e2e.suites import Suite, environment, kala, running_suite

pytestmark = [pytest.mark.torch, pytest.mark.slow, pytest.mark.timeout(900)]

SUITES = Path(__file__).parents[2] / "services" / "trainer" / "evaluation" / "suites"
JOB = """
adapter: tone
summary: Two steps, to have an adapter.
base_model: kala-embedded
stage: custom
objective: sft
rank: 4
alpha: 8
dropout: 0.0
target_modules: [query_key_value, dense, embed_in, embed_out]
build:
  - name: tone
    summary: Plain questions.
    sources:
      - generator: {category: benign, rows: 40, seed: 1}
datasets:
  - {dataset: tone, use: train}
hyperparameters: {learning_rate: 1e-3, batch_size: 4, max_sequence_tokens: 64, max_steps: 2}
gate_profile: whole
deadline: 20m
"""


@pytest.fixture
def profile(tmp_path: Path) -> Path:
    """A demonstration's profile that asks for integrity alone."""
    digest = hashlib.sha256((SUITES / "integrity.jsonl").read_bytes()).digest()
    requirement = gate_pb2.GateRequirement(
        metric="integrity",
        suite="integrity",
        suite_digest=digest,
        measured_by=MEASURER_TRAINER,
        comparison=gate_pb2.GATE_COMPARISON_VALUE_AT_LEAST,
        threshold_micros=1_000_000,
        reason="a test's",
    )
    content = gate_pb2.GateProfile(schema=1, name="whole", demo=True, requirements=[requirement])
    path = tmp_path / "profiles" / "whole.json"
    path.parent.mkdir()
    path.write_text(json_format.MessageToJson(content))
    return path


@pytest.fixture
def suite(tmp_path: Path, profile: Path) -> Iterator[Suite]:
    pinned = {
        "KALA_TRAINER_PROFILES_DIR": str(profile.parent),
        "KALA_INFERENCE_GATE_PROFILES": str(profile),
        "KALA_TRAINER_THREADS": "1",
        "KALA_TRAINER_PUBLISH_URL": f"file://{tmp_path / 'published'}",
    }
    with running_suite(tmp_path / "state", **pinned) as running:
        yield running


def test_a_served_adapter_is_verified_exported_and_ended(suite: Suite, profile: Path, tmp_path: Path) -> None:
    def run(*arguments: str | Path, code: int = 0) -> str:
        done = kala(*arguments, "--state", suite.state, env=environment(), timeout=600)
        assert done.returncode == code, f"{arguments}: {done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    def chat() -> httpx.Response:
        body = {"model": "kala-demo", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 8}
        headers = {"authorization": f"Bearer {suite.key}", "x-kala-adapters": "adapters/tone@1"}
        return httpx.post(f"{suite.url}/v1/chat/completions", json=body, headers=headers, timeout=60)

    (tmp_path / "job.yaml").write_text(JOB)
    run("train", "submit", tmp_path / "job.yaml", "--wait")
    # Two steps are a candidate, and the gate is what makes them more.
    assert run("adapters", "verify", "tone@1", "--profile", profile, code=1)
    run("adapters", "promote", "tone@1")
    run("adapters", "load", "tone@1")
    answer = chat()
    assert answer.status_code == 200, answer.text

    verified = json.loads(run("adapters", "verify", "tone@1", "--profile", profile, "--json"))
    assert verified["datasets"][0]["dataset"] == "datasets/tone@1"
    published = tmp_path / "published" / "tone@1"
    assert run("adapters", "verify", published, "--profile", profile)

    exported = json.loads(run("adapters", "export", "tone@1", "--format", "gguf-merged", "--json"))
    assert (Path(exported["location"]) / "model.gguf").is_file()
    assert all(check["passed"] for check in exported["checks"])

    assert "tone@1" in run("adapters", "revoke", "tone@1", "--reason", "the test is over")
    refused = chat()
    assert refused.status_code in {400, 409, 412}, refused.text
    assert "is revoked" in refused.text
    assert "is revoked" in run("adapters", "verify", "tone@1", "--profile", profile, code=1)
