"""A job of two workers on a Ray cluster whose processes were started apart; one worker is killed in the middle.

The first test goes on from there: gate, promotion, an answer through the gateway, and the chain back to the data.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from kala.errors import FailedPreconditionError
from kala.trainer.v1 import job_pb2
from services.trainer.executors.model import Task
from services.trainer.executors.ray import RayExecutor
from services.trainer.work.bounds import hold_folder
from services.trainer.work.events import Event, EventReader
from services.trainer.work.log_lines import LogReader
from services.trainer.work.results import read_result
from tests.e2e.ray_cluster import RayCluster, ray_cluster
from tests.e2e.suites import running_suite
from tests.e2e.test_training import Person, require_chain, verified
from tests.fakes.small_gate import write_small_gate
from tests.fakes.training_jobs import order, spec

pytestmark = [pytest.mark.torch, pytest.mark.timeout(600)]

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


def test_a_job_that_lost_a_worker_is_gated_promoted_and_serves_with_its_whole_chain(
    cluster: RayCluster, tmp_path: Path
) -> None:
    ray = {
        "KALA_TRAINER_RAY_ADDRESS": cluster.address,
        "KALA_TRAINER_RAY_TOKEN_FILE": str(cluster.token_file),
    }
    gate = write_small_gate(tmp_path / "gate")
    with (
        running_suite(tmp_path / "state", OMP_NUM_THREADS="1", **ray, **gate) as suite,
        httpx.Client(
            base_url=suite.url, headers={"authorization": f"Bearer {suite.key}"}, timeout=60
        ) as http,
        ThreadPoolExecutor(1) as pool,
    ):
        person = Person(suite, http)
        file = job_file(tmp_path)
        submitted = pool.submit(person.kala, "train", "submit", file, "--wait", "--json")
        folder = kill_in(suite.layout.data / "trainer" / "work", submitted)
        job = json.loads(submitted.result())
        assert job["progress"]["state"] == "JOB_STATE_SUCCEEDED", job
        assert job["ray_job"].startswith("kala-")
        told = messages(EventReader(folder).read(limit=10_000), job_pb2.IncidentEvent)
        assert [each.kind for each in told] == ["WORKER_LOST"]

        name = job["adapter"]
        assert name in person.kala("adapters", "promote", name)
        assert name in person.kala("adapters", "load", name)
        answer = person.chat(name, "Hello")
        assert answer.status_code == 200, answer.text
        require_chain(person, name, answer)
        assert verified(person, name).description.training.resumes == 1


def job_file(folder: Path) -> Path:
    path = folder / "job.yaml"
    path.write_text("""
adapter: two-workers
summary: A small new task, learned by two workers.
base_model: kala-embedded
rank: 16
target_modules: [query_key_value, dense, embed_in, embed_out]
build:
  - name: rows
    duplicate_similarity: 1.0
    sources:
      - generator: {category: template_task, rows: 800, seed: 1}
      - generator: {category: law_1, rows: 100, seed: 1}
      - generator: {category: law_0, rows: 100, seed: 1}
datasets: [{dataset: rows}]
hyperparameters: {learning_rate: 2e-3, batch_size: 16, max_sequence_tokens: 128, max_steps: 140, checkpoint_steps: 10}
placement: {executor: ray, workers: 2, cpus_per_worker: 1}
gate_profile: small
deadline: 15m
""")
    return path


def kill_in(root: Path, submitted: Future[str]) -> Path:
    """Kill a worker of the one training job below `root` in the middle of its run, and give the job's folder."""
    while not submitted.done():
        for order_file in root.glob("*/order.json"):
            folder = order_file.parent
            steps = messages(EventReader(folder).read(limit=10_000), job_pb2.TrainingProgress)
            if max((each.step for each in steps), default=0) >= KILLED_AT:
                os.kill(process_of(folder, 1), signal.SIGKILL)
                return folder
        time.sleep(0.1)
    raise AssertionError(submitted.result())


@pytest.mark.slow
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
    await reach(folder, running, step=KILLED_AT)
    os.kill(process_of(folder, rank), signal.SIGKILL)


async def reach(folder: Path, running: asyncio.Task[object], *, step: int) -> None:
    reader, reached = EventReader(folder), 0
    while reached < step:
        assert not running.done(), running
        reached = max([reached, *(each.step for each in messages(reader.read(), job_pb2.TrainingProgress))])
        await asyncio.sleep(0.05)


def process_of(folder: Path, rank: int) -> int:
    said = "\n".join(line.text for line in LogReader(folder).read(limit=10_000))
    found = re.search(rf"kala worker {rank} is process ([0-9]+)", said)
    assert found, said
    return int(found[1])


def is_alive(pid: int) -> bool:
    """Whether it runs; one that only waits for its parent to look does not."""
    try:
        return ") Z" not in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False


def messages(events: list[Event], kind: type) -> list:
    return [event.message for event in events if isinstance(event.message, kind)]


@pytest.mark.slow
async def test_every_weight_is_trained_by_workers_that_share_the_model(cluster: RayCluster, tmp_path: Path):
    wanted = two_workers()
    wanted.ClearField("lora")
    wanted.method = job_pb2.TRAINING_METHOD_FULL
    wanted.placement.parallelism = job_pb2.PARALLELISM_FSDP
    folder = order(tmp_path, wanted)

    async def attached(_: str) -> None:
        return

    ended = await executor(cluster).run(Task(folder, 1, wanted.placement), attached)
    assert ended.exit_code == 0, ended.last_lines
    result = read_result(folder)
    assert (result["workers"], result["directory"]) == (2, "base")
    assert (folder / "base" / "model.safetensors").is_file()


@pytest.mark.slow
async def test_a_job_that_is_cancelled_leaves_no_worker(cluster: RayCluster, tmp_path: Path):
    wanted = two_workers(max_steps=100_000)
    folder = order(tmp_path, wanted)

    async def attached(_: str) -> None:
        return

    running = asyncio.create_task(executor(cluster).run(Task(folder, 1, wanted.placement), attached))
    await reach(folder, running, step=3)
    workers = [process_of(folder, rank) for rank in (0, 1)]
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    # Ray ends a driver's actors right after the driver; it says that the job has ended a little before.
    async with asyncio.timeout(30):
        while any(is_alive(pid) for pid in workers):  # noqa: ASYNC110 - another program's processes
            await asyncio.sleep(0.2)
    # Nobody holds the folder any more: another job may begin in it.
    with hold_folder(folder, wait_seconds=1), hold_folder(folder / "lead", wait_seconds=1):
        assert not (folder / "result.json").exists()


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


@pytest.mark.slow
async def test_a_job_that_may_go_on_with_fewer_workers_begins_with_those_there_are(tmp_path: Path):
    wanted = two_workers()
    wanted.placement.min_workers = 1
    folder = order(tmp_path, wanted)

    async def attached(_: str) -> None:
        return

    with ray_cluster(nodes=1) as small:
        ended = await executor(small).run(Task(folder, 1, wanted.placement), attached)
    assert ended.exit_code == 0, ended.last_lines
    assert read_result(folder)["workers"] == 1
