"""A fine-tuning job from OpenAI's client to the real trainer and its gate, and no model for one that fails it."""

from __future__ import annotations

import json
import time
from pathlib import Path

import openai
import pytest
from openai.types.fine_tuning import FineTuningJob

from tests.e2e.suites import running_suite
from tests.fakes.small_gate import NAME, write_small_gate

pytestmark = [pytest.mark.slow, pytest.mark.torch, pytest.mark.timeout(600)]

TRAIN_SECONDS = 400
ROWS = 60


def test_the_real_trainer_takes_an_uploaded_file_and_its_gate_decides(tmp_path: Path) -> None:
    gate = write_small_gate(tmp_path / "gate")
    with (
        running_suite(
            tmp_path / "state", KALA_TRAINER_THREADS="1", KALA_GATEWAY_FINE_TUNING_GATE=NAME, **gate
        ) as suite,
        openai.OpenAI(base_url=f"{suite.url}/v1", api_key=suite.key, max_retries=0) as client,
    ):
        wrong = _ended(client, _create(client, b'{"messages": [{"role": "user", "content": "?"}]}\n'))
        assert wrong.status == "failed"
        assert wrong.error is not None
        assert (wrong.error.code, wrong.error.param) == ("invalid_training_file", "training_file")
        done = _ended(client, _create(client, _rows()))
        # One step teaches the small model nothing of what the gate asks.
        assert done.error is not None
        assert (done.status, done.error.code, done.fine_tuned_model) == ("failed", "gate_failed", None)
        assert (done.trained_tokens or 0) > 0
        events = client.fine_tuning.jobs.list_events(done.id, limit=100).data
        assert any(event.type == "metrics" for event in events)
        assert list(client.fine_tuning.jobs.checkpoints.list(done.id)) == []
        laid = suite.state.rglob("fine-tuning/*.jsonl")
        assert list(laid) == []


def _create(client: openai.OpenAI, rows: bytes) -> str:
    file = client.files.create(file=("t.jsonl", rows), purpose="fine-tune")
    job = client.fine_tuning.jobs.create(
        model="kala-embedded",
        training_file=file.id,
        suffix="desk",
        method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 1}}},
    )
    return job.id


def _rows() -> bytes:
    return b"".join(
        json.dumps(
            {
                "messages": [
                    {"role": "user", "content": f"Which desk is this for: box {number}?"},
                    {"role": "assistant", "content": "Returns."},
                ]
            }
        ).encode()
        + b"\n"
        for number in range(ROWS)
    )


def _ended(client: openai.OpenAI, job_id: str) -> FineTuningJob:
    deadline = time.monotonic() + TRAIN_SECONDS
    while time.monotonic() < deadline:
        job = client.fine_tuning.jobs.retrieve(job_id)
        if job.status in {"succeeded", "failed", "cancelled"}:
            return job
        time.sleep(1)
    pytest.fail(f"{job_id} has not ended")
