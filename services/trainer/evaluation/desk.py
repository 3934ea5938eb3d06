"""The evaluations' RPCs, and the gate of a job that has just trained an adapter."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from google.longrunning.operations_pb2 import Operation

from kala.common.v1.clearance_pb2 import Principal
from kala.common.v1.reference_pb2 import ContentReference
from kala.errors import FailedPreconditionError, InternalError, InvalidArgumentError
from kala.trainer.v1 import job_pb2, registry_pb2
from kala.trainer.v1 import trainer_pb2 as pb
from services.common.sealing import action_digest
from services.trainer.config import TrainerSettings
from services.trainer.cores import usable_cores
from services.trainer.evaluation.evaluator import Evaluator, Show, Subject
from services.trainer.evaluation.profiles import Gate, Profiles
from services.trainer.evaluation.result import ADAPTER, BASE, About
from services.trainer.names import (
    ADAPTERS,
    EVALUATIONS,
    new_number,
    number_of,
    numbered,
    require_request_id,
    require_version,
)
from services.trainer.operations import EVALUATE, Asked, Operations
from services.trainer.places import Places
from services.trainer.records import EVALUATION_STARTED, Cleared
from services.trainer.running import LOCAL, RAY, Running
from services.trainer.store.store import Store
from services.trainer.work.events import Event
from services.trainer.work.order import GENERATE, AdapterPlace, BasePlace, Order

MAX_SECONDS: Final = 86_400.0
"""A profile's questions take a 12b minutes to hours on one GPU; a day later something is stuck."""

EXECUTORS: Final = {
    job_pb2.EXECUTOR_UNSPECIFIED: LOCAL,
    job_pb2.EXECUTOR_LOCAL: LOCAL,
    job_pb2.EXECUTOR_RAY: RAY,
}
FOLDER: Final = "evaluation"
SUITES: Final = "suites"

FindBase = Callable[[ContentReference], Awaitable[Path]]
"""Where the base of this name and digest is; raises FailedPreconditionError when it is not here."""


