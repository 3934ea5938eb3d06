from __future__ import annotations

import math
from pathlib import Path

import pytest

from kala.errors import FailedPreconditionError
from services.trainer.training.trackers import MetricsFile, Trackers, open_trackers, read_metrics
from tests.fakes.mlflow_server import mlflow_server


class _Broken:
    def __init__(self) -> None:
        self.asked = 0

    def log(self, step: int, values: object) -> None:
        self.asked += 1
        raise OSError("the disk is gone")

    def close(self) -> None:
        raise AssertionError("a tracker that broke is asked nothing more")


def test_a_broken_tracker_is_told_once_and_the_others_go_on(tmp_path: Path) -> None:
    told: list[tuple[str, str]] = []
    broken, file = _Broken(), MetricsFile(tmp_path / "metrics.jsonl", resume_step=0)
    with Trackers({"x": broken, "metrics": file}, lambda *fault: told.append(fault)) as trackers:
        trackers.log(1, {"loss": 2.0})
        trackers.log(2, {"loss": 1.0})
    assert broken.asked == 1
    assert told == [("x", "_Broken left out: the disk is gone")]
    assert [(row["step"], row["loss"]) for row in read_metrics(tmp_path / "metrics.jsonl")] == [
        (1, 2.0),
        (2, 1.0),
    ]


def test_a_resumed_run_has_every_step_once(tmp_path: Path) -> None:
    with open_trackers(tmp_path) as first:
        for step in (1, 2, 3):
            first.log(step, {"loss": 10.0 - step})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')
    with open_trackers(tmp_path, resume_step=2) as second:
        second.log(3, {"loss": 0.5})
    assert [(row["step"], row["loss"]) for row in read_metrics(tmp_path / "metrics.jsonl")] == [
        (1, 9.0), (2, 8.0), (3, 0.5),
    ]  # fmt: skip


def test_a_number_that_is_none_is_a_gap_and_not_broken_json(tmp_path: Path) -> None:
    with open_trackers(tmp_path) as trackers:
        trackers.log(1, {"loss": math.nan, "learning_rate": 0.1})
    (row,) = read_metrics(tmp_path / "metrics.jsonl")
    assert "loss" not in row
    assert row["learning_rate"] == 0.1


def test_mlflow_without_a_server_is_refused_before_a_step_is_taken(tmp_path: Path) -> None:
    with pytest.raises(FailedPreconditionError, match="KALA_TRAINER_MLFLOW_URI"):
        open_trackers(tmp_path, ["mlflow"])


def test_an_unknown_tracker_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FailedPreconditionError, match="'wandb'"):
        open_trackers(tmp_path, ["wandb"])


@pytest.mark.filterwarnings("ignore")  # mlflow and pydantic warn about themselves
def test_mlflow_gets_every_number_with_its_step_and_the_end(tmp_path: Path) -> None:
    pytest.importorskip("mlflow")
    with mlflow_server() as server:
        with open_trackers(
            tmp_path, ["mlflow"], run_name="trainingJobs/1", parameters={"rank": "8"}, mlflow_uri=server.url
        ) as trackers:
            for step in (1, 2, 3):
                trackers.log(step, {"loss": 1.0 / step})
        assert [(name, step) for name, step, _ in server.metrics] == [("loss", 1), ("loss", 2), ("loss", 3)]
        assert server.parameters == {"rank": "8"}
        assert server.ended == ["FINISHED"]


@pytest.mark.filterwarnings("ignore")
def test_a_server_that_refuses_costs_the_tracker_and_not_the_run(tmp_path: Path) -> None:
    pytest.importorskip("mlflow")
    told: list[str] = []
    with mlflow_server() as server:
        server.fails_metrics = True
        with open_trackers(
            tmp_path, ["mlflow"], mlflow_uri=server.url, on_fault=lambda name, _: told.append(name)
        ) as trackers:
            trackers.log(1, {"loss": 1.0})
    assert told == ["mlflow"]
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 1


@pytest.mark.filterwarnings("ignore")
def test_a_server_that_is_down_at_the_start_is_left_out(tmp_path: Path) -> None:
    pytest.importorskip("mlflow")
    told: list[str] = []
    with open_trackers(
        tmp_path, ["mlflow"], mlflow_uri="http://127.0.0.1:9", on_fault=lambda name, _: told.append(name)
    ) as trackers:
        trackers.log(1, {"loss": 1.0})
    assert told == ["mlflow"]


@pytest.mark.torch
@pytest.mark.filterwarnings("ignore")  # tensorboard warns about itself
def test_tensorboard_reads_what_was_logged(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with open_trackers(tmp_path, ["tensorboard"]) as trackers:
        trackers.log(1, {"loss": 2.0})
        trackers.log(2, {"loss": 1.5})
    read = EventAccumulator(str(tmp_path / "tensorboard"))
    read.Reload()
    assert [(event.step, event.value) for event in read.Scalars("train/loss")] == [(1, 2.0), (2, 1.5)]
