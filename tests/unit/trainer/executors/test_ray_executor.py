"""Work as a job of a Ray cluster: how it is asked for, followed, stopped, and what a cluster that fails comes to."""

from __future__ import annotations

import asyncio
import shlex
from itertools import count
from pathlib import Path

import httpx
import pytest

from kala.errors import FailedPreconditionError, KalaError, PermissionDeniedError, UnavailableError
from kala.trainer.v1 import job_pb2
from services.trainer.executors.model import LET_GO, Task
from services.trainer.executors.ray import RayExecutor
from services.trainer.executors.ray_api import RayApi
from services.trainer.executors.ray_local import ray_environment
from services.trainer.work.log_lines import LogWriter
from tests.fakes.ray_jobs import TOKEN, FakeRayJobs

ADDRESS = "http://ray-head:8265"


class Attached:
    def __init__(self) -> None:
        self.ids: list[str] = []
        self.happened = asyncio.Event()

    async def __call__(self, job_id: str) -> None:
        self.ids.append(job_id)
        self.happened.set()


def executor(
    cluster: FakeRayJobs, tmp_path: Path, *, token: str = TOKEN, seconds: float = 1.0
) -> RayExecutor:
    token_file = tmp_path / "token"
    token_file.write_text(f"{token}\n")
    ticks = count()
    return RayExecutor(
        address=ADDRESS,
        token_file=token_file,
        api=lambda each: RayApi(each.address, each.token, transport=cluster.transport()),
        poll_seconds=0,
        clock=lambda: next(ticks) * seconds,
    )


def task(folder: Path, *, elsewhere_id: str = "") -> Task:
    return Task(folder, 1, job_pb2.Placement(workers=2, cpus_per_worker=3), elsewhere_id)


async def test_a_job_is_submitted_with_the_folder_and_nothing_secret(tmp_path: Path):
    cluster, attached = FakeRayJobs(["PENDING", "RUNNING", "SUCCEEDED"]), Attached()
    ended = await executor(cluster, tmp_path).run(task(tmp_path), attached)
    assert ended.exit_code == 0
    job = cluster.submitted[0]
    assert shlex.split(job["entrypoint"]) == ["python", "-m", "services.trainer.ray", str(tmp_path)]
    assert attached.ids == [job["submission_id"]]
    assert job["runtime_env"]["env_vars"]["OMP_NUM_THREADS"] == "3"
    assert TOKEN not in str(job)


async def test_a_folder_with_spaces_stays_one_argument(tmp_path: Path):
    folder = tmp_path / "a b; rm"
    folder.mkdir()
    cluster = FakeRayJobs(["SUCCEEDED"])
    await executor(cluster, tmp_path).run(task(folder), Attached())
    assert shlex.split(cluster.submitted[0]["entrypoint"])[-1] == str(folder)


@pytest.mark.parametrize(
    ("answers", "exit_code"),
    [
        ([("FAILED", 2)], 2),
        ([("FAILED", 1)], 1),
        ([("FAILED", None)], 1),
        ([("FAILED", 0)], 1),
        (["STOPPED"], 1),
        ([404], 1),
    ],
    ids=["refused", "crashed", "no code", "failed with 0", "stopped by somebody", "forgotten by a new head"],
)
async def test_how_a_job_ended_decides_what_its_work_came_to(tmp_path: Path, answers: list, exit_code: int):
    ended = await executor(FakeRayJobs(["RUNNING", *answers]), tmp_path).run(task(tmp_path), Attached())
    assert ended.exit_code == exit_code


async def test_the_last_lines_of_the_log_say_why(tmp_path: Path):
    log = LogWriter(tmp_path)
    log.write(b"a cure")
    ended = await executor(FakeRayJobs([("FAILED", 1)]), tmp_path).run(task(tmp_path), Attached())
    assert "a cure" in ended.last_lines


async def test_a_head_that_is_silent_for_a_while_is_waited_for(tmp_path: Path):
    cluster = FakeRayJobs(["RUNNING", httpx.ConnectError("gone"), 503, "SUCCEEDED"])
    ended = await executor(cluster, tmp_path).run(task(tmp_path), Attached())
    assert ended.exit_code == 0


