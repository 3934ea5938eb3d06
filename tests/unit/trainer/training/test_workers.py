"""Several workers train what one would: the same steps over the same rows, whatever they share the model by."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kala.errors import InvalidArgumentError
from services.common.adapter_weights import WEIGHTS_FILE
from services.trainer.training.world import World
from tests.fakes import training_workers
from tests.fakes.training_jobs import preference, write_dataset
from tests.fakes.warm_process import WarmProcess

pytestmark = pytest.mark.torch


def train(root: Path, size: int, parallelism: str, stop_after: int = 0) -> None:
    """Let so many workers train in `root`."""
    if not (root / "data").is_dir():
        root.mkdir(exist_ok=True)
        write_dataset(root / "data")
        write_dataset(root / "pairs", preference)
    (root / "meeting").unlink(missing_ok=True)
    (root / "job").mkdir(exist_ok=True)
    workers = [
        WarmProcess(training_workers.main, root, rank, size, parallelism, 4, stop_after)
        for rank in range(size)
    ]
    for worker in workers:
        output, _ = worker.communicate(timeout=240)
        assert worker.returncode == 0, output.decode()[-4000:]


def result(root: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((root / "result-0.json").read_text())
    return found


def losses(root: Path) -> list[float]:
    lines = (root / "job/reports/metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines if "loss" in json.loads(line)]


def test_two_workers_take_the_steps_of_one_in_all_stages(tmp_path):
    import torch
    from safetensors.torch import load_file

    one, two = tmp_path / "one", tmp_path / "two"
    train(one, 1, "ddp")
    train(two, 2, "ddp")
    assert (result(one)["tokens"], result(two)["workers"]) == (result(two)["tokens"], 2)
    # Dropout is drawn by each worker for itself, so the numbers are near and not the same.
    assert losses(two) == pytest.approx(losses(one), rel=0.1)
    first, second = (load_file(root / "job/adapter" / WEIGHTS_FILE) for root in (one, two))
    assert all(torch.allclose(first[name], second[name], atol=0.02) for name in first)


@pytest.mark.slow
def test_two_workers_that_share_one_model_leave_the_base_that_one_would(tmp_path):
    from safetensors.torch import load_file

    one, two = tmp_path / "one", tmp_path / "two"
    train(one, 1, "fsdp")
    train(two, 2, "fsdp")
    assert losses(two) == pytest.approx(losses(one), rel=1e-3)
    # Of the weights themselves some have no gradient but rounding, for which AdamW takes whole steps either way.
    first, second = (result(root)["metrics"]["validation_loss"] for root in (one, two))
    assert first == pytest.approx(second, rel=1e-3)
    keys = [load_file(root / "job/base/model.safetensors").keys() for root in (one, two)]
    assert keys[0] == keys[1]


@pytest.mark.slow
def test_two_workers_that_share_one_model_go_on_from_their_checkpoint(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    train(one, 2, "fsdp")
    train(two, 2, "fsdp", stop_after=4)
    train(two, 2, "fsdp")
    assert result(two)["resumes"] == 1
    assert losses(two) == losses(one)


@pytest.mark.slow
def test_two_workers_that_share_a_base_leave_the_adapter_that_one_would(tmp_path):
    from safetensors.torch import load_file

    one, two = tmp_path / "one", tmp_path / "two"
    train(one, 1, "fsdp-lora")
    train(two, 2, "fsdp-lora")
    assert losses(two) == pytest.approx(losses(one), rel=0.1)
    first, second = (load_file(root / "job/adapter" / WEIGHTS_FILE) for root in (one, two))
    assert {name: tensor.shape for name, tensor in first.items()} == {
        name: tensor.shape for name, tensor in second.items()
    }


def test_a_batch_that_leaves_a_worker_idle_is_refused():
    with pytest.raises(InvalidArgumentError, match="at least the number of workers, 4"):
        World(0, 4).require_batch(2, parallelism="ddp")
    with pytest.raises(InvalidArgumentError, match="a multiple of the number of workers, 4"):
        World(0, 4).require_batch(6, parallelism="fsdp")
