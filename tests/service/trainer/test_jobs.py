"""What a job does when somebody, or something, comes in its way; its processes are scripted."""

from __future__ import annotations

import asyncio
import secrets
from pathlib import Path

import pytest
from google.longrunning.operations_pb2 import Operation
from google.protobuf.duration_pb2 import Duration
from google.rpc import code_pb2

from kala.errors import (
    AlreadyExistsError,
    ClearanceError,
    FailedPreconditionError,
    InvalidArgumentError,
    KalaError,
    NotFoundError,
    PermissionDeniedError,
    ResourceExhaustedError,
)
from kala.trainer.v1 import job_pb2
from kala.trainer.v1 import trainer_pb2 as pb
from services.common.channel import open_channel
from services.common.principals import principal_metadata
from services.common.status import translated
from services.trainer.executors.model import Task
from services.trainer.store.schema import OPERATION
from services.trainer.work.ended import Ended
from services.trainer.work.events import EventWriter
from services.trainer.work.results import EXIT_REFUSED, write_error
from tests.fakes.served_trainer import (
    ANN,
    BEN,
    ScriptedExecutor,
    ServedTrainer,
    finishes,
    served_trainer,
    small_spec,
)


async def never_ends(task: Task) -> Ended:
    await asyncio.Event().wait()
    raise AssertionError("unreachable")


async def ready(served: ServedTrainer, **changes: object) -> job_pb2.TrainingSpec:
    """A spec that is planned, on a dataset that is there."""
    await served.dataset()
    return await served.plan(small_spec(**changes))


async def at_work(executor: ScriptedExecutor) -> None:
    for _ in range(2_000):
        if executor.tasks:
            return
        await asyncio.sleep(0.01)
    raise AssertionError("nothing was started")


async def at(served: ServedTrainer, operation: Operation, state: job_pb2.JobState) -> job_pb2.TrainingJob:
    for _ in range(2_000):
        job = await served.job(operation)
        if job.progress.state == state:
            return job
        await asyncio.sleep(0.01)
    raise AssertionError(f"it is {job_pb2.JobState.Name(job.progress.state)}")


FULL = {"method": job_pb2.TRAINING_METHOD_FULL, "lora": None}


async def test_nothing_begins_without_a_clearance_for_exactly_this_job(tmp_path: Path) -> None:
    executor = ScriptedExecutor()
    async with served_trainer(tmp_path, executor=executor) as served:
        spec = await ready(served, **FULL)
        action = pb.CreateTrainingJobAction(request_id=secrets.token_hex(16), spec=spec)
        sealed = served.seal(action, "CreateTrainingJob")
        action.spec.summary = "something else"
        sealed.action.value = action.SerializeToString(deterministic=True)
        with pytest.raises(ClearanceError, match="not the one that was judged"):
            await served.ask("CreateTrainingJob", pb.CreateTrainingJobRequest(sealed=sealed))
        with pytest.raises(ClearanceError, match="needs a clearance"):
            await served.ask("CreateTrainingJob", pb.CreateTrainingJobRequest())
        assert executor.tasks == []
        assert served.logged("training.started") == []


async def test_the_same_request_is_the_same_job_and_its_clearance_is_not_spent_twice(tmp_path: Path) -> None:
    executor = ScriptedExecutor()
    async with served_trainer(tmp_path, executor=executor) as served:
        spec = await ready(served, **FULL)
        first = await served.create(spec, request_id="r" * 16)
        again = await served.create(spec, request_id="r" * 16)
        assert again.name == first.name
        await served.ended(first)
        assert len(executor.tasks) == 1
        assert len(served.logged("training.started")) == 1
        spec.summary = "another job"
        with pytest.raises(AlreadyExistsError, match="request_id"):
            await served.create(spec, request_id="r" * 16)


async def test_a_clearance_starts_one_job_even_under_another_trainers_eyes(tmp_path: Path) -> None:
    executor = ScriptedExecutor()
    async with served_trainer(tmp_path, executor=executor) as served:
        spec = await ready(served, **FULL)
        action = pb.CreateTrainingJobAction(request_id="r" * 16, spec=spec)
        sealed = served.seal(action, "CreateTrainingJob")
        await served.ended(await served.ask("CreateTrainingJob", pb.CreateTrainingJobRequest(sealed=sealed)))
    (tmp_path / "second").mkdir()
    async with served_trainer(tmp_path / "second", executor=executor, ethics=served.ethics) as other:
        # Its own memory of nonces is empty, but it began after the clearance was given.
        await other.dataset()
        with pytest.raises(ClearanceError):
            await other.ask("CreateTrainingJob", pb.CreateTrainingJobRequest(sealed=sealed))
    assert len(executor.tasks) == 1