async def test_a_head_that_stays_silent_is_a_crash_that_may_be_resumed(tmp_path: Path):
    cluster = FakeRayJobs(["RUNNING", httpx.ConnectError("gone")])
    ended = await executor(cluster, tmp_path, seconds=30).run(task(tmp_path), Attached())
    assert ended.crashed
    assert "does not answer" in ended.last_lines


async def test_a_job_that_an_earlier_life_of_the_service_left_is_followed_and_not_started_again(
    tmp_path: Path,
):
    cluster, attached = FakeRayJobs(["RUNNING", "SUCCEEDED"]), Attached()
    ended = await executor(cluster, tmp_path).run(task(tmp_path, elsewhere_id="kala-old"), attached)
    assert (ended.exit_code, cluster.submitted, attached.ids) == (0, [], ["kala-old"])


async def test_cancelling_stops_the_job_before_it_lets_go(tmp_path: Path):
    cluster, attached = FakeRayJobs(["RUNNING"]), Attached()
    running = asyncio.create_task(executor(cluster, tmp_path).run(task(tmp_path), attached))
    await attached.happened.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert cluster.stopped == attached.ids


async def test_a_service_that_stops_lets_go_of_a_job_that_the_next_one_knows(tmp_path: Path):
    cluster, attached = FakeRayJobs(["RUNNING"]), Attached()
    running = asyncio.create_task(executor(cluster, tmp_path).run(task(tmp_path), attached))
    await attached.happened.wait()
    # One turn: what the service wrote down is known to the next.
    await asyncio.sleep(0)
    running.cancel(LET_GO)
    with pytest.raises(asyncio.CancelledError):
        await running
    assert cluster.stopped == []


async def test_a_service_that_stops_leaves_no_job_that_nobody_knows(tmp_path: Path):
    cluster = FakeRayJobs(["RUNNING"])

    async def never_written(_: str) -> None:
        await asyncio.Event().wait()

    running = asyncio.create_task(executor(cluster, tmp_path).run(task(tmp_path), never_written))
    while not cluster.submitted:  # noqa: ASYNC110 - the fake's list
        await asyncio.sleep(0)
    running.cancel(LET_GO)
    with pytest.raises(asyncio.CancelledError):
        await running
    assert cluster.stopped == [cluster.submitted[0]["submission_id"]]


async def test_a_submission_whose_answer_is_an_error_is_stopped_in_case_it_was_taken(tmp_path: Path):
    cluster = FakeRayJobs(["PENDING"], submit_status=500)
    with pytest.raises(UnavailableError, match="did not take the job"):
        await executor(cluster, tmp_path).run(task(tmp_path), Attached())
    assert cluster.stopped == [cluster.submitted[0]["submission_id"]]


async def test_a_wrong_token_is_named_with_its_cure(tmp_path: Path):
    with pytest.raises(PermissionDeniedError, match="KALA_TRAINER_RAY_TOKEN_FILE"):
        await executor(FakeRayJobs(), tmp_path, token="wrong").run(task(tmp_path), Attached())


async def test_a_cluster_without_a_token_is_not_talked_to(tmp_path: Path):
    with pytest.raises(FailedPreconditionError, match="KALA_TRAINER_RAY_TOKEN_FILE"):
        await RayExecutor(address=ADDRESS, token_file=None).run(task(tmp_path), Attached())
    missing = RayExecutor(address=ADDRESS, token_file=tmp_path / "none")
    with pytest.raises(FailedPreconditionError, match="cannot be read"):
        await missing.run(task(tmp_path), Attached())


@pytest.mark.parametrize("address", ["auto", "ray://head:10001", "head:6379"])
async def test_an_address_that_is_not_the_dashboards_is_refused(tmp_path: Path, address: str):
    (tmp_path / "token").write_text(TOKEN)
    wrong = RayExecutor(address=address, token_file=tmp_path / "token")
    with pytest.raises(KalaError, match="http://ray-head:8265"):
        await wrong.run(task(tmp_path), Attached())


def test_rays_processes_are_told_the_token_by_a_file_and_to_report_to_nobody(tmp_path: Path):
    environment = ray_environment(tmp_path / "token")
    assert environment["RAY_AUTH_MODE"] == "token"
    assert environment["RAY_USAGE_STATS_ENABLED"] == "0"
    assert TOKEN not in str(environment)
