"""A trainer that trains nothing, but takes a fine-tuning job from its file to a promoted adapter as a test tells it to."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path

from google.longrunning import operations_pb2

from kala.common.v1 import gate_pb2
from kala.common.v1.reference_pb2 import ContentReference
from kala.errors import FailedPreconditionError
from kala.trainer.v1 import dataset_pb2, job_pb2, registry_pb2
from kala.trainer.v1 import trainer_pb2 as pb
from services.common.clearance import current_clearance
from services.common.peers import Context
from services.common.principals import principal_of
from services.common.sealing import unpack_strictly
from services.common.status import abort
from tests.fakes.scripted_trainer import JOB, ScriptedTrainer

BUILD = "operations/" + "c" * 32
EVALUATION = "evaluations/" + "d" * 32
RESULT = b"the gate's result"


@dataclass
class TuningTrainer(ScriptedTrainer):
    """Reads files below `data_dir`; a job goes through `states`, one for each look at it."""

    data_dir: Path = Path()
    states: list[job_pb2.JobState.ValueType] = field(
        default_factory=lambda: [
            job_pb2.JOB_STATE_QUEUED,
            job_pb2.JOB_STATE_TRAINING,
            job_pb2.JOB_STATE_TRAINING,
            job_pb2.JOB_STATE_EVALUATING,
            job_pb2.JOB_STATE_SUCCEEDED,
        ]
    )
    gate: gate_pb2.GateOutcome.ValueType = gate_pb2.GATE_OUTCOME_PASSED
    is_buildable: bool = True
    problems: tuple[str, ...] = ()
    rows: list[dict[str, object]] = field(default_factory=list)
    plans: list[dict[str, object]] = field(default_factory=list)
    builds: list[pb.BuildDatasetAction] = field(default_factory=list)
    promoted: list[pb.PromoteAdapterAction] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)
    looks: int = 0

    async def CheckDataset(  # noqa: N802 - the contract's name
        self, request: pb.CheckDatasetRequest, context: Context
    ) -> pb.CheckDatasetResponse:
        self.principals.append(principal_of(context))
        (reference,) = request.spec.sources[0].files.files
        data = (self.data_dir / reference.name).read_bytes()
        if hashlib.sha256(data).digest() != reference.sha256:
            await abort(context, FailedPreconditionError("the file is another one"))
        self.rows = [json.loads(line) for line in data.splitlines()]
        problem = dataset_pb2.RowProblem(
            row=2, kind="WRONG_VALUE", message="messages must end with the assistant"
        )
        report = dataset_pb2.DatasetReport(problems=[] if self.is_buildable else [problem])
        return pb.CheckDatasetResponse(report=report, spec=request.spec, buildable=self.is_buildable)

    async def BuildDataset(  # noqa: N802 - the contract's name
        self, request: pb.BuildDatasetRequest, context: Context
    ) -> operations_pb2.Operation:
        self.builds.append(unpack_strictly(current_clearance().action, pb.BuildDatasetAction))
        return operations_pb2.Operation(name=BUILD)

    async def GetOperation(  # noqa: N802 - the contract's name
        self, request: pb.GetOperationRequest, context: Context
    ) -> operations_pb2.Operation:
        operation = operations_pb2.Operation(name=request.name, done=True)
        reference = ContentReference(name="datasets/d@1", sha256=b"s" * 32, bytes=9)
        operation.response.Pack(dataset_pb2.Dataset(name="datasets/d@1", reference=reference))
        return operation

    async def PlanJob(  # noqa: N802 - the contract's name
        self, request: pb.PlanJobRequest, context: Context
    ) -> pb.PlanJobResponse:
        document = json.loads(request.yaml)
        self.plans.append(document)
        spec = job_pb2.TrainingSpec(adapter=f"adapters/{document['adapter']}", summary=document["summary"])
        spec.hyperparameters.learning_rate = document["hyperparameters"].get("learning_rate", 0.001)
        return pb.PlanJobResponse(plan=job_pb2.TrainingPlan(spec=spec, problems=self.problems))

    async def GetTrainingJob(  # noqa: N802 - the contract's name
        self, request: pb.GetTrainingJobRequest, context: Context
    ) -> pb.GetTrainingJobResponse:
        state = self.states[min(self.looks, len(self.states) - 1)]
        self.looks += 1
        progress = job_pb2.TrainingProgress(
            state=state, step=self.looks, total_steps=5, tokens=100 * self.looks
        )
        if state == job_pb2.JOB_STATE_TRAINING:
            progress.loss = 1.5
        job = job_pb2.TrainingJob(name=JOB, progress=progress)
        if state == job_pb2.JOB_STATE_SUCCEEDED:
            job.adapter, job.evaluation = f"{self.created[-1].spec.adapter}@1", EVALUATION
        if state == job_pb2.JOB_STATE_FAILED:
            job.error, job.error_reason = "the loss was no number", "NAN_LOSS"
        return pb.GetTrainingJobResponse(job=job)

    async def ListTrainingJobs(  # noqa: N802 - the contract's name
        self, request: pb.ListTrainingJobsRequest, context: Context
    ) -> pb.ListTrainingJobsResponse:
        of_adapter = [action for action in self.created if action.spec.adapter == request.adapter]
        return pb.ListTrainingJobsResponse(jobs=[job_pb2.TrainingJob(name=JOB) for _ in of_adapter])

    async def GetAdapter(  # noqa: N802 - the contract's name
        self, request: pb.GetAdapterRequest, context: Context
    ) -> pb.GetAdapterResponse:
        adapter = registry_pb2.Adapter(
            name=request.name,
            state=registry_pb2.ADAPTER_STATE_CANDIDATE,
            reference=ContentReference(name=request.name, sha256=b"a" * 32, bytes=3),
            evaluations=[EVALUATION],
        )
        return pb.GetAdapterResponse(adapter=adapter)

    async def GetEvaluation(  # noqa: N802 - the contract's name
        self, request: pb.GetEvaluationRequest, context: Context
    ) -> pb.GetEvaluationResponse:
        found = registry_pb2.Evaluation(name=request.name, outcome=self.gate)
        found.evidence.result = RESULT
        return pb.GetEvaluationResponse(evaluation=found)

    async def PromoteAdapter(  # noqa: N802 - the contract's name
        self, request: pb.PromoteAdapterRequest, context: Context
    ) -> pb.PromoteAdapterResponse:
        action = unpack_strictly(current_clearance().action, pb.PromoteAdapterAction)
        self.promoted.append(action)
        return pb.PromoteAdapterResponse(adapter=registry_pb2.Adapter(name=action.adapter.name))

    async def CancelTrainingJob(  # noqa: N802 - the contract's name
        self, request: pb.CancelTrainingJobRequest, context: Context
    ) -> pb.CancelTrainingJobResponse:
        self.cancelled.append(request.name)
        return pb.CancelTrainingJobResponse()


def tuning_trainer(data_dir: Path = Path()) -> TuningTrainer:
    """One as new; the RPCs that it lacks are UNIMPLEMENTED."""
    return TuningTrainer(data_dir=data_dir)  # type: ignore[abstract] # as the line above says
