"""Jobs that train a whole base with a scripted process, and what they come to."""

from __future__ import annotations

import asyncio

from google.longrunning.operations_pb2 import Operation

from kala.trainer.v1 import job_pb2
from kala.trainer.v1 import trainer_pb2 as pb
from services.common.principals import principal_metadata
from services.common.status import translated
from services.trainer.executors.model import Task
from services.trainer.work.ended import Ended
from tests.fakes.served_trainer import (
    ANN,
    ScriptedExecutor,
    ServedTrainer,
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


async def watch_to_end(
    served: ServedTrainer, operation: Operation, after: int = 0, *, begun: asyncio.Event | None = None
) -> list[pb.WatchTrainingJobResponse]:
    """Gives every event of a job until its end; `begun` is set with the first."""
    job = await served.job(operation)
    call = served.stub.WatchTrainingJob(
        pb.WatchTrainingJobRequest(name=job.name, after_sequence=after),
        metadata=principal_metadata(ANN),
        timeout=60,
    )
    with translated():
        events = []
        async for event in call:
            events.append(event)
            if begun is not None:
                begun.set()
        return events
