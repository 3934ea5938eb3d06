"""Carries the trainer's RPCs to the domains that serve them, and nothing else."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Final, TypeVar

from google.longrunning.operations_pb2 import Operation

from kala.common.v1.clearance_pb2 import Principal
from kala.errors import InvalidArgumentError, PermissionDeniedError, UnimplementedError
from kala.trainer.v1 import trainer_pb2 as pb
from kala.trainer.v1 import trainer_pb2_grpc
from services.common.clearance import current_clearance
from services.common.peers import GATEWAY, Context, peer_of
from services.common.principals import principal_of
from services.common.sealing import unpack_strictly
from services.trainer.desks import Desks
from services.trainer.operation_desk import OperationDesk
from services.trainer.operations import Operations
from services.trainer.pages import PageTokens
from services.trainer.records import Cleared
from services.trainer.store.store import Store

SUBJECT_CHARS: Final = 64

D = TypeVar("D")


class TrainerServicer(trainer_pb2_grpc.TrainerServiceServicer):
    """Serves TrainerService."""

    def __init__(self, desks: Desks, operations: Operations, store: Store) -> None:
        self._desks = desks
        self._operations = OperationDesk(operations, store.operations, PageTokens())
        self._store = store

    async def PlanJob(self, request: pb.PlanJobRequest, context: Context) -> pb.PlanJobResponse:
        """Say what a job would do."""
        return await _there(self._desks.planner, "PlanJob").plan(request, caller_of(context))

    async def CreateTrainingJob(self, request: pb.CreateTrainingJobRequest, context: Context) -> Operation:  # noqa: ARG002 - the guard has read it
        """Start a training job."""
        action = unpack_strictly(current_clearance().action, pb.CreateTrainingJobAction)
        return await _there(self._desks.jobs, "CreateTrainingJob").create(action, _cleared(request))

    async def GetTrainingJob(
        self, request: pb.GetTrainingJobRequest, context: Context
    ) -> pb.GetTrainingJobResponse:
        """Show a job."""
        return await _there(self._desks.jobs, "GetTrainingJob").get(request, caller_of(context))

    async def ListTrainingJobs(
        self, request: pb.ListTrainingJobsRequest, context: Context
    ) -> pb.ListTrainingJobsResponse:
        """List jobs."""
        return await _there(self._desks.jobs, "ListTrainingJobs").list(request, caller_of(context))

    async def CancelTrainingJob(
        self, request: pb.CancelTrainingJobRequest, context: Context
    ) -> pb.CancelTrainingJobResponse:
        """End a job."""
        return await _there(self._desks.jobs, "CancelTrainingJob").cancel(request, caller_of(context))

    async def WatchTrainingJob(
        self, request: pb.WatchTrainingJobRequest, context: Context
    ) -> AsyncIterator[pb.WatchTrainingJobResponse]:
        """Stream what happens in a job."""
        stream = _there(self._desks.jobs, "WatchTrainingJob").watch(request, caller_of(context))
        async with aclosing(stream) as events:  # type: ignore[type-var]  # every stream is a generator
            async for event in events:
                yield event

    async def WatchLogs(
        self, request: pb.WatchLogsRequest, context: Context
    ) -> AsyncIterator[pb.WatchLogsResponse]:
        """Stream what a job's processes wrote."""
        stream = _there(self._desks.jobs, "WatchLogs").watch_logs(request, caller_of(context))
        async with aclosing(stream) as lines:  # type: ignore[type-var]  # every stream is a generator
            async for line in lines:
                yield line

    async def BuildDataset(self, request: pb.BuildDatasetRequest, context: Context) -> Operation:  # noqa: ARG002 - as above
        """Build a dataset."""
        action = unpack_strictly(current_clearance().action, pb.BuildDatasetAction)
        return await _there(self._desks.datasets, "BuildDataset").build(action, _cleared(request))

    async def CheckDataset(
        self, request: pb.CheckDatasetRequest, context: Context
    ) -> pb.CheckDatasetResponse:
        """Look at sources."""
        return await _there(self._desks.datasets, "CheckDataset").check(request, caller_of(context))

    async def GetDataset(self, request: pb.GetDatasetRequest, context: Context) -> pb.GetDatasetResponse:
        """Show a dataset."""
        return await _there(self._desks.datasets, "GetDataset").get(request, caller_of(context))

    async def ListDatasets(
        self, request: pb.ListDatasetsRequest, context: Context
    ) -> pb.ListDatasetsResponse:
        """List datasets."""
        return await _there(self._desks.datasets, "ListDatasets").list(request, caller_of(context))

    async def EvaluateAdapter(self, request: pb.EvaluateAdapterRequest, context: Context) -> Operation:  # noqa: ARG002 - as above
        """Run a gate profile against an adapter."""
        action = unpack_strictly(current_clearance().action, pb.EvaluateAdapterAction)
        return await _there(self._desks.evaluations, "EvaluateAdapter").evaluate(action, _cleared(request))

    async def GetEvaluation(
        self, request: pb.GetEvaluationRequest, context: Context
    ) -> pb.GetEvaluationResponse:
        """Show an evaluation."""
        return await _there(self._desks.evaluations, "GetEvaluation").get(request, caller_of(context))

    async def PromoteAdapter(
        self,
        request: pb.PromoteAdapterRequest,
        context: Context,  # noqa: ARG002 - as above
    ) -> pb.PromoteAdapterResponse:
        """Sign an adapter with its passed gate."""
        action = unpack_strictly(current_clearance().action, pb.PromoteAdapterAction)
        return await _there(self._desks.adapters, "PromoteAdapter").promote(action, _cleared(request))

    async def RevokeAdapter(
        self, request: pb.RevokeAdapterRequest, context: Context
    ) -> pb.RevokeAdapterResponse:
        """End an adapter."""
        return await _there(self._desks.adapters, "RevokeAdapter").revoke(request, caller_of(context))

    async def ExportAdapter(self, request: pb.ExportAdapterRequest, context: Context) -> Operation:
        """Write an adapter in another layout."""
        return await _there(self._desks.exports, "ExportAdapter").export(request, caller_of(context))

    async def GetAdapter(self, request: pb.GetAdapterRequest, context: Context) -> pb.GetAdapterResponse:
        """Show an adapter."""
        return await _there(self._desks.adapters, "GetAdapter").get(request, caller_of(context))

    async def ListAdapters(
        self, request: pb.ListAdaptersRequest, context: Context
    ) -> pb.ListAdaptersResponse:
        """List adapters."""
        return await _there(self._desks.adapters, "ListAdapters").list(request, caller_of(context))

    async def GetOperation(self, request: pb.GetOperationRequest, context: Context) -> Operation:
        """Show an operation."""
        return await self._operations.get(request, caller_of(context))

    async def ListOperations(
        self, request: pb.ListOperationsRequest, context: Context
    ) -> pb.ListOperationsResponse:
        """List operations."""
        return await self._operations.list(request, caller_of(context))

    async def WaitOperation(self, request: pb.WaitOperationRequest, context: Context) -> Operation:
        """Show an operation at its end."""
        return await self._operations.wait(request, caller_of(context), context.time_remaining())

    async def CancelOperation(
        self, request: pb.CancelOperationRequest, context: Context
    ) -> pb.CancelOperationResponse:
        """End an operation."""
        return await self._operations.cancel(request, caller_of(context))

    async def EraseSubject(
        self,
        request: pb.EraseSubjectRequest,
        context: Context,  # noqa: ARG002 - the contract names it
    ) -> pb.EraseSubjectResponse:
        """Remove a person's rows: end the jobs on them, remove the versions that hold them, name what was trained on them."""
        if len(request.subject) != SUBJECT_CHARS:
            raise InvalidArgumentError("subject", f"must have {SUBJECT_CHARS} characters")
        if not request.tenant:
            raise InvalidArgumentError("tenant", "must be set")
        datasets = _there(self._desks.datasets, "EraseSubject")
        jobs = _there(self._desks.jobs, "EraseSubject")
        held = await self._store.datasets_of_subject(request.tenant, request.subject)
        ended = await jobs.end_jobs_on(list(held), "SUBJECT_ERASED")
        erased = await datasets.erase(request.tenant, request.subject)
        # Whatever was accepted meanwhile, too; from here on a job on these versions does not find them.
        late = await jobs.end_jobs_on(list(erased.datasets), "SUBJECT_ERASED")
        await jobs.forget_rows_of(list(erased.datasets), request.tenant)
        return pb.EraseSubjectResponse(
            datasets=erased.datasets,
            rows=erased.rows,
            jobs=sorted({*ended, *late}),
            adapters=await self._store.adapters_on(list(erased.datasets)),
        )


def caller_of(context: Context) -> Principal:
    """Name on whose behalf an unguarded call is made; PermissionDeniedError from anybody but the gateway, which knows people."""
    if peer_of(context).part != GATEWAY:
        raise PermissionDeniedError("only the gateway calls on behalf of somebody", reason="NOT_GATEWAY")
    return principal_of(context)


Guarded = (
    pb.CreateTrainingJobRequest
    | pb.BuildDatasetRequest
    | pb.EvaluateAdapterRequest
    | pb.PromoteAdapterRequest
)


def _cleared(request: Guarded) -> Cleared:
    return Cleared(request.sealed, current_clearance())


def _there(desk: D | None, rpc: str) -> D:
    if desk is None:
        raise UnimplementedError(f"{rpc} is not served by this release")
    return desk
