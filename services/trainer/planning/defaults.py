"""Fills what a job leaves open: values by the base's size, the objective and the machine; each is shown as a choice."""

from __future__ import annotations

import math
from typing import Any, Final

from google.protobuf.duration_pb2 import Duration

from kala.common.v1 import adapter_pb2 as common
from kala.trainer.v1 import job_pb2 as pb
from services.trainer.planning.shapes import Shape
from services.trainer.planning.site import Site
from services.trainer.planning.targets import DEFAULT_TARGETS

DEADLINE_SECONDS: Final = 86_400
RANK: Final = 16
EPOCHS: Final = 3.0
SEED: Final = 0

PRESET: Final = "preset"
"""Reason of a choice that goes by size and objective alone."""

TINY_PARAMETERS: Final = 10_000_000
"""Below: the embedded model and test fixtures, which learn at ten times the rate of published ones."""

BIG_PARAMETERS: Final = 900_000_000
"""From here on a job wants a GPU and computes activations twice; the 1b and all larger ones."""

CONSTITUTIONAL_DEFAULTS: Final = {
    "drafts": 1,
    "max_new_tokens": 256,
    "temperature": 0.7,
    "sft_share": 0.5,
    "benign_share": 0.3,
    "dpo_beta": 0.1,
}


class Filler:
    """Fills one spec in place and notes every choice."""

    def __init__(self, spec: pb.TrainingSpec, shape: Shape, site: Site, choices: list[pb.PlanChoice]) -> None:
        self._spec = spec
        self._shape = shape
        self._site = site
        self._choices = choices

    def fill(self) -> None:
        """Set every field that is open; leaves wrong values to the checks."""
        self._fill_kind()
        self._fill_lora()
        self._fill_constitutional()
        self._fill_placement()
        self._fill_hyperparameters()
        if not self._spec.HasField("deadline"):
            self._spec.deadline.CopyFrom(Duration(seconds=DEADLINE_SECONDS))
            self._note("deadline", "24h", "nothing was said")

    @property
    def _is_tiny(self) -> bool:
        return self._shape.parameters < TINY_PARAMETERS

    @property
    def _is_big(self) -> bool:
        return self._shape.parameters >= BIG_PARAMETERS

    def _fill_kind(self) -> None:
        spec = self._spec
        if not spec.method:
            spec.method = pb.TRAINING_METHOD_LORA
        if not spec.quantization:
            spec.quantization = common.QUANTIZATION_NONE
        if not spec.objective:
            if spec.HasField("constitutional"):
                spec.objective = pb.TRAINING_OBJECTIVE_CONSTITUTIONAL
            elif spec.labels or spec.specialist == common.SPECIALIST_GUARDIAN:
                spec.objective = pb.TRAINING_OBJECTIVE_CLASSIFICATION
            else:
                spec.objective = pb.TRAINING_OBJECTIVE_SFT
            self._note(
                "objective", _word(pb.TrainingObjective.Name(spec.objective)), "from what else was said"
            )
        if not spec.stage:
            if spec.specialist:
                spec.stage = common.ADAPTER_STAGE_SPECIALIST
            elif spec.objective == pb.TRAINING_OBJECTIVE_CONSTITUTIONAL:
                spec.stage = common.ADAPTER_STAGE_CONSTITUTIONAL
            else:
                spec.stage = common.ADAPTER_STAGE_CUSTOM
            taken = common.AdapterStage.Name(spec.stage).removeprefix("ADAPTER_STAGE_").lower()
            self._note("stage", taken, "from what else was said")

    def _fill_lora(self) -> None:
        spec = self._spec
        if spec.method != pb.TRAINING_METHOD_LORA:
            return
        lora = spec.lora
        if not lora.rank:
            lora.rank = RANK
            self._note("lora.rank", str(RANK), "nothing was said")
        if not lora.alpha:
            lora.alpha = 2 * lora.rank
            self._note("lora.alpha", str(lora.alpha), "twice the rank")
        if not lora.target_modules:
            lora.target_modules.extend(DEFAULT_TARGETS)
            self._note("lora.target_modules", ", ".join(DEFAULT_TARGETS), "nothing was said")

    def _fill_constitutional(self) -> None:
        if self._spec.objective != pb.TRAINING_OBJECTIVE_CONSTITUTIONAL:
            return
        constitutional = self._spec.constitutional
        if not constitutional.reviser:
            # A demonstration-sized model cannot revise; the dataset card says who did.
            constitutional.reviser = pb.REVISER_TEMPLATE if self._is_tiny else pb.REVISER_MODEL
            taken = "template" if self._is_tiny else "model"
            self._note("constitutional.reviser", taken, "by the base's size")
        for key, value in CONSTITUTIONAL_DEFAULTS.items():
            field = constitutional.DESCRIPTOR.fields_by_name[key]
            is_set = (
                constitutional.HasField(key)  # type: ignore[arg-type]  # one of the message's optional fields
                if field.has_presence
                else bool(getattr(constitutional, key))
            )
            if not is_set:
                self._set(constitutional, "constitutional", key, value)

    def _fill_placement(self) -> None:
        spec, site = self._spec, self._site
        wants_gpu = self._is_big and not spec.HasField("placement")
        placement = spec.placement
        if not placement.workers:
            placement.workers = 1
        if not placement.min_workers:
            placement.min_workers = placement.workers
        if not placement.cpus_per_worker:
            placement.cpus_per_worker = site.cpus_per_worker
        if not placement.parallelism:
            is_shared = spec.method == pb.TRAINING_METHOD_FULL and placement.workers > 1
            placement.parallelism = pb.PARALLELISM_FSDP if is_shared else pb.PARALLELISM_DDP
        if wants_gpu:
            placement.gpus_per_worker = 1
            self._note("placement.gpus_per_worker", "1", "the base is too big to be trained on a CPU")
        if not placement.executor:
            # A local Ray on this machine would add its start-up and nothing else to one worker.
            is_alone = placement.workers == 1
            is_remote = site.has_cluster and self._is_big
            placement.executor = pb.EXECUTOR_LOCAL if is_alone and not is_remote else pb.EXECUTOR_RAY
            is_local = placement.executor == pb.EXECUTOR_LOCAL
            reason = "one worker needs no Ray" if is_local else "several workers, or a base for the cluster"
            self._note("placement.executor", "local" if is_local else "ray", reason)

    def _fill_hyperparameters(self) -> None:
        spec, placement = self._spec, self._spec.placement
        values = spec.hyperparameters
        on_gpu = placement.gpus_per_worker > 0
        if not values.schedule:
            values.schedule = pb.SCHEDULE_COSINE
            self._note("hyperparameters.schedule", "cosine", PRESET)
        if not values.precision:
            values.precision = pb.PRECISION_BF16 if on_gpu else pb.PRECISION_FP32
            self._note("hyperparameters.precision", "bf16" if on_gpu else "fp32", "the device's best")
        batch = 16 if self._is_tiny else 64
        length = min(self._shape.context_tokens, 256 if self._is_tiny else 2_048 if self._is_big else 1_024)
        defaults: dict[str, float] = {
            "learning_rate": self._rate(),
            "warmup_share": 0.05,
            "batch_size": max(batch, placement.workers),
            "max_sequence_tokens": length,
            "packing": spec.objective in {pb.TRAINING_OBJECTIVE_SFT, pb.TRAINING_OBJECTIVE_CONSTITUTIONAL},
            "weight_decay": 0.1 if spec.method == pb.TRAINING_METHOD_FULL else 0.0,
            "max_gradient_norm": 1.0,
            "seed": SEED,
            "gradient_checkpointing": self._is_big,
            "checkpoint_steps": 25 if self._is_tiny else 100,
            "checkpoints_kept": 3,
            "validation_steps": 50 if self._is_tiny else 100,
        }
        if not values.HasField("max_steps"):
            defaults["epochs"] = EPOCHS
        for key, value in defaults.items():
            if not values.HasField(key):  # type: ignore[arg-type]  # one of the message's optional fields
                self._set(values, "hyperparameters", key, value)
        if not values.HasField("micro_batch_size"):
            per_worker = max(values.batch_size // placement.workers, 1)
            most = 16 if self._is_tiny else 4
            fitting = max(size for size in range(1, most + 1) if per_worker % size == 0)
            self._set(values, "hyperparameters", "micro_batch_size", fitting)

    def _rate(self) -> float:
        is_lora = self._spec.method == pb.TRAINING_METHOD_LORA
        rate = (2e-3 if self._is_tiny else 2e-4) if is_lora else 2e-5
        # Preference steps move a model that already answers: a tenth, as the published recipes have it.
        return rate / 10 if self._spec.objective == pb.TRAINING_OBJECTIVE_DPO else rate

    def _set(
        self, message: Any, section: str, key: str, value: float
    ) -> None:  # Any: one of several messages
        setattr(message, key, value)
        self._note(f"{section}.{key}", _number(value), PRESET)

    def _note(self, name: str, taken: str, reason: str) -> None:
        self._choices.append(pb.PlanChoice(field=name, taken=taken, reason=reason))


def _number(value: float) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if math.isfinite(value) else "-"


def _word(name: str) -> str:
    return name.removeprefix("TRAINING_OBJECTIVE_").lower()
