"""How a job ends before its time: cancelled, late, crashed, refused, its service stopped, its person erased."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from google.protobuf.duration_pb2 import Duration
from google.rpc import code_pb2

from kala.errors import (
    FailedPreconditionError,
    InvalidArgumentError,
)
from kala.trainer.v1 import job_pb2
from kala.trainer.v1 import trainer_pb2 as pb
from services.trainer.executors.model import Task
from services.trainer.store.schema import OPERATION
from services.trainer.work.ended import Ended
from services.trainer.work.events import EventWriter
from services.trainer.work.results import EXIT_REFUSED, write_error
from tests.fakes.full_jobs import FULL, at, at_work, never_ends, ready, watch_to_end
from tests.fakes.served_trainer import (
    ANN,
    ScriptedExecutor,
    finishes,
    served_trainer,
    small_spec,
)


async def test_a_cancelled_job_ends_its_process_and_says_who_it_was_to_everybody(tmp_path: Path) -> None:
    executor = ScriptedExecutor(never_ends)
    async with served_trainer(tmp_path, executor=executor) as served:
        operation = await served.create(await ready(served, **FULL))
        job = await at(served, operation, job_pb2.JOB_STATE_STARTING)
        await at_work(executor)
        answer = await served.ask("CancelTrainingJob", pb.CancelTrainingJobRequest(name=job.name))
        assert answer.job.progress.state in (job_pb2.JOB_STATE_CANCELLING, job_pb2.JOB_STATE_CANCELLED)
        ended = await served.ended(operation)
        assert ended.error.code == code_pb2.CANCELLED
        assert executor.ended == [executor.tasks[0].folder]
        assert (await served.job(operation)).progress.state == job_pb2.JOB_STATE_CANCELLED
        assert served.logged("training.ended")[0]["result"]["status"] == "cancelled"
        # Once more is no error and changes nothing.
        again = await served.ask("CancelTrainingJob", pb.CancelTrainingJobRequest(name=job.name))
        assert again.job.progress.state == job_pb2.JOB_STATE_CANCELLED


async def test_a_job_that_waits_can_be_cancelled_before_its_turn(tmp_path: Path) -> None:
    executor = ScriptedExecutor(never_ends)
    async with served_trainer(tmp_path, executor=executor, max_jobs=1) as served:
        spec = await ready(served, **FULL)
        first = await served.create(spec)
        spec.adapter = "adapters/second"
        second = await served.create(spec)
        await served.ask("CancelOperation", pb.CancelOperationRequest(name=second.name))
        assert (await served.ended(second)).error.code == code_pb2.CANCELLED
        assert len(executor.tasks) <= 1
        await served.ask("CancelOperation", pb.CancelOperationRequest(name=first.name))


async def test_a_job_that_passes_its_deadline_is_ended(tmp_path: Path) -> None:
    executor = ScriptedExecutor(never_ends)
    async with served_trainer(tmp_path, executor=executor) as served:
        await served.dataset()
        spec = await served.plan(small_spec(**FULL))
        spec.deadline.CopyFrom(Duration(seconds=1))
        spec = await served.plan(spec)
        ended = await served.ended(await served.create(spec))
        assert ended.error.code == code_pb2.DEADLINE_EXCEEDED
        assert len(executor.ended) == len(executor.tasks)
        spec.deadline.CopyFrom(Duration(seconds=15 * 86_400))
        with pytest.raises((InvalidArgumentError, FailedPreconditionError), match="deadline"):
            await served.create(spec)


async def test_a_crashed_process_goes_on_as_long_as_it_gets_anywhere(tmp_path: Path) -> None:
    watched = asyncio.Event()  # a watch tells what comes after its beginning

    async def crashes_twice(task: Task) -> Ended:
        await watched.wait()
        done = (
            sorted((task.folder / "checkpoints").glob("*")) if (task.folder / "checkpoints").exists() else []
        )
        if len(done) == 2:
            return await finishes(task)
        checkpoint = task.folder / "checkpoints" / f"step-{(len(done) + 1) * 5:08d}"
        checkpoint.mkdir(parents=True)
        (checkpoint / "manifest.json").write_text("{}")
        return Ended(-9, "the last words")

    async with served_trainer(tmp_path, executor=ScriptedExecutor(crashes_twice), max_restarts=0) as served:
        operation = await served.create(await ready(served, **FULL))
        events = await watch_to_end(served, operation, begun=watched)
        incidents = [event.incident for event in events if event.HasField("incident")]
        assert [each.resumes_from_step for each in incidents] == [5, 10]
        assert {each.kind for each in incidents} == {"WORKER_LOST"}
        job = events[-1].job
        assert job.progress.state == job_pb2.JOB_STATE_SUCCEEDED
        assert job.progress.resumes == 2


async def test_a_process_that_only_crashes_fails_the_job_with_its_last_words(tmp_path: Path) -> None:
    executor = ScriptedExecutor(lambda task: crash())

    async def crash() -> Ended:
        return Ended(-9, "Killed")

    async with served_trainer(tmp_path, executor=executor, max_restarts=1) as served:
        operation = await served.create(await ready(served, **FULL))
        ended = await served.ended(operation)
        assert "SIGKILL" in ended.error.message
        assert "Killed" in ended.error.message
        assert len(executor.tasks) == 2
        assert (await served.job(operation)).error_reason == "WORK_CRASHED"


async def test_a_process_cannot_end_its_job_by_saying_so(tmp_path: Path) -> None:
    async def boasts(task: Task) -> Ended:
        events = EventWriter(task.folder)
        events.write(job_pb2.TrainingProgress(state=job_pb2.JOB_STATE_SUCCEEDED, step=9), force=True)
        return await never_ends(task)

    async with served_trainer(tmp_path, executor=ScriptedExecutor(boasts)) as served:
        operation = await served.create(await ready(served, **FULL))
        for _ in range(500):
            job = await served.job(operation)
            if job.progress.step == 9:
                break
            await asyncio.sleep(0.01)
        assert job.progress.step == 9
        assert job.progress.state == job_pb2.JOB_STATE_STARTING


async def test_what_a_process_says_of_its_failure_reaches_the_owner(tmp_path: Path) -> None:
    async def refuses(task: Task) -> Ended:
        write_error(task.folder, FailedPreconditionError("the loss became NaN at step 3", reason="NAN_LOSS"))
        return Ended(EXIT_REFUSED)

    executor = ScriptedExecutor(refuses)
    async with served_trainer(tmp_path, executor=executor) as served:
        operation = await served.create(await ready(served, **FULL))
        ended = await served.ended(operation)
        job = await served.job(operation)
        assert job.progress.state == job_pb2.JOB_STATE_FAILED
        assert (job.error_reason, job.error) == ("NAN_LOSS", "the loss became NaN at step 3")
        assert ended.error.message == job.error
        assert len(executor.tasks) == 1
        assert served.logged("training.ended")[0]["result"]["code"] == "NAN_LOSS"


async def test_a_stopped_service_takes_its_jobs_up_again_and_ends_them(tmp_path: Path) -> None:
    from tests.fakes.audit_server import served_log

    async def cut(task: Task) -> Ended:
        events = EventWriter(task.folder)
        events.write(job_pb2.TrainingProgress(state=job_pb2.JOB_STATE_TRAINING, step=3), force=True)
        checkpoint = task.folder / "checkpoints" / "step-00000003"
        checkpoint.mkdir(parents=True)
        (checkpoint / "manifest.json").write_text("{}")
        return await never_ends(task)

    async with served_log(tmp_path / "audit.db") as log:
        async with served_trainer(tmp_path, executor=ScriptedExecutor(cut), log=log) as first:
            operation = await first.create(await ready(first, **FULL))
            await at(first, operation, job_pb2.JOB_STATE_TRAINING)
        async with served_trainer(
            tmp_path, executor=ScriptedExecutor(finishes), log=log, ethics=first.ethics
        ) as second:
            job = await second.job(operation)
            events = await watch_to_end(second, operation)
            ended = await second.ended(operation)
            assert ended.HasField("response")
            final = events[-1].job
            assert final.progress.state == job_pb2.JOB_STATE_SUCCEEDED
            assert final.progress.resumes == 1
            assert final.intent_receipt == job.intent_receipt
            (began,), (over,) = second.logged("training.started"), second.logged("training.ended")
            assert over["intent"] == began["idempotency_key"]


async def test_work_on_a_cluster_is_let_go_of_and_taken_up_by_its_id(tmp_path: Path) -> None:
    from tests.fakes.audit_server import served_log

    away, again = ScriptedExecutor(never_ends, elsewhere_id="kala-job-1"), ScriptedExecutor(finishes)
    async with served_log(tmp_path / "audit.db") as log:
        async with served_trainer(tmp_path, executor=away, log=log, ray_address="http://head:8265") as first:
            placement = job_pb2.Placement(executor=job_pb2.EXECUTOR_RAY, workers=2)
            operation = await first.create(await ready(first, placement=placement, **FULL))
            while not (await first.job(operation)).ray_job:  # noqa: ASYNC110 - it is written by the service
                await asyncio.sleep(0.01)
        assert away.let_go == [away.tasks[0].folder]
        async with served_trainer(
            tmp_path, executor=again, log=log, ethics=first.ethics, ray_address="http://head:8265"
        ) as second:
            assert (await second.ended(operation)).HasField("response")
        assert [task.elsewhere_id for task in again.tasks] == ["kala-job-1"]


async def test_a_wish_to_end_a_job_outlives_the_service(tmp_path: Path) -> None:
    from tests.fakes.audit_server import served_log

    away, again = ScriptedExecutor(never_ends, elsewhere_id="kala-job-1"), ScriptedExecutor(finishes)
    again.elsewhere_id = "kala-job-1"
    async with served_log(tmp_path / "audit.db") as log:
        async with served_trainer(tmp_path, executor=away, log=log, ray_address="http://head:8265") as first:
            placement = job_pb2.Placement(executor=job_pb2.EXECUTOR_RAY, workers=2)
            operation = await first.create(await ready(first, placement=placement, **FULL))
            await at_work(away)
            # The service dies right after it wrote down that somebody wants the end.
            job = await at(first, operation, job_pb2.JOB_STATE_STARTING)
            job.ray_job = "kala-job-1"
            job.progress.state = job_pb2.JOB_STATE_CANCELLING
            await first.store.put_job(job)
        async with served_trainer(
            tmp_path, executor=again, log=log, ethics=first.ethics, ray_address="http://head:8265"
        ) as second:
            ended = await second.ended(operation)
            assert ended.error.code == code_pb2.CANCELLED
            assert (await second.job(operation)).progress.state == job_pb2.JOB_STATE_CANCELLED
            assert second.logged("training.ended")[0]["result"]["status"] == "cancelled"
        # It was only taken up to be ended.
        assert [task.elsewhere_id for task in again.tasks] == ["kala-job-1"]
        assert again.ended == [again.tasks[0].folder]


async def test_a_job_that_this_release_does_not_understand_fails_and_holds_up_nothing(tmp_path: Path) -> None:
    from tests.fakes.audit_server import served_log

    async with served_log(tmp_path / "audit.db") as log:
        async with served_trainer(tmp_path, executor=ScriptedExecutor(never_ends), log=log) as first:
            operation = await first.create(await ready(first, **FULL))
            row = await first.store.operations.get(operation.name, None)
            assert row.sealed is not None
            row.sealed.action.value += b"\xf8\x07\x01"  # a field of a newer release
            newer = row.sealed.SerializeToString()
            await first.store.run(lambda sql: sql.execute(OPERATION.update().values(sealed=newer)))
        async with served_trainer(
            tmp_path, executor=ScriptedExecutor(), log=log, ethics=first.ethics
        ) as second:
            ended = await second.ended(operation)
            assert ended.error.code == code_pb2.ABORTED
            job = await second.job(operation)
            assert job.progress.state == job_pb2.JOB_STATE_FAILED
            assert job.error_reason == "UNKNOWN_FIELDS"
            # The adapter's name is free again.
            await second.ended(await second.create(await second.plan(small_spec(**FULL))))


async def test_erasing_a_person_ends_the_jobs_on_their_rows_and_names_what_they_trained(
    tmp_path: Path,
) -> None:
    executor = ScriptedExecutor(never_ends)
    async with served_trainer(tmp_path, executor=executor, max_jobs=2) as served:
        person = "e" * 64
        await served.dataset(subjects={person: 3})
        await served.dataset("datasets/other@1")
        hit = await served.create(await served.plan(small_spec(**FULL)))
        spec = await served.plan(small_spec("datasets/other@1", adapter="adapters/other", **FULL))
        spared = await served.create(spec)
        job = await served.job(hit)
        await at_work(executor)
        drafts = executor.tasks[0].folder / "drafts.jsonl"
        drafts.write_text("a person's row")
        answer = await served.ask("EraseSubject", pb.EraseSubjectRequest(subject=person, tenant=ANN.tenant))
        assert list(answer.jobs) == [job.name]
        assert list(answer.datasets) == ["datasets/larger@1"]
        assert answer.rows == 3
        ended = await served.ended(hit)
        assert ended.error.code == code_pb2.CANCELLED
        assert (await served.job(hit)).error_reason == "SUBJECT_ERASED"
        assert not (await served.ask("GetOperation", pb.GetOperationRequest(name=spared.name))).done
        assert not (served.settings.state_dir / "datasets/larger@1").exists()
        assert not drafts.exists()
        with pytest.raises(InvalidArgumentError, match="subject"):
            await served.ask("EraseSubject", pb.EraseSubjectRequest(subject="short", tenant="t"))
