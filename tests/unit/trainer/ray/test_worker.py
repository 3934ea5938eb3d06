"""One of Ray's workers, in this process: what it tells, what it refuses, and what it leaves to another try."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from kala.errors import DataLossError, FailedPreconditionError, VerificationError
from kala.trainer.v1 import job_pb2
from services.trainer.ray import worker
from services.trainer.ray.__main__ import logged
from services.trainer.work.events import EventReader
from services.trainer.work.log_lines import LogReader
from services.trainer.work.results import ERROR, RESULT, read_error
from tests.fakes.training_jobs import order, spec

pytestmark = pytest.mark.torch


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch):
    """Stands for Ray: one worker of one, on the CPU."""
    context = SimpleNamespace(get_world_rank=lambda: 0, get_world_size=lambda: 1)
    train = SimpleNamespace(get_context=lambda: context, torch=SimpleNamespace(get_device=lambda: "cpu"))
    monkeypatch.setitem(__import__("sys").modules, "ray", SimpleNamespace(train=train))
    monkeypatch.setitem(__import__("sys").modules, "ray.train", train)
    monkeypatch.setitem(__import__("sys").modules, "ray.train.torch", train.torch)


def run(folder: Path) -> None:
    worker.train_worker({"folder": str(folder), "threads": 1})


def incidents(folder: Path) -> list[job_pb2.IncidentEvent]:
    events = EventReader(folder).read(limit=1_000)
    return [each.message for each in events if isinstance(each.message, job_pb2.IncidentEvent)]


def test_a_worker_that_leads_leaves_the_result_and_tells_of_no_incident(tmp_path: Path):
    folder = order(tmp_path)
    run(folder)
    assert json.loads((folder / RESULT).read_text())["steps"] == 6
    assert incidents(folder) == []
    assert not (folder / worker.NOTE).exists()


def test_a_run_that_was_cut_is_told_with_the_step_it_goes_on_from(tmp_path: Path):
    folder = order(tmp_path)
    run(folder)
    (folder / worker.NOTE).write_text("{}")
    run(folder)
    assert [(each.kind, each.resumes_from_step) for each in incidents(folder)] == [("WORKER_LOST", 6)]


def test_what_would_come_again_is_told_once_and_then_left(tmp_path: Path):
    wanted = spec()
    wanted.lora.target_modules[:] = ["no_such_module"]
    folder = order(tmp_path, wanted)
    with pytest.raises(Exception, match="no_such_module"):
        run(folder)
    told = read_error(folder)
    assert told is not None
    assert "no_such_module" in told.message
    run(folder)
    assert not (folder / RESULT).exists()


def test_what_may_pass_is_left_to_another_try(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def broken(*_: object, **__: object) -> None:
        raise DataLossError("a checkpoint was damaged")

    monkeypatch.setattr(worker, "train", broken)
    folder = order(tmp_path)
    with pytest.raises(DataLossError):
        run(folder)
    assert not (folder / ERROR).exists()


def test_an_order_that_was_altered_is_refused(tmp_path: Path):
    folder = order(tmp_path)
    sealed = folder / "sealed.binpb"
    sealed.write_bytes(sealed.read_bytes().replace(b"larger", b"smalle"))
    with pytest.raises(Exception, match="order's action is not the one judged"):
        run(folder)
    assert (folder / ERROR).exists()


def test_rows_that_were_changed_since_they_were_cleared_are_not_learned(tmp_path: Path):
    folder = order(tmp_path)
    (tmp_path / "data" / "train.jsonl").write_text("{}")
    with pytest.raises(VerificationError):
        run(folder)
    assert (folder / ERROR).exists()


def test_another_leader_in_the_folder_is_not_joined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from services.trainer.work.bounds import hold_folder

    folder = order(tmp_path)
    (folder / worker.LEAD).mkdir()
    monkeypatch.setattr(worker, "hold_folder", lambda path: hold_folder(path, wait_seconds=0.1))
    with hold_folder(folder / worker.LEAD), pytest.raises(FailedPreconditionError, match="still works here"):
        run(folder)
    assert not (folder / ERROR).exists()


def test_the_log_tells_workers_apart(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    lines = (
        b"\x1b[36m(RayTrainWorker pid=41, ip=10.0.0.1)\x1b[0m kala worker 0 is process 41\n"
        b"(RayTrainWorker pid=42) kala worker 1 is process 42\n"
        b"(RayTrainWorker pid=41) hello\n(TrainController pid=9) started\n"
    )
    with logged(tmp_path):
        os.write(1, lines)
        os.write(2, b"last words\n")
    told = [(line.source, line.text) for line in LogReader(tmp_path).read()]
    assert told == [
        ("worker-0", "kala worker 0 is process 41"),
        ("worker-1", "kala worker 1 is process 42"),
        ("worker-0", "hello"),
        ("driver", "(TrainController pid=9) started"),
        ("driver", "last words"),
    ]
    os.write(1, b"back\n")
    assert "back" in capfd.readouterr().out
