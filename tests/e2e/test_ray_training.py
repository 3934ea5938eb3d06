"""A job of two workers on a Ray cluster whose processes were started apart; one worker is killed in the middle."""

from __future__ import annotations

import asyncio
import os
import re
import signal
from pathlib import Path

import pytest

from kala.errors import FailedPreconditionError
from kala.trainer.v1 import job_pb2
from services.trainer.executors.model import Task
from services.trainer.executors.ray import RayExecutor
from services.trainer.work.events import Event, EventReader
from services.trainer.work.log_lines import LogReader
from services.trainer.work.results import read_result
from tests.e2e.ray_cluster import RayCluster, ray_cluster
from tests.fakes.training_jobs import order, spec

pytestmark = [pytest.mark.torch, pytest.mark.timeout(280)]

STEPS = 120
KILLED_AT = 30
CHECKPOINT_STEPS = 10


@pytest.fixture(scope="module")
def cluster():
    with ray_cluster() as started:
        yield started


def executor(cluster: RayCluster) -> RayExecutor:
    return RayExecutor(address=cluster.address, token_file=cluster.token_file)


def two_workers(**values: object) -> job_pb2.TrainingSpec:
    wanted = spec(placement=job_pb2.Placement(executor=job_pb2.EXECUTOR_RAY, workers=2, cpus_per_worker=1))
    for name, value in values.items():
        setattr(wanted.hyperparameters, name, value)
    return wanted


async def test_a_job_goes_on_from_its_last_checkpoint_when_a_worker_is_killed(cluster, tmp_path: Path):
    wanted = two_workers(max_steps=STEPS, checkpoint_steps=CHECKPOINT_STEPS)
    folder = order(tmp_path, wanted)
    ids: list[str] = []

    async def attached(job_id: str) -> None:
        ids.append(job_id)

    running = asyncio.create_task(executor(cluster).run(Task(folder, 1, wanted.placement), attached))
    await kill_worker(folder, running, rank=1)
    ended = await running
    assert ended.exit_code == 0, ended.last_lines
    assert ids[0].startswith("kala-")

    events = EventReader(folder).read(limit=10_000)
    incident = next(message for message in messages(events, job_pb2.IncidentEvent))
    assert incident.kind == "WORKER_LOST"
    assert CHECKPOINT_STEPS <= incident.resumes_from_step < STEPS
    saved = [each.step for each in messages(events, job_pb2.CheckpointEvent)]
    before = [step for step in saved if step <= incident.resumes_from_step]
    # No checkpoint that was told is lost, however late the worker died.
    assert incident.resumes_from_step == max(before)
    assert saved == sorted(set(saved))
    states = [each.state for each in messages(events, job_pb2.TrainingProgress)]
    assert job_pb2.JOB_STATE_RESUMING in states

    result = read_result(folder)
    assert (result["steps"], result["workers"], result["resumes"]) == (STEPS, 2, 1)
    assert (folder / "adapter" / "adapter_model.safetensors").is_file()
    assert {line.source for line in LogReader(folder).read(limit=10_000)} >= {"driver", "worker-0"}


@pytest.mark.slow
async def test_what_a_worker_refuses_is_told_once_and_not_tried_again(cluster, tmp_path: Path):
    folder = order(tmp_path, two_workers(max_steps=3, learning_rate=1e30))

    async def attached(_: str) -> None:
        return

    ended = await executor(cluster).run(Task(folder, 1, two_workers().placement), attached)
    assert ended.exit_code == 2, ended.last_lines
    with pytest.raises(FailedPreconditionError, match="the loss was no number"):
        ended.result(folder)
    assert not messages(EventReader(folder).read(limit=10_000), job_pb2.IncidentEvent)


async def kill_worker(folder: Path, running: asyncio.Task[object], *, rank: int) -> None:
    """Kill the worker of this rank in the middle of the run."""
    reader, step = EventReader(folder), 0
    while step < KILLED_AT:
        assert not running.done(), running
        step = max([step, *(each.step for each in messages(reader.read(), job_pb2.TrainingProgress))])
        await asyncio.sleep(0.05)
    said = "\n".join(line.text for line in LogReader(folder).read(limit=10_000))
    found = re.search(rf"kala worker {rank} is process ([0-9]+)", said)
    assert found, said
    os.kill(int(found[1]), signal.SIGKILL)


def messages(events: list[Event], kind: type) -> list:
    return [event.message for event in events if isinstance(event.message, kind)]


@pytest.mark.slow
async def test_a_local_ray_is_started_for_a_job_and_is_gone_after_it(tmp_path: Path):
    wanted = two_workers()
    folder = order(tmp_path, wanted)

    async def attached(_: str) -> None:
        return

    started = RayExecutor(address=None, token_file=None)
    ended = await started.run(Task(folder, 1, wanted.placement), attached)
    assert ended.exit_code == 0, ended.last_lines
    assert read_result(folder)["workers"] == 2
    assert started._local._running is None
