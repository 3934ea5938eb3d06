"""A job from its clearance to a signed candidate, with the real process on the shipped model."""

from __future__ import annotations

from pathlib import Path

import pytest

from kala.trainer.v1 import job_pb2, registry_pb2
from kala.trainer.v1 import trainer_pb2 as pb
from services.common.principals import principal_metadata
from tests.fakes.served_trainer import ANN, served_trainer, small_spec

pytestmark = pytest.mark.torch


async def test_a_cleared_job_trains_and_leaves_a_signed_candidate_that_names_its_intent(
    tmp_path: Path,
) -> None:
    async with served_trainer(tmp_path) as served:
        await served.dataset()
        operation = await served.create(await served.plan(small_spec()))
        watched = [
            event
            async for event in served.stub.WatchTrainingJob(
                pb.WatchTrainingJobRequest(name=(await served.job(operation)).name),
                metadata=principal_metadata(ANN),
                timeout=120,
            )
        ]
        ended = await served.ended(operation)
        job = job_pb2.TrainingJob()
        assert ended.response.Unpack(job), ended.error
        assert job.progress.state == job_pb2.JOB_STATE_SUCCEEDED
        assert job.progress.step == 4
        assert job.adapter == "adapters/larger@1"
        adapter = (await served.ask("GetAdapter", pb.GetAdapterRequest(name=job.adapter))).adapter
        assert adapter.state == registry_pb2.ADAPTER_STATE_CANDIDATE
        assert adapter.description.training.intent_receipt == job.intent_receipt
        (began,), (over,) = served.logged("training.started"), served.logged("training.ended")
        assert over["intent"] == began["idempotency_key"]
        assert watched[-1].job.progress.state == job_pb2.JOB_STATE_SUCCEEDED
        assert any(event.HasField("checkpoint") for event in watched)
        lines = [
            line
            async for line in served.stub.WatchLogs(
                pb.WatchLogsRequest(name=job.name, follow=True), metadata=principal_metadata(ANN), timeout=20
            )
        ]
        assert [line.line for line in lines] == list(range(1, len(lines) + 1))
