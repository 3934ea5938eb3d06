"""A training job outlives the death of its process and of the service that watches it."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest

from kala.common.v1.clearance_pb2 import PURPOSE_REQUEST
from kala.trainer.v1 import job_pb2, trainer_pb2_grpc
from kala.trainer.v1 import trainer_pb2 as pb
from services.common.channel import open_channel
from services.common.principals import principal_metadata
from services.common.sealing import pack
from services.trainer.jobs.states import has_ended, last_checkpoint
from services.trainer.store.store import Store
from services.trainer.work.bounds import holder_of
from tests.fakes.audit_process import AuditProcess
from tests.fakes.served_trainer import ANN, SERVICE, put_dataset, small_spec
from tests.fakes.trainer_process import TrainerProcess
from tests.fakes.training_jobs import write_dataset

pytestmark = [pytest.mark.torch, pytest.mark.timeout(300)]

STEPS = 400
EVERY = 20


@asynccontextmanager
async def connected(trainer: TrainerProcess) -> AsyncIterator[trainer_pb2_grpc.TrainerServiceAsyncStub]:
    async with open_channel(trainer.address, peer_name="gateway") as channel:
        stub = trainer_pb2_grpc.TrainerServiceStub(channel)
        for _ in range(600):
            try:
                await stub.ListTrainingJobs(
                    pb.ListTrainingJobsRequest(), metadata=principal_metadata(ANN), timeout=2
                )
                break
            except grpc.RpcError:
                await asyncio.sleep(0.1)
        else:
            raise AssertionError(trainer.output())
        yield stub


async def create(
    trainer: TrainerProcess, stub: trainer_pb2_grpc.TrainerServiceAsyncStub
) -> job_pb2.TrainingJob:
    who = principal_metadata(ANN)
    wanted = small_spec(
        hyperparameters=job_pb2.Hyperparameters(
            max_steps=STEPS, batch_size=4, max_sequence_tokens=64, checkpoint_steps=EVERY, checkpoints_kept=3
        )
    )
    plan = (await stub.PlanJob(pb.PlanJobRequest(spec=wanted), metadata=who)).plan
    assert not plan.problems
    action = pack(pb.CreateTrainingJobAction(request_id=secrets.token_hex(16), spec=plan.spec))
    clearance = trainer.ethics.signer.mint(
        decision_id="d" * 32,
        audience=SERVICE + "CreateTrainingJob",
        action=action,
        constitution_digest=b"c" * 32,
        presenter="local:gateway",
        principal=ANN,
        purpose=PURPOSE_REQUEST,
    )
    request = pb.CreateTrainingJobRequest()
    request.sealed.action.CopyFrom(action)
    request.sealed.clearance.CopyFrom(clearance)
    operation = await stub.CreateTrainingJob(request, metadata=who)
    metadata = job_pb2.CreateTrainingJobMetadata()
    operation.metadata.Unpack(metadata)
    return await read(stub, metadata.job)


async def read(stub: trainer_pb2_grpc.TrainerServiceAsyncStub, name: str) -> job_pb2.TrainingJob:
    request = pb.GetTrainingJobRequest(name=name)
    return (await stub.GetTrainingJob(request, metadata=principal_metadata(ANN), timeout=20)).job


async def ended(stub: trainer_pb2_grpc.TrainerServiceAsyncStub, name: str) -> job_pb2.TrainingJob:
    """Watch a job to its end."""
    request = pb.WatchTrainingJobRequest(name=name)
    events = stub.WatchTrainingJob(request, metadata=principal_metadata(ANN), timeout=240)
    jobs = [event.job async for event in events if event.HasField("job")]
    assert has_ended(jobs[-1])
    return jobs[-1]


async def until(holds: Callable[[], bool], what: str) -> None:
    for _ in range(2_400):
        if holds():
            return
        await asyncio.sleep(0.05)
    raise AssertionError(f"it did not come to that: {what}")


async def test_a_job_goes_on_after_its_process_and_its_service_were_killed(tmp_path: Path) -> None:
    audit = AuditProcess(tmp_path / "audit")
    trainer = TrainerProcess(tmp_path / "trainer", audit.address)
    data = write_dataset(trainer.settings.state_dir / "datasets/larger@1")
    store = await Store.open(trainer.settings.state_dir / "trainer.db")
    await put_dataset(store, data, "datasets/larger@1")
    store.close()
    audit.start()
    trainer.start()
    try:
        async with connected(trainer) as stub:
            job = await create(trainer, stub)
            folder = trainer.settings.state_dir / "work" / job.name.removeprefix("trainingJobs/")
            await until(lambda: last_checkpoint(folder) >= EVERY, "a first checkpoint")
            first = holder_of(folder)
            assert first is not None
            os.kill(first, signal.SIGKILL)
            await until(lambda: holder_of(folder) not in (None, first), "a second process")
            reached = last_checkpoint(folder)
            await until(lambda: last_checkpoint(folder) > reached, "a checkpoint of the second process")
        second = holder_of(folder)
        trainer.kill()
        await until(lambda: holder_of(folder) is None, "the end of the process whose service is gone")
        assert second is not None
        saved = last_checkpoint(folder)
        trainer.start()
        async with connected(trainer) as stub:
            job = await ended(stub, job.name)
        assert job.progress.state == job_pb2.JOB_STATE_SUCCEEDED, job.error
        assert job.progress.step == STEPS
        assert job.progress.resumes >= 2
        assert saved >= reached
        assert job.adapter == "adapters/larger@1"
    finally:
        trainer.stop()
        audit.stop()
