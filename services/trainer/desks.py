"""What the servicer and the jobs need of each domain; the domains keep their rules, this keeps their edges.

A guarded method gets the parsed action and the clearance, any other the request and its principal.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from google.longrunning.operations_pb2 import Operation

from kala.common.v1.clearance_pb2 import Principal
from kala.common.v1.reference_pb2 import ContentReference
from kala.trainer.v1 import dataset_pb2, job_pb2, registry_pb2
from kala.trainer.v1 import trainer_pb2 as pb
from services.trainer.records import Claim, Cleared
from services.trainer.running import Running


@dataclass(frozen=True, slots=True)
class Trained:
    """What a finished training process left: all that a candidate's description is made of."""

    job: job_pb2.TrainingJob
    claim: Claim
    """Whose `sealed.action.value` is the exact configuration, `receipt_id` the intent, and `claims` the decision."""
    folder: Path
    """The job's folder, with `adapter/`, `reports/` and `result.json`."""
    result: Mapping[str, Any]  # Any: JSON of the training process
    base_directory: Path
    datasets: Sequence[dataset_pb2.Dataset]
    parents: Sequence[registry_pb2.Adapter] = ()
    started_at: float = 0.0
    """Unix time in seconds."""
    finished_at: float = 0.0


@dataclass(frozen=True, slots=True)
class ErasedRows:
    """What went of a person's rows."""

    datasets: Sequence[str] = ()
    """Versions that were removed."""
    rows: int = 0


class Planner(Protocol):
    """services/trainer/planning."""

    async def plan(self, request: pb.PlanJobRequest, principal: Principal) -> pb.PlanJobResponse:
        """Say what a job would do."""
        ...


class Jobs(Protocol):
    """services/trainer/jobs."""

    async def create(self, action: pb.CreateTrainingJobAction, cleared: Cleared) -> Operation:
        """Start a job."""
        ...

    async def get(self, request: pb.GetTrainingJobRequest, principal: Principal) -> pb.GetTrainingJobResponse:
        """Show a job."""
        ...

    async def list(
        self, request: pb.ListTrainingJobsRequest, principal: Principal
    ) -> pb.ListTrainingJobsResponse:
        """List jobs."""
        ...

    async def cancel(
        self, request: pb.CancelTrainingJobRequest, principal: Principal
    ) -> pb.CancelTrainingJobResponse:
        """End a job."""
        ...

    def watch(
        self, request: pb.WatchTrainingJobRequest, principal: Principal
    ) -> AsyncIterator[pb.WatchTrainingJobResponse]:
        """Stream what happens."""
        ...

    def watch_logs(
        self, request: pb.WatchLogsRequest, principal: Principal
    ) -> AsyncIterator[pb.WatchLogsResponse]:
        """Stream what was written."""
        ...

    async def end_jobs_on(self, datasets: Sequence[str], reason: str) -> Sequence[str]:
        """End the jobs that use any of these datasets, wait until they have, and name them."""
        ...

    async def forget_rows_of(self, datasets: Sequence[str], tenant: str) -> None:
        """Remove what jobs of any time keep in their folders of the rows of these datasets."""
        ...


class Datasets(Protocol):
    """services/trainer/datasets."""

    async def build(self, action: pb.BuildDatasetAction, cleared: Cleared) -> Operation:
        """Build a dataset."""
        ...

    async def check(self, request: pb.CheckDatasetRequest, principal: Principal) -> pb.CheckDatasetResponse:
        """Look at sources."""
        ...

    async def get(self, request: pb.GetDatasetRequest, principal: Principal) -> pb.GetDatasetResponse:
        """Show a dataset."""
        ...

    async def list(self, request: pb.ListDatasetsRequest, principal: Principal) -> pb.ListDatasetsResponse:
        """List datasets."""
        ...

    async def erase(self, tenant: str, subject: str) -> ErasedRows:
        """Remove every dataset version that holds rows of a person; the jobs on them have been ended."""
        ...


class Evaluations(Protocol):
    """services/trainer/evaluation."""

    async def evaluate(self, action: pb.EvaluateAdapterAction, cleared: Cleared) -> Operation:
        """Run a gate profile against an adapter."""
        ...

    async def get(self, request: pb.GetEvaluationRequest, principal: Principal) -> pb.GetEvaluationResponse:
        """Show an evaluation."""
        ...

    async def run_gate(
        self, running: Running, adapter: registry_pb2.Adapter, profile: ContentReference, base: Path
    ) -> registry_pb2.Evaluation:
        """Evaluate a job's new candidate under the job's clearance; never raises for a gate that fails or breaks."""
        ...


class Adapters(Protocol):
    """services/trainer/registry."""

    async def promote(self, action: pb.PromoteAdapterAction, cleared: Cleared) -> pb.PromoteAdapterResponse:
        """Sign an adapter with its passed gate."""
        ...

    async def revoke(
        self, request: pb.RevokeAdapterRequest, principal: Principal
    ) -> pb.RevokeAdapterResponse:
        """End an adapter."""
        ...

    async def get(self, request: pb.GetAdapterRequest, principal: Principal) -> pb.GetAdapterResponse:
        """Show an adapter."""
        ...

    async def list(self, request: pb.ListAdaptersRequest, principal: Principal) -> pb.ListAdaptersResponse:
        """List adapters."""
        ...

    async def register(self, trained: Trained) -> registry_pb2.Adapter:
        """Describe, sign as a candidate and store what a job trained, under the next free version of its name.

        Called again for the same job, as after a restart, it gives the adapter that it already made.
        """
        ...


class Exports(Protocol):
    """services/trainer/export."""

    async def export(self, request: pb.ExportAdapterRequest, principal: Principal) -> Operation:
        """Write an adapter in another layout."""
        ...


@dataclass(slots=True)
class Desks:
    """The domains of one trainer; one that is missing has its calls answered with UNIMPLEMENTED."""

    planner: Planner | None = None
    jobs: Jobs | None = None
    datasets: Datasets | None = None
    evaluations: Evaluations | None = None
    adapters: Adapters | None = None
    exports: Exports | None = None