async def test_without_the_log_nothing_begins_and_the_same_request_works_when_it_is_back(
    tmp_path: Path,
) -> None:
    executor = ScriptedExecutor()
    async with served_trainer(tmp_path, executor=executor) as served:
        spec = await ready(served, **FULL)
        working, served.trainer.operations._records._writer = (  # the log goes away
            served.trainer.operations._records._writer,
            DeadWriter(),
        )
        with pytest.raises(KalaError, match="away"):
            await served.create(spec, request_id="r" * 16)
        assert executor.tasks == []
        served.trainer.operations._records._writer = working
        operation = await served.create(spec, request_id="r" * 16)
        assert (await served.ended(operation)).HasField("response")


class DeadWriter:
    """A log that does not answer."""

    async def append(self, record: object, *, key: bytes | None = None, policy: object = None) -> None:
        from kala.errors import UnavailableError

        raise UnavailableError("the log is away")


async def test_two_jobs_for_one_adapter_do_not_run_together(tmp_path: Path) -> None:
    async with served_trainer(tmp_path, executor=ScriptedExecutor(never_ends), max_jobs=4) as served:
        spec = await ready(served, **FULL)
        results = await asyncio.gather(*(served.create(spec) for _ in range(4)), return_exceptions=True)
        begun = [each for each in results if isinstance(each, Operation)]
        refused = [each for each in results if isinstance(each, AlreadyExistsError)]
        assert (len(begun), len(refused)) == (1, 3)
        assert begun[0].name in refused[0].message
        await served.ask("CancelOperation", pb.CancelOperationRequest(name=begun[0].name))
        await served.ended(begun[0])
        # The name is free again.
        after = await served.create(spec)
        await served.ask("CancelOperation", pb.CancelOperationRequest(name=after.name))
        await served.ended(after)


async def test_an_adapters_name_belongs_to_the_tenant_that_used_it_first(tmp_path: Path) -> None:
    async with served_trainer(tmp_path, executor=ScriptedExecutor()) as served:
        spec = await ready(served, **FULL)
        await served.store.next_version("adapters/larger", BEN.tenant)
        with pytest.raises(AlreadyExistsError, match="taken"):
            await served.create(spec)


async def test_a_spec_that_was_not_planned_is_refused_with_what_is_missing(tmp_path: Path) -> None:
    async with served_trainer(tmp_path, executor=ScriptedExecutor()) as served:
        await served.dataset()
        with pytest.raises(FailedPreconditionError, match="must be as PlanJob returns"):
            await served.create(small_spec(**FULL))
        spec = await served.plan(small_spec(**FULL))
        spec.datasets[0].dataset.name = "datasets/nothing@1"
        with pytest.raises(FailedPreconditionError, match="datasets/nothing@1"):
            await served.create(spec)


async def test_a_dataset_that_changed_after_the_clearance_is_not_trained_on(tmp_path: Path) -> None:
    executor = ScriptedExecutor()
    async with served_trainer(tmp_path, executor=executor) as served:
        spec = await ready(served, **FULL)
        manifest = served.settings.state_dir / "datasets/larger@1/manifest.json"
        manifest.write_text("{}")
        ended = await served.ended(await served.create(spec))
        assert "not the one that was cleared" in ended.error.message
        assert executor.tasks == []


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


async def test_a_full_queue_says_when_to_come_again(tmp_path: Path) -> None:
    async with served_trainer(
        tmp_path, executor=ScriptedExecutor(never_ends), max_jobs=1, max_queued=1
    ) as served:
        spec = await ready(served, **FULL)
        for name in ("one", "two"):
            spec.adapter = f"adapters/{name}"
            await served.create(spec)
        spec.adapter = "adapters/three"
        with pytest.raises(ResourceExhaustedError) as caught:
            await served.create(spec)
        assert caught.value.retry_after_seconds


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
    async def crashes_twice(task: Task) -> Ended:
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
        events = await watch_to_end(served, operation)
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


async def watch_to_end(
    served: ServedTrainer, operation: Operation, after: int = 0
) -> list[pb.WatchTrainingJobResponse]:
    job = await served.job(operation)
    call = served.stub.WatchTrainingJob(
        pb.WatchTrainingJobRequest(name=job.name, after_sequence=after),
        metadata=principal_metadata(ANN),
        timeout=60,
    )
    with translated():
        return [event async for event in call]


async def test_watchers_see_every_event_once_and_may_go_on_where_they_stopped(tmp_path: Path) -> None:
    watched = asyncio.Event()

    async def drafts(task: Task) -> Ended:
        await watched.wait()
        events = EventWriter(task.folder)
        for number in range(1, 6):
            events.write(job_pb2.DraftEvent(drafts=number))
        return await finishes(task)

    async with served_trainer(tmp_path, executor=ScriptedExecutor(drafts)) as served:
        operation = await served.create(await ready(served, **FULL))
        request = pb.WatchTrainingJobRequest(name=(await served.job(operation)).name)
        streams = [
            aiter(served.stub.WatchTrainingJob(request, metadata=principal_metadata(ANN), timeout=60))
            for _ in range(2)
        ]
        firsts = [await anext(stream) for stream in streams]
        watched.set()
        one, two = [
            [first, *[event async for event in stream]] for first, stream in zip(firsts, streams, strict=True)
        ]
        numbers = [event.sequence for event in one]
        assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
        assert [event.draft.drafts for event in one if event.HasField("draft")] == [1, 2, 3, 4, 5]
        assert one[-1] == two[-1]
        assert one[-1].job.progress.state == job_pb2.JOB_STATE_SUCCEEDED
        rest = await watch_to_end(served, operation, after=numbers[2])
        assert [event.sequence for event in rest] == numbers[3:]
        with pytest.raises(FailedPreconditionError, match="after_sequence"):
            await watch_to_end(served, operation, after=10_000)


