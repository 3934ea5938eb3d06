"""What becomes of a job whose evaluation breaks, or whose adapter cannot be kept: the parts around it are scripted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from kala.common.v1.gate_pb2 import GATE_OUTCOME_FAILED
from kala.common.v1.reference_pb2 import ContentReference
from kala.errors import UnavailableError, VerificationError
from kala.trainer.v1 import job_pb2, registry_pb2
from services.trainer.desks import Trained
from services.trainer.running import Running
from tests.fakes.served_trainer import ScriptedExecutor, ServedTrainer, served_trainer, small_spec

PROFILE = ContentReference(name="embedded")


@dataclass
class ScriptedRegistry:
    """Keeps what it is given, or raises."""

    error: Exception | None = None
    kept: list[Trained] = field(default_factory=list)

    async def register(self, trained: Trained) -> registry_pb2.Adapter:
        if self.error is not None:
            raise self.error
        self.kept.append(trained)
        return registry_pb2.Adapter(name=f"{trained.job.spec.adapter}@1", adapter_digest=bytes(32))


@dataclass
class ScriptedGate:
    """Ends an evaluation as it is told to."""

    error: Exception | None = None

    async def run_gate(
        self, running: Running, adapter: registry_pb2.Adapter, profile: ContentReference, base: Path
    ) -> registry_pb2.Evaluation:
        await running.show(registry_pb2.EvaluateAdapterMetadata(evaluation="evaluations/e", suite="harm"))
        if self.error is not None:
            raise self.error
        return registry_pb2.Evaluation(
            name="evaluations/" + "e" * 32,
            adapter=adapter.name,
            outcome=GATE_OUTCOME_FAILED,
            started_at=Timestamp(seconds=1),
        )


async def run(served: ServedTrainer, registry: Any, gate: Any) -> tuple[job_pb2.TrainingJob, Sequence[Any]]:
    supervisor = served.trainer.jobs._supervisor
    supervisor._parts = replace(supervisor._parts, adapters=registry, evaluations=gate)
    await served.dataset()
    spec = await served.plan(small_spec(gate_profile=PROFILE))
    operation = await served.create(spec)
    await served.ended(operation)
    job = await served.job(operation)
    return job, list(served.trainer.jobs._lives[job.name].feed._events)


async def test_a_failed_gate_leaves_a_candidate_and_the_job_names_its_evaluation(tmp_path: Path) -> None:
    async with served_trainer(tmp_path, executor=ScriptedExecutor(), accept_demo_profiles=True) as served:
        job, events = await run(served, ScriptedRegistry(), ScriptedGate())
        assert job.progress.state == job_pb2.JOB_STATE_SUCCEEDED
        assert (job.adapter, job.evaluation) == ("adapters/larger@1", "evaluations/" + "e" * 32)
        assert [event.evaluation.suite for event in events if event.HasField("evaluation")] == ["harm"]
        states = [event.job.progress.state for event in events if event.HasField("job")]
        assert states.index(job_pb2.JOB_STATE_SAVING) < states.index(job_pb2.JOB_STATE_EVALUATING)


@pytest.mark.parametrize("error", [UnavailableError("ethics is away"), RuntimeError("a bug")])
async def test_an_evaluation_that_breaks_takes_no_adapter_away_and_gives_no_gate(
    tmp_path: Path, error: Exception
) -> None:
    async with served_trainer(tmp_path, executor=ScriptedExecutor(), accept_demo_profiles=True) as served:
        job, events = await run(served, ScriptedRegistry(), ScriptedGate(error))
        assert job.progress.state == job_pb2.JOB_STATE_SUCCEEDED
        assert (job.adapter, job.evaluation) == ("adapters/larger@1", "")
        (incident,) = [event.incident for event in events if event.HasField("incident")]
        assert incident.kind == "EVALUATION_BROKE"
        assert "a bug" not in incident.message.replace("a bug in the trainer", "")


async def test_an_adapter_that_is_none_fails_the_job_with_the_reason(tmp_path: Path) -> None:
    registry = ScriptedRegistry(VerificationError("adapter_model.safetensors: holds a whole embedding"))
    async with served_trainer(tmp_path, executor=ScriptedExecutor(), accept_demo_profiles=True) as served:
        job, _ = await run(served, registry, ScriptedGate())
        assert job.progress.state == job_pb2.JOB_STATE_FAILED
        assert "whole embedding" in job.error
        assert served.logged("training.ended")[0]["result"]["status"] == "error"


async def test_the_registry_is_given_exactly_what_was_cleared(tmp_path: Path) -> None:
    registry = ScriptedRegistry()
    async with served_trainer(tmp_path, executor=ScriptedExecutor(), accept_demo_profiles=True) as served:
        job, _ = await run(served, registry, ScriptedGate())
        (trained,) = registry.kept
        assert trained.claim.receipt_id == job.intent_receipt
        assert trained.claim.claims.decision_id == job.decision_id
        assert job.spec.SerializeToString() in trained.claim.sealed.action.value
        assert [each.name for each in trained.datasets] == ["datasets/larger@1"]
        assert trained.started_at <= trained.finished_at
