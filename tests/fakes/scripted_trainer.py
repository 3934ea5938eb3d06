"""A trainer that trains nothing: it says what a test tells it to, and keeps what it was asked."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from google.longrunning import operations_pb2
from google.protobuf.message import Message

from kala.common.v1 import adapter_pb2, clearance_pb2
from kala.errors import KalaError
from kala.trainer.v1 import job_pb2, registry_pb2, trainer_pb2_grpc
from kala.trainer.v1 import trainer_pb2 as pb
from services.common.clearance import current_clearance
from services.common.peers import Context
from services.common.principals import principal_of
from services.common.sealing import unpack_strictly
from services.common.status import abort

JOB = "trainingJobs/" + "a" * 32
OPERATION = "operations/" + "b" * 32


@dataclass
class ScriptedTrainer(trainer_pb2_grpc.TrainerServiceServicer):
    """Starts every job at once."""

    failure: KalaError | None = None
    created: list[pb.CreateTrainingJobAction] = field(default_factory=list)
    principals: list[clearance_pb2.Principal] = field(default_factory=list)
    erase_failure: KalaError | None = None
    watch_seconds: float = 0.0
    """How long the last watch may take."""

    async def CreateTrainingJob(  # noqa: N802 - the contract's name
        self, request: pb.CreateTrainingJobRequest, context: Context
    ) -> operations_pb2.Operation:
        verified = current_clearance()
        self.created.append(unpack_strictly(verified.action, pb.CreateTrainingJobAction))
        self.principals.append(verified.claims.principal)
        if self.failure is not None:
            await abort(context, self.failure)
        operation = operations_pb2.Operation(name=OPERATION)
        operation.metadata.Pack(
            job_pb2.CreateTrainingJobMetadata(
                job=JOB, progress=job_pb2.TrainingProgress(state=job_pb2.JOB_STATE_QUEUED)
            )
        )
        return operation

    async def GetOperation(  # noqa: N802 - the contract's name
        self, request: pb.GetOperationRequest, context: Context
    ) -> operations_pb2.Operation:
        self.principals.append(principal_of(context))
        operation = operations_pb2.Operation(name=request.name, done=True)
        operation.response.Pack(_job(job_pb2.JOB_STATE_SUCCEEDED))
        return operation

    async def PromoteAdapter(  # noqa: N802 - the contract's name
        self, request: pb.PromoteAdapterRequest, context: Context
    ) -> pb.PromoteAdapterResponse:
        action = unpack_strictly(current_clearance().action, pb.PromoteAdapterAction)
        adapter = registry_pb2.Adapter(
            name=action.adapter.name,
            manifest=adapter_pb2.SignedAdapterManifest(manifest=b"forbiddenword \xff\x00"),
        )
        return pb.PromoteAdapterResponse(adapter=adapter)

    async def WatchTrainingJob(  # noqa: N802 - the contract's name
        self, request: pb.WatchTrainingJobRequest, context: Context
    ) -> AsyncIterator[pb.WatchTrainingJobResponse]:
        self.principals.append(principal_of(context))
        self.watch_seconds = context.time_remaining() or 0.0
        events: list[Message] = [
            _job(job_pb2.JOB_STATE_TRAINING),
            job_pb2.TrainingProgress(state=job_pb2.JOB_STATE_TRAINING, step=3, loss=1.5),
            _job(job_pb2.JOB_STATE_SUCCEEDED),
        ]
        for sequence, event in enumerate(events, start=request.after_sequence + 1):
            response = pb.WatchTrainingJobResponse(sequence=sequence)
            if isinstance(event, job_pb2.TrainingJob):
                response.job.CopyFrom(event)
            elif isinstance(event, job_pb2.TrainingProgress):
                response.progress.CopyFrom(event)
            yield response

    async def EraseSubject(  # noqa: N802 - the contract's name
        self, request: pb.EraseSubjectRequest, context: Context
    ) -> pb.EraseSubjectResponse:
        if self.erase_failure is not None:
            await abort(context, self.erase_failure)
        return pb.EraseSubjectResponse(
            datasets=["datasets/d@1"], rows=7, jobs=[JOB], adapters=["adapters/a@1"]
        )


def _job(state: job_pb2.JobState) -> job_pb2.TrainingJob:
    return job_pb2.TrainingJob(name=JOB, progress=job_pb2.TrainingProgress(state=state))
