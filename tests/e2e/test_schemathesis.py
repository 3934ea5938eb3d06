"""schemathesis against real processes: every answer is as /openapi.json says, and nothing but declared 5xx comes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tests.e2e.suites import Suite, running_suite
from tests.fakes.lm_studio import FakeLMStudio

CONFIGURATION = Path(__file__).with_name("schemathesis.toml")
NOT_A_PROMISE = "negative_data_rejection,positive_data_acceptance"
"""JSON Schema cannot say all that the contracts demand, and protobuf's JSON takes more than one spelling."""


def run(folder: Path, url: str, key: str, *options: str, seconds: float) -> None:
    """Run the program, and fail with what it found."""
    done = subprocess.run(
        [
            Path(sys.executable).with_name("schemathesis"), "--config-file", CONFIGURATION, "run", f"{url}/openapi.json",
            "--header", f"Authorization: Bearer {key}", "--exclude-checks", NOT_A_PROMISE, "--request-timeout", "60",
            "--warnings", "off", "--no-color", *options,
        ],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=seconds,
    )  # fmt: skip
    found = done.stdout.partition("= FAILURES =")[2] or done.stdout
    assert done.returncode == 0, found[-8000:] + done.stderr[-2000:]
    assert "passed" in done.stdout


def key_of(suite: Suite, *scopes: str) -> str:
    """A key in a tenant of its own."""
    made = httpx.post(
        f"{suite.url}/kala/v1/gateway/keys",
        json={
            "display_name": "schemathesis",
            "tenant": "fuzzed",
            "scopes": [f"SCOPE_{scope}" for scope in scopes],
        },
        headers={"authorization": f"Bearer {suite.key}"},
        trust_env=False,
    )
    assert made.status_code == 200, made.text
    return str(made.json()["secret"])


@pytest.mark.timeout(300)
def test_examples_and_some_made_up_requests(suite: Suite, tmp_path: Path) -> None:
    # Without the scope admin: settings of the shared suite stay as they are, and 403 has its shape too.
    key = key_of(suite, "CHAT", "TOOLS", "TRAIN", "AUDIT_READ")
    run(tmp_path, suite.url, key, "--phases", "examples,fuzzing", "-n", "2", "--no-shrink", seconds=280)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_every_boundary_and_many_made_up_requests_by_an_administrator(
    tmp_path: Path, upstream: FakeLMStudio
) -> None:
    with running_suite(tmp_path / "state", KALA_INFERENCE_LMSTUDIO_URL=upstream.url) as suite:
        phases = ("--phases", "examples,coverage,fuzzing,stateful")
        run(tmp_path, suite.url, suite.key, *phases, "-n", "30", "--continue-on-failure", seconds=3500)