@dataclass(slots=True)
class Evaluations:
    """Answers for evaluations."""

    settings: TrainerSettings
    operations: Operations
    store: Store
    places: Places
    profiles: Profiles
    evaluator: Evaluator
    find_base: FindBase
    version: str = ""
    _present: dict[str, tuple[str, registry_pb2.Evaluation]] = field(default_factory=dict)
    """Evaluations that run now, with their tenants."""

    async def evaluate(self, action: pb.EvaluateAdapterAction, cleared: Cleared) -> Operation:
        """Run a gate profile against an adapter."""
        require_request_id(action.request_id)
        require_version(ADAPTERS, action.adapter.name, field="adapter.name")
        executor = EXECUTORS.get(action.placement.executor)
        if executor is None:
            raise InvalidArgumentError("placement.executor", "is unknown")
        claims = cleared.verified.claims
        asked = Asked(
            kind=EVALUATE,
            request_id=action.request_id,
            principal=claims.principal,
            digest=action_digest(cleared.sealed.action),
            seconds=min(self.settings.max_seconds, MAX_SECONDS),
            started=EVALUATION_STARTED,
        )
        # What was asked for before is answered as it was: by now its adapter may have been promoted by it.
        known = await self.operations.find(asked)
        if known is not None:
            return known
        adapter = await self.store.get_adapter(action.adapter.name, claims.principal.tenant)
        _require_current(adapter, action)
        gate = await asyncio.to_thread(self._open, action.profile)
        base = await self.find_base(action.base)
        name = numbered(EVALUATIONS, new_number())

        async def run(running: Running) -> registry_pb2.Evaluation:
            return await self._run(
                running, name, adapter, gate, base, executor=executor, placement=action.placement
            )

        asked = replace(
            asked,
            attributes={
                "evaluation": name,
                "adapter": adapter.name,
                "profile": gate.profile.content.name,
                "profile_digest": gate.profile.digest.hex(),
            },
            metadata=registry_pb2.EvaluateAdapterMetadata(evaluation=name, total_items=gate.items),
        )
        return await self.operations.start(asked, run, cleared=cleared)

    async def get(self, request: pb.GetEvaluationRequest, principal: Principal) -> pb.GetEvaluationResponse:
        """Show an evaluation."""
        number_of(EVALUATIONS, request.name)
        tenant, present = self._present.get(request.name, ("", None))
        if present is not None and tenant == principal.tenant:
            return pb.GetEvaluationResponse(evaluation=present)
        found = await self.store.get_evaluation(request.name, principal.tenant)
        return pb.GetEvaluationResponse(evaluation=found)

    async def run_gate(
        self, running: Running, adapter: registry_pb2.Adapter, profile: ContentReference, base: Path
    ) -> registry_pb2.Evaluation:
        """Evaluate a job's new candidate under the job's clearance.

        A gate that fails or breaks is a result; raises KalaError only when the log is away or the profile cannot be asked.
        """
        gate = await asyncio.to_thread(self._open, profile)
        return await self._run(running, numbered(EVALUATIONS, new_number()), adapter, gate, base)

    def _open(self, profile: ContentReference) -> Gate:
        gate = self.profiles.open(self.profiles.find(profile))
        self.evaluator.require(gate)
        return gate

    async def _run(
        self,
        running: Running,
        name: str,
        adapter: registry_pb2.Adapter,
        gate: Gate,
        base: Path,
        *,
        executor: str = LOCAL,
        placement: job_pb2.Placement | None = None,
    ) -> registry_pb2.Evaluation:
        claim = running.claim
        if claim is None:
            raise InternalError("an evaluation runs under a clearance, and this one has none")
        about = About(
            name, adapter.adapter_digest, adapter.description.base.digest, gate.profile, self.version
        )
        subject = Subject(about, adapter.name, gate, claim, running.principal)
        order = self._order(running, name, adapter, gate, base)
        present = registry_pb2.Evaluation(
            name=name,
            adapter=adapter.name,
            profile=gate.profile.content.name,
            decision_id=claim.claims.decision_id,
        )
        present.started_at.GetCurrentTime()
        self._present[name] = (running.principal.tenant, present)

        async def answering(told: Show) -> Path:
            async def heard(event: Event) -> None:
                if isinstance(event.message, registry_pb2.EvaluateAdapterMetadata):
                    await told(event.message)

            await asyncio.to_thread(_place_suites, order.folder / SUITES, gate)
            await running.process(
                order,
                public_keys=self.settings.ethics_public_keys,
                executor=executor,
                placement=placement,
                on_event=heard,
            )
            return order.folder

        try:
            evaluation = await self.evaluator.run(subject, answering, running.show)
            await self.store.put_evaluation(
                evaluation,
                tenant=running.principal.tenant,
                owner=running.principal.id,
                subject=running.principal.subject,
            )
        finally:
            del self._present[name]
        running.end_attributes["evaluation"] = name
        return evaluation

    def _order(
        self, running: Running, name: str, adapter: registry_pb2.Adapter, gate: Gate, base: Path
    ) -> Order:
        claim = running.claim
        description = adapter.description
        return Order(
            kind=GENERATE,
            name=name,
            folder=running.folder / FOLDER / name.rpartition("/")[2],
            principal=running.principal,
            deadline=running.deadline,
            action=None if claim is None else claim.sealed.action,
            base=BasePlace(description.base.name, base, description.base.digest),
            adapter=AdapterPlace(adapter.name, self.places.adapter(adapter.name), adapter.reference.sha256),
            threads=self.settings.threads or usable_cores(),
            memory_bytes=self.settings.memory_bytes,
            settings={
                "suites": [
                    {
                        "name": run.suite.name,
                        "file": f"{SUITES}/{run.path.name}",
                        "digest": run.suite.digest.hex(),
                        "models": [ADAPTER, BASE] if run.needs_base else [ADAPTER],
                    }
                    for run in gate.runs
                ]
            },
        )


def _place_suites(folder: Path, gate: Gate) -> None:
    """Beside the order, where a worker on another machine finds the very files that were just held against the profile."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for run in gate.runs:
        shutil.copyfile(run.path, folder / run.path.name)


def _require_current(adapter: registry_pb2.Adapter, action: pb.EvaluateAdapterAction) -> None:
    """What was cleared must be what is there: the signed manifest and the base that it names."""
    if adapter.state == registry_pb2.ADAPTER_STATE_REVOKED:
        raise FailedPreconditionError(
            f"{adapter.name} is revoked: {adapter.revoked_reason}", reason="ADAPTER_REVOKED"
        )
    if (action.adapter.sha256, action.adapter.bytes) != (adapter.reference.sha256, adapter.reference.bytes):
        raise FailedPreconditionError(
            f"adapter.sha256: {adapter.name} has another manifest by now; take its reference again",
            reason="ADAPTER_CHANGED",
        )
    if action.base.sha256 != adapter.description.base.digest:
        raise FailedPreconditionError(
            f"base.sha256: {adapter.name} was trained on {adapter.description.base.name} of digest "
            f"{adapter.description.base.digest.hex()[:16]}",
            reason="BASE_DIFFERS",
        )
