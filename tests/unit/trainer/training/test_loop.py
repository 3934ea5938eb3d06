"""One run of the loop on the shipped model: an adapter that others can read, and the same bytes however often it is cut."""

from __future__ import annotations

import json

import pytest

from kala.common.v1 import adapter_pb2
from kala.errors import CancelledError
from kala.trainer.v1 import job_pb2
from services.common.adapter_weights import CONFIG_FILE, WEIGHTS_FILE
from services.trainer.training.run import run_work
from services.trainer.work.events import EventReader
from services.trainer.work.results import read_error, read_result
from tests.fakes.training_jobs import EMBEDDED, Told, order, start, work

pytestmark = pytest.mark.torch


@pytest.fixture(autouse=True)
def one_thread():
    import torch

    torch.set_num_threads(1)


def test_a_run_leaves_an_adapter_whose_shape_is_what_was_asked(tmp_path):
    from services.trainer.registry.shape import read_shape

    told = Told()
    result = run_work(work(tmp_path), told)
    folder = tmp_path / "job" / "adapter"
    weights = (folder / WEIGHTS_FILE).read_bytes()
    lora = read_shape((folder / CONFIG_FILE).read_bytes(), weights, requested=["embed_out"])
    assert (lora.rank, lora.alpha, lora.tensor_type) == (4, 8, adapter_pb2.TENSOR_TYPE_F32)
    assert {t.module: t.matched for t in lora.targets} == {
        "dense": 4, "embed_in": 1, "lm_head": 1, "query_key_value": 4,
    }  # fmt: skip
    assert next(t.requested for t in lora.targets if t.module == "lm_head") == "embed_out"
    assert result["steps"] == 6
    assert result["tokens"] > 0
    progress = told.of(job_pb2.TrainingProgress)
    assert [progress[0].state, progress[-1].state] == [
        job_pb2.JOB_STATE_STARTING, job_pb2.JOB_STATE_SAVING,
    ]  # fmt: skip
    assert [each.step for each in told.of(job_pb2.CheckpointEvent)] == [2, 4, 6]


def test_peft_reads_the_adapter_and_gives_the_logits_that_were_trained(tmp_path):
    import torch
    from peft import PeftModel
    from transformers import GPTNeoXForCausalLM

    from services.trainer.training.loop import Hooks, Trainer
    from services.trainer.training.saving import save

    job = work(tmp_path)
    outcome = Trainer(job, Hooks(Told())).run()
    save(job, outcome)
    base = GPTNeoXForCausalLM.from_pretrained(EMBEDDED, dtype=torch.float32)
    read = PeftModel.from_pretrained(base, str(tmp_path / "job" / "adapter")).eval()
    ids = torch.tensor([[5, 60, 700, 9]])
    with torch.no_grad():
        difference = read(input_ids=ids).logits - outcome.loaded.model.eval()(input_ids=ids).logits
    assert difference.abs().max() == 0


def test_a_run_that_was_cut_ends_with_the_same_bytes_as_one_that_was_not(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    run_work(work(tmp_path / "a"), Told())
    seen: list[int] = []

    def after_three() -> bool:
        seen.append(1)
        return len(seen) == 3

    with pytest.raises(CancelledError):
        run_work(work(tmp_path / "b"), Told(), should_stop=after_three)
    result = run_work(work(tmp_path / "b"), Told())
    assert result["resumes"] == 1
    one, other = (tmp_path / name / "job" / "adapter" / WEIGHTS_FILE for name in "ab")
    assert one.read_bytes() == other.read_bytes()


def test_the_process_trains_what_the_order_says(tmp_path):
    folder = order(tmp_path)
    process = start(folder)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output.decode()
    assert read_result(folder)["steps"] == 6
    assert (folder / "adapter" / WEIGHTS_FILE).is_file()
    states = [
        event.message.state
        for event in EventReader(folder).read()
        if isinstance(event.message, job_pb2.TrainingProgress)
    ]
    assert states[0] == job_pb2.JOB_STATE_STARTING
    assert states[-1] == job_pb2.JOB_STATE_SAVING


def test_the_process_refuses_a_target_that_would_train_nothing(tmp_path):
    from tests.fakes.training_jobs import spec

    folder = order(tmp_path, spec(lora=job_pb2.LoraSpec(rank=4, target_modules=["query_key_valu"])))
    process = start(folder)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 2, output.decode()
    error = read_error(folder)
    assert error is not None
    assert error.reason == "NO_TARGET"
    assert "query_key_value" in error.message


def test_metrics_have_a_line_for_each_step(tmp_path):
    run_work(work(tmp_path), Told())
    lines = (tmp_path / "job" / "reports" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
