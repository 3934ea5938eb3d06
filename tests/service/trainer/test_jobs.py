"""What a job does when somebody, or something, comes in its way; its processes are scripted."""

from __future__ import annotations

import asyncio
import secrets
from pathlib import Path

import pytest
from google.longrunning.operations_pb2 import Operation

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
from services.trainer.work.ended import Ended
from services.trainer.work.events import EventWriter
from tests.fakes.full_jobs import FULL, never_ends, ready, watch_to_end
from tests.fakes.served_trainer import (
    ANN,
    BEN,
    ScriptedExecutor,
    finishes,
    served_trainer,
    small_spec,
)


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


async def test_two_trainers_do_not_share_a_state_directory(tmp_path: Path) -> None:
    async with served_trainer(tmp_path, executor=ScriptedExecutor()) as served:
        with pytest.raises(FailedPreconditionError, match="another trainer"):
            async with served_trainer(tmp_path, executor=ScriptedExecutor(), log=served.log):
                pass


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