async def test_another_tenants_job_does_not_exist(tmp_path: Path) -> None:
    async with served_trainer(tmp_path, executor=ScriptedExecutor(never_ends)) as served:
        operation = await served.create(await ready(served, **FULL))
        job = await served.job(operation)
        for rpc, request in (
            ("GetTrainingJob", pb.GetTrainingJobRequest(name=job.name)),
            ("CancelTrainingJob", pb.CancelTrainingJobRequest(name=job.name)),
            ("GetOperation", pb.GetOperationRequest(name=operation.name)),
            ("CancelOperation", pb.CancelOperationRequest(name=operation.name)),
        ):
            with pytest.raises(NotFoundError):
                await served.ask(rpc, request, principal=BEN)
        listed = await served.ask("ListTrainingJobs", pb.ListTrainingJobsRequest(), principal=BEN)
        assert list(listed.jobs) == []
        with translated(), pytest.raises(NotFoundError), translated():
            async for _ in served.stub.WatchLogs(
                pb.WatchLogsRequest(name=job.name), metadata=principal_metadata(BEN), timeout=20
            ):
                pass


async def test_only_the_gateway_speaks_for_people(tmp_path: Path) -> None:
    async with served_trainer(
        tmp_path, executor=ScriptedExecutor(), allowed_peers=("gateway", "tools")
    ) as served:
        address = served.address
        async with open_channel(address, peer_name="tools") as channel:
            from kala.trainer.v1 import trainer_pb2_grpc

            stub = trainer_pb2_grpc.TrainerServiceStub(channel)
            with pytest.raises(PermissionDeniedError), translated():
                await stub.ListTrainingJobs(
                    pb.ListTrainingJobsRequest(), metadata=principal_metadata(ANN), timeout=20
                )


async def test_lists_come_in_pages_that_hold_together(tmp_path: Path) -> None:
    async with served_trainer(tmp_path, executor=ScriptedExecutor()) as served:
        spec = await ready(served, **FULL)
        names = []
        for number in range(5):
            spec.adapter = f"adapters/a{number}"
            operation = await served.create(spec)
            names.append((await served.job(operation)).name)
            await served.ended(operation)
        seen, token = [], ""
        while True:
            page = await served.ask(
                "ListTrainingJobs", pb.ListTrainingJobsRequest(page_size=2, page_token=token)
            )
            seen += [job.name for job in page.jobs]
            token = page.next_page_token
            if not token:
                break
        assert seen == names[::-1]
        only = await served.ask("ListTrainingJobs", pb.ListTrainingJobsRequest(adapter="adapters/a3"))
        assert [job.name for job in only.jobs] == [names[3]]
        with pytest.raises(InvalidArgumentError, match="page_token"):
            await served.ask("ListTrainingJobs", pb.ListTrainingJobsRequest(page_token="bm90IG9uZQ"))


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


async def test_full_fine_tuning_leaves_a_base_among_the_bases_and_no_adapter(tmp_path: Path) -> None:
    async with served_trainer(tmp_path, executor=ScriptedExecutor()) as served:
        operation = await served.create(await ready(served, **FULL))
        await served.ended(operation)
        job = await served.job(operation)
        assert job.adapter == ""
        (name,) = [each.name for each in job.reports]
        assert (tmp_path / name).read_text() == "{}"
        assert name.startswith("bases/larger.")


async def test_full_fine_tuning_is_refused_where_a_base_has_no_place(tmp_path: Path) -> None:
    async with served_trainer(tmp_path, executor=ScriptedExecutor(), bases_dir=None) as served:
        with pytest.raises(FailedPreconditionError, match="KALA_TRAINER_BASES_DIR"):
            await served.create(await ready(served, **FULL))


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


async def test_two_trainers_do_not_share_a_state_directory(tmp_path: Path) -> None:
    async with served_trainer(tmp_path, executor=ScriptedExecutor()) as served:
        with pytest.raises(FailedPreconditionError, match="another trainer"):
            async with served_trainer(tmp_path, executor=ScriptedExecutor(), log=served.log):
                pass


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


async def test_a_state_directory_that_cannot_be_written_is_said_to_its_owner(tmp_path: Path) -> None:
    executor = ScriptedExecutor()
    async with served_trainer(tmp_path, executor=executor) as served:
        spec = await ready(served, **FULL)
        work = served.settings.state_dir / "work"
        work.rmdir()
        work.touch()
        ended = await served.ended(await served.create(spec))
        assert "KALA_TRAINER_STATE_DIR" in ended.error.message
        assert executor.tasks == []
