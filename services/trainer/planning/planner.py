"""Plans training jobs: makes a spec whole, resolves its names to digests, and says what it would take and what stops it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

from google.protobuf.duration_pb2 import Duration

from kala.common.v1.adapter_pb2 import LoraTarget
from kala.common.v1.clearance_pb2 import Principal
from kala.common.v1.reference_pb2 import ContentReference
from kala.errors import InvalidArgumentError, KalaError
from kala.trainer.v1 import job_pb2 as pb
from kala.trainer.v1 import trainer_pb2
from kala.trainer.v1.dataset_pb2 import Dataset
from services.trainer.planning import checks
from services.trainer.planning.amounts import amounts, unbuilt
from services.trainer.planning.bases import Bases
from services.trainer.planning.defaults import BIG_PARAMETERS, Filler
from services.trainer.planning.job_document import JobDraft, read_job
from services.trainer.planning.memory import Load, disk_bytes, estimate
from services.trainer.planning.row_kinds import wrong_kinds
from services.trainer.planning.shapes import EMBEDDED, PRESETS, Shape
from services.trainer.planning.site import Catalogue, Site
from services.trainer.planning.spec_bounds import require_bounded
from services.trainer.planning.targets import find_targets, trained_parameters
from services.trainer.planning.text import plan_text
from services.trainer.planning.yaml_document import did_you_mean, shown

TENSOR_HEADER_BYTES: Final = 130
"""Of one matrix in a weights file: its name, number format, shape and place."""


class Planner:
    """Serves PlanJob, and says of any spec what CreateTrainingJob would refuse."""

    def __init__(self, bases: Bases, catalogue: Catalogue, site: Site) -> None:
        self._bases = bases
        self._catalogue = catalogue
        self._site = site

    async def plan(
        self, request: trainer_pb2.PlanJobRequest, principal: Principal
    ) -> trainer_pb2.PlanJobResponse:
        """The plan for YAML or a spec; raises InvalidArgumentError for YAML that is not one and for neither."""
        if request.WhichOneof("job") == "yaml":
            # Half a second for the longest text there may be, in which everybody else would wait.
            draft = await asyncio.to_thread(read_job, request.yaml)
        elif request.WhichOneof("job") == "spec":
            draft = JobDraft(spec=request.spec)
        else:
            raise InvalidArgumentError("job", "is not set; send yaml or spec")
        return trainer_pb2.PlanJobResponse(plan=await self._plan(draft, principal))

    async def plan_spec(self, spec: pb.TrainingSpec, principal: Principal) -> pb.TrainingPlan:
        """The plan for a spec; it can be started when the plan has no problems and the plan's spec equals it."""
        return await self._plan(JobDraft(spec=spec), principal)

    async def _plan(self, draft: JobDraft, principal: Principal) -> pb.TrainingPlan:
        require_bounded(draft.spec)
        plan = pb.TrainingPlan(spec=draft.spec, choices=draft.choices)
        spec = plan.spec
        shape = self._shape(plan)
        choices: list[pb.PlanChoice] = []
        # A base that nobody knows has no shape: the smallest stands in, so that all else is still said.
        Filler(spec, shape or PRESETS["pythia-70m"], self._site, choices).fill()
        plan.choices.extend(choices)
        await self._resolve_base(plan)
        datasets = await self._resolve_datasets(plan, draft, principal)
        await self._resolve_profile(plan)
        await self._resolve_parents(plan, principal)
        found = [*checks.problems(spec, shape, self._site), *wrong_kinds(spec, datasets)]
        plan.problems.extend(found)
        plan.warnings.extend(checks.warnings(spec, shape, self._site))
        # Numbers that are out of bounds are nothing to reckon with.
        if shape is not None and not any(checks.numbers(spec)):
            self._measure(plan, shape)
            if not found:
                await self._time(plan, shape, datasets)
        plan.text = plan_text(plan, shape)
        return plan

    def _shape(self, plan: pb.TrainingPlan) -> Shape | None:
        name = plan.spec.base.name
        if not name:
            return None
        try:
            shape = self._bases.shape(name)
        except KalaError as error:
            plan.problems.append(f"base_model: {name}: {error.message}")
            return None
        if shape is None:
            known = sorted({*PRESETS, EMBEDDED, *self._bases.names()})
            plan.problems.append(
                f"base_model: {shown(name)} is no known base{did_you_mean(name, known, known)}"
            )
        return shape

    async def _resolve_base(self, plan: pb.TrainingPlan) -> None:
        wanted = plan.spec.base
        try:
            base = await self._bases.find(wanted.name) if wanted.name else None
        except KalaError as error:
            plan.problems.append(f"base_model: {wanted.name}: {error.message}")
            return
        if base is not None:
            plan.weights_present = True
            _adopt(plan, "base_model", wanted, base.reference)
        elif wanted.name in PRESETS:
            plan.problems.append(
                f"base_model: the weights of {wanted.name} are not here; get them with `kala models pull "
                f"EleutherAI/{wanted.name}` into the trainer's directory of bases"
            )
        elif wanted.name == EMBEDDED:
            plan.problems.append(f"base_model: {EMBEDDED} is not here; the operator must set embedded_dir")

    async def _resolve_datasets(
        self, plan: pb.TrainingPlan, draft: JobDraft, principal: Principal
    ) -> list[Dataset | None]:
        found: list[Dataset | None] = []
        for index, share in enumerate(plan.spec.datasets):
            field, name = f"datasets[{index}]", share.dataset.name
            stem = name.partition("@")[0]
            try:
                dataset = await self._catalogue.dataset(name, principal)
            except InvalidArgumentError as error:
                dataset = None
                plan.problems.append(f"{field}: {error.problem}")
            else:
                if dataset is None:
                    cure = (
                        "it is in build: `kala train submit` builds it first"
                        if stem in draft.builds
                        else "`kala data list` shows what there is, `kala data build` makes one"
                    )
                    plan.problems.append(f"{field}: there is no {name}; {cure}")
            if dataset is not None:
                if "@" not in name:
                    share.dataset.name = dataset.reference.name
                    self._note(plan, f"{field}.dataset", name, dataset.reference.name, "the newest version")
                _adopt(plan, field, share.dataset, dataset.reference)
                if not dataset.report.train_rows:
                    plan.problems.append(f"{field}: {dataset.name} has no rows for training")
            share.weight = share.weight or 1
            found.append(dataset or unbuilt(draft.builds.get(stem, 0)))
        return found

    async def _resolve_profile(self, plan: pb.TrainingPlan) -> None:
        spec = plan.spec
        if not spec.HasField("gate_profile"):
            return
        profile = await self._catalogue.profile(spec.gate_profile.name)
        if profile is None:
            known = await self._catalogue.profiles()
            hint = did_you_mean(spec.gate_profile.name, known, known)
            plan.problems.append(f"gate_profile: there is no {shown(spec.gate_profile.name)}{hint}")
            return
        _adopt(plan, "gate_profile", spec.gate_profile, profile.reference)
        if profile.is_demo and not self._site.allows_demo_profiles:
            plan.warnings.append(
                f"gate_profile: {spec.gate_profile.name} is for demonstrations; what passes it serves only under "
                "`kala up`"
            )

    async def _resolve_parents(self, plan: pb.TrainingPlan, principal: Principal) -> None:
        for index, parent in enumerate(plan.spec.parents):
            try:
                found = await self._catalogue.parent(parent.name, principal)
            except InvalidArgumentError as error:
                plan.problems.append(f"parents[{index}]: {error.problem}")
                continue
            if found is None:
                plan.problems.append(
                    f"parents[{index}]: there is no {parent.name}; `kala adapters list` shows what there is"
                )
            else:
                _adopt(plan, f"parents[{index}]", parent, found)

    def _measure(self, plan: pb.TrainingPlan, shape: Shape) -> None:
        spec = plan.spec
        is_full = spec.method == pb.TRAINING_METHOD_FULL
        targets: list[LoraTarget] = []
        if not is_full:
            try:
                targets = find_targets(shape, spec.lora.target_modules)
            except InvalidArgumentError as error:
                plan.problems.append(error.message)
        plan.targets.extend(targets)
        trained = shape.parameters if is_full else trained_parameters(targets, spec.lora.rank)
        head = shape.hidden * len(spec.labels)
        plan.trained_parameters = trained + head
        width = 2 if spec.hyperparameters.precision == pb.PRECISION_BF16 and not is_full else 4
        tensors = sum(2 * each.matched for each in targets)
        plan.adapter_bytes = 0 if is_full else 4 * (trained + head) + TENSOR_HEADER_BYTES * tensors
        load = Load(shape, spec, trained + head, width)
        on_gpu = spec.placement.gpus_per_worker > 0
        is_here = spec.placement.executor == pb.EXECUTOR_LOCAL or not self._site.has_cluster
        here = self._site.memory_bytes if is_here else None
        available = self._site.gpu_memory_bytes if on_gpu else here
        if available is not None and not on_gpu:
            available //= spec.placement.workers or 1
        plan.memory.CopyFrom(estimate(load, available))
        plan.disk_bytes = disk_bytes(load)
        if plan.memory.cures:
            plan.problems.append(
                f"memory: about {plan.memory.total_bytes / 2**30:.1f} GiB are needed on each worker and "
                f"{plan.memory.available_bytes / 2**30:.1f} GiB are there; {plan.memory.cures[0]}"
            )
        if shape.parameters >= BIG_PARAMETERS and not on_gpu:
            plan.warnings.append(
                "placement.gpus_per_worker: a base of this size takes weeks on CPUs; ask for 1"
            )

    async def _time(self, plan: pb.TrainingPlan, shape: Shape, datasets: Sequence[Dataset | None]) -> None:
        found = amounts(plan.spec, shape, datasets)
        if found is None:
            return
        plan.steps, plan.tokens = found.steps, found.tokens
        placement = plan.spec.placement
        device = "gpu" if placement.gpus_per_worker else "cpu"
        speed = await self._catalogue.tokens_per_second(plan.spec.base.name, device)
        if speed:
            seconds = int(found.tokens / (speed * placement.workers)) + 1
            plan.expected_time.CopyFrom(Duration(seconds=seconds))

    @staticmethod
    def _note(plan: pb.TrainingPlan, field: str, asked: str, taken: str, reason: str) -> None:
        plan.choices.append(pb.PlanChoice(field=field, asked=asked, taken=taken, reason=reason))


def _adopt(plan: pb.TrainingPlan, field: str, wanted: ContentReference, found: ContentReference) -> None:
    """Fill in digest and size, or say that another thing stands there now."""
    if wanted.sha256 and wanted.sha256 != found.sha256:
        plan.problems.append(
            f"{field}: {wanted.name} has digest {found.sha256.hex()[:16]}, not {wanted.sha256.hex()[:16]} as asked; "
            "plan again"
        )
        return
    wanted.sha256, wanted.bytes = found.sha256, found.bytes
