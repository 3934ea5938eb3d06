"""What goes wrong in the middle of training is told with its reason and a cure, and costs nothing that was saved."""

from __future__ import annotations

import errno
import json
import random
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest

from kala.common.v1.reference_pb2 import ContentReference
from kala.errors import (
    DataLossError,
    DeadlineExceededError,
    FailedPreconditionError,
    InvalidArgumentError,
    ResourceExhaustedError,
    VerificationError,
)
from kala.trainer.v1 import job_pb2
from services.common.adapter_weights import WEIGHTS_FILE
from services.trainer.training import loop
from services.trainer.training.checkpoints import Checkpoints
from services.trainer.training.loop import Hooks, Trainer
from services.trainer.training.recipe import Lora, Recipe
from services.trainer.training.run import run_work, train
from services.trainer.work.events import EventReader
from services.trainer.work.order import read_order
from services.trainer.work.results import read_error, read_result
from tests.fakes.tiny_pythia import make_tiny_pythia
from tests.fakes.training_jobs import ALL_TARGETS, Told, order, spec, start, work, write_dataset
from tests.fakes.warm_process import start_warm

pytestmark = pytest.mark.torch


@pytest.fixture(autouse=True)
def one_thread():
    import torch

    torch.set_num_threads(1)


def test_a_damaged_checkpoint_is_told_and_the_one_before_gives_the_same_adapter(tmp_path):
    job = work(tmp_path)
    run_work(job, Told())
    first = (tmp_path / "job/adapter" / WEIGHTS_FILE).read_bytes()
    weights = tmp_path / "job/checkpoints/step-00000006/weights.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    told = Told()
    run_work(job, told)
    assert [each.kind for each in told.of(job_pb2.IncidentEvent)] == ["CHECKPOINT_DAMAGED"]
    assert (tmp_path / "job/adapter" / WEIGHTS_FILE).read_bytes() == first
    lines = (tmp_path / "job/reports/metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4, 5, 6]  # none twice


def test_a_checkpoint_of_another_job_is_refused(tmp_path):
    run_work(work(tmp_path), Told())
    with pytest.raises(FailedPreconditionError, match="another job"):
        run_work(work(tmp_path, seed=4), Told())


def test_a_dataset_that_changed_meanwhile_is_another_job(tmp_path):
    run_work(work(tmp_path), Told())
    (tmp_path / "data/manifest.json").write_text('{"rows": 61}')
    with pytest.raises(FailedPreconditionError, match="another job"):
        run_work(work(tmp_path), Told())


def test_a_loss_that_is_no_number_ends_the_job_before_it_spoils_the_weights(tmp_path, monkeypatch):
    real = loop.make_objective

    def breaking(*arguments, **named):
        objective = real(*arguments, **named)
        forward, calls = objective.forward, []

        def broken(*given):
            calls.append(1)
            return forward(*given) * (float("nan") if len(calls) > 6 else 1)

        objective.forward = broken
        return objective

    monkeypatch.setattr(loop, "make_objective", breaking)
    with pytest.raises(FailedPreconditionError, match="learning_rate") as caught:
        run_work(work(tmp_path), Told())
    assert caught.value.reason == "NAN_LOSS"
    assert "step 4" in caught.value.message
    assert Checkpoints(tmp_path / "job", kept=2).latest(lambda *_: None).step == 2


def test_a_full_disk_names_the_cure_and_the_job_goes_on_when_there_is_room(tmp_path, monkeypatch):
    whole = tmp_path / "whole"
    whole.mkdir()
    run_work(work(whole), Told())
    real = Checkpoints.save

    def full(self, step, files):
        if step == 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(self, step, files)

    monkeypatch.setattr(Checkpoints, "save", full)
    with pytest.raises(ResourceExhaustedError, match="free space") as caught:
        run_work(work(tmp_path), Told())
    assert caught.value.reason == "DISK_FULL"
    monkeypatch.setattr(Checkpoints, "save", real)
    assert run_work(work(tmp_path), Told())["resumes"] == 1
    one, other = (root / "job/adapter" / WEIGHTS_FILE for root in (whole, tmp_path))
    assert one.read_bytes() == other.read_bytes()


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")])
def test_too_little_memory_names_the_cures_the_mildest_first(tmp_path, monkeypatch, error):
    def greedy(*_arguments, **_named):
        raise error

    monkeypatch.setattr(loop, "collate", greedy)
    with pytest.raises(ResourceExhaustedError) as caught:
        run_work(work(tmp_path), Told())
    assert caught.value.reason == "OUT_OF_MEMORY"
    assert caught.value.message.index("micro_batch_size to 1") < caught.value.message.index("NF4")


def test_a_process_that_may_not_have_the_memory_says_what_it_would_need(tmp_path):
    wanted = spec()
    wanted.hyperparameters.batch_size = wanted.hyperparameters.micro_batch_size = 2048
    folder = order(tmp_path, wanted)
    document = json.loads((folder / "order.json").read_text())
    (folder / "order.json").write_text(json.dumps(document | {"memory_bytes": 2 << 30}))
    process = start(folder)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 2, output.decode()
    error = read_error(folder)
    assert error.reason == "OUT_OF_MEMORY"
    assert "MiB, of which activations" in error.message
    assert "micro_batch_size to 1024" in error.message


def test_the_deadline_ends_the_job_with_a_checkpoint(tmp_path):
    times = iter([1.0, 1.0, 1.0, 3.0])
    job = work(tmp_path, deadline=2.0)
    with pytest.raises(DeadlineExceededError, match="step 3 of 6"):
        Trainer(job, Hooks(Told(), clock=lambda: next(times))).run()
    assert Checkpoints(tmp_path / "job", kept=2).latest(lambda *_: None).step == 3


def test_rows_of_another_kind_are_refused_by_number(tmp_path):
    with pytest.raises(FailedPreconditionError, match="row 1: dpo needs rows with `prompt`"):
        run_work(work(tmp_path, recipe=Recipe(objective="dpo")), Told())


@pytest.mark.parametrize(
    "line", [b"{", b"\xff\xfe", b"[]", b'{"messages": 3}', b'{"messages": [{"role": "user"}]}', b"", b"17"],
    ids=["half", "encoding", "list", "number", "field", "empty", "scalar"],
)  # fmt: skip
def test_a_damaged_row_is_named_and_not_learned(tmp_path, line):
    data = write_dataset(tmp_path / "data")
    rows = (data / "train.jsonl").read_bytes().splitlines()
    rows[3] = line
    (data / "train.jsonl").write_bytes(b"\n".join(rows) + b"\n")
    with pytest.raises(DataLossError, match=r"train.jsonl row 4"):
        run_work(work(tmp_path), Told())


def test_an_empty_dataset_and_a_missing_one_are_refused(tmp_path):
    data = write_dataset(tmp_path / "data", rows=0)
    with pytest.raises(FailedPreconditionError, match="no row"):
        run_work(work(tmp_path), Told())
    (data / "train.jsonl").unlink()
    with pytest.raises(DataLossError, match="build the dataset again"):
        run_work(work(tmp_path), Told())


def test_tied_embeddings_with_embedding_targets_are_refused(tmp_path):
    base = make_tiny_pythia(tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    with pytest.raises(InvalidArgumentError, match="one matrix") as caught:
        run_work(work(tmp_path, base=base, lora=Lora(2, 4, 0.0, ALL_TARGETS)), Told())
    assert caught.value.reason == "TIED_EMBEDDINGS"


@pytest.mark.parametrize("name", ["attention", "query_key", "layers", "gpt_neox.embed_in", ""])
def test_a_target_that_is_no_matrix_of_the_base_is_refused(tmp_path, name):
    with pytest.raises(InvalidArgumentError, match="matches no matrix"):
        run_work(work(tmp_path, lora=Lora(2, 4, 0.0, ("dense", name))), Told())


def test_an_unknown_base_and_poisoned_weights_are_refused(tmp_path):
    (tmp_path / "nothing").mkdir()
    with pytest.raises(FailedPreconditionError, match="no base model"):
        run_work(work(tmp_path, base=tmp_path / "nothing"), Told())
    base = make_tiny_pythia(tmp_path / "base")
    (base / "model.safetensors").write_bytes(b"\x80\x04pickle")
    with pytest.raises(VerificationError, match="cannot be read"):
        run_work(work(tmp_path, base=base), Told())


def test_a_base_that_is_not_the_one_that_was_cleared_is_not_trained(tmp_path):
    folder = order(tmp_path)
    document = json.loads((folder / "order.json").read_text())
    document["base"]["directory"] = str(make_tiny_pythia(tmp_path / "another"))
    (folder / "order.json").write_text(json.dumps(document))
    process = start(folder)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 2, output.decode()
    assert "digest of its files" in read_error(folder).message


def test_training_that_changes_nothing_is_no_adapter(tmp_path):
    job = work(tmp_path)
    still = replace(job.stages[0].recipe, learning_rate=1e-30)
    with pytest.raises(FailedPreconditionError, match="changed no matrix"):
        run_work(work(tmp_path, recipe=still), Told())


def test_sigterm_ends_the_process_with_a_checkpoint_and_says_so(tmp_path):
    long = spec(base=ContentReference(name="kala-embedded"))
    long.hyperparameters.max_steps = 100_000
    long.hyperparameters.checkpoint_steps = 100_000
    folder = order(tmp_path, long)
    process = start_warm(folder)
    _wait_for_step(folder, process)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 2, output.decode()
    assert read_error(folder).reason == "STOPPED"
    assert Checkpoints(folder, kept=1).latest(lambda *_: None).step > 0


@pytest.mark.timeout(1_800)
@pytest.mark.parametrize(
    ("kills", "steps", "begin"),
    [(2, 30, start_warm), pytest.param(20, 800, start, marks=pytest.mark.slow)],
    ids=["2", "20"],
)
def test_no_saved_checkpoint_is_lost_over_kills_at_random_moments(tmp_path, kills, steps, begin):
    """After each kill the next life goes on from the newest checkpoint that was told, or a later one."""
    wanted = spec()
    wanted.hyperparameters.max_steps = steps
    wanted.hyperparameters.checkpoint_steps = 3
    folder, moments, saved = order(tmp_path, wanted), random.Random(kills), 0
    for _ in range(kills):
        process = begin(folder)
        before = saved
        while not (folder / "result.json").exists() and _saved(folder) <= before and process.poll() is None:
            time.sleep(0.01)
        time.sleep(moments.random() * 0.3)
        process.kill()
        process.communicate()
        told = _saved(folder)
        found = Checkpoints(folder, kept=2).latest(lambda step, problem: pytest.fail(f"{step}: {problem}"))
        assert found is not None
        assert found.step >= told > before
        saved = told
    process = begin(folder)
    output, _ = process.communicate(timeout=900)
    assert process.returncode == 0, output.decode()
    result = read_result(folder)
    assert result["steps"] == steps
    assert 1 <= result["resumes"] <= kills
    uncut = tmp_path / "uncut"
    uncut.mkdir()
    one = order(uncut, wanted)
    train(read_order(one), Told())
    assert (one / "adapter" / WEIGHTS_FILE).read_bytes() == (folder / "adapter" / WEIGHTS_FILE).read_bytes()


def _saved(folder: Path) -> int:
    events = EventReader(folder).read(limit=100_000)
    return max((e.message.step for e in events if isinstance(e.message, job_pb2.CheckpointEvent)), default=0)


def _wait_for_step(folder: Path, process) -> None:
    while process.poll() is None:
        events = EventReader(folder).read()
        if any(isinstance(e.message, job_pb2.TrainingProgress) and e.message.step for e in events):
            return
        time.sleep(0.02)
    raise AssertionError(process.communicate()[0].decode())
