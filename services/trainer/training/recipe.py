"""How one stage of training is done, as plain values with every default filled in.  Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from kala.common.v1 import adapter_pb2
from kala.errors import InvalidArgumentError
from kala.trainer.v1 import job_pb2
from services.common.adapter_weights import MAX_ALPHA, MAX_RANK

DEFAULT_TARGETS: Final = ("query_key_value", "dense")
MAX_BATCH: Final = 1 << 20
MAX_KEPT: Final = 100
MAX_LABELS: Final = 64
QUANTIZATIONS: Final = {
    adapter_pb2.QUANTIZATION_UNSPECIFIED: "none",
    adapter_pb2.QUANTIZATION_NONE: "none",
    adapter_pb2.QUANTIZATION_INT8: "int8",
    adapter_pb2.QUANTIZATION_NF4: "nf4",
}
SCHEDULES: Final = {
    job_pb2.SCHEDULE_UNSPECIFIED: "cosine",
    job_pb2.SCHEDULE_CONSTANT: "constant",
    job_pb2.SCHEDULE_LINEAR: "linear",
    job_pb2.SCHEDULE_COSINE: "cosine",
}
PRECISIONS: Final = {
    job_pb2.PRECISION_UNSPECIFIED: "auto",
    job_pb2.PRECISION_FP32: "fp32",
    job_pb2.PRECISION_BF16: "bf16",
}
OBJECTIVES: Final = {
    job_pb2.TRAINING_OBJECTIVE_SFT: "sft",
    job_pb2.TRAINING_OBJECTIVE_DPO: "dpo",
    job_pb2.TRAINING_OBJECTIVE_CLASSIFICATION: "classification",
    # Its first stage; drafting makes the rows, and the second stage prefers revisions.
    job_pb2.TRAINING_OBJECTIVE_CONSTITUTIONAL: "sft",
}
USES: Final = {
    adapter_pb2.DATASET_USE_TRAIN: "train",
    adapter_pb2.DATASET_USE_REPLAY: "replay",
    adapter_pb2.DATASET_USE_VALIDATION: "validation",
}


@dataclass(frozen=True, slots=True)
class Lora:
    """The adapter's shape; `targets` are the names that the user wrote."""

    rank: int = 16
    alpha: int = 32
    dropout: float = 0.0
    targets: tuple[str, ...] = DEFAULT_TARGETS
    rank_stabilised: bool = False


@dataclass(frozen=True, slots=True)
class DatasetFolder:
    """A built dataset on disk: `train.jsonl`, `validation.jsonl`, `manifest.json`."""

    name: str
    directory: Path
    use: str = "train"
    """`train`, `replay` or `validation`."""
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Recipe:
    """One stage: what is minimised over which rows, for how long."""

    objective: str = "sft"
    """`sft`, `dpo` or `classification`."""
    learning_rate: float = 1e-3
    schedule: str = "cosine"
    warmup_share: float = 0.05
    epochs: float = 1.0
    max_steps: int = 0
    """0: as many as `epochs` give."""
    batch_size: int = 16
    """Sequences per step over all workers."""
    micro_batch_size: int = 16
    """Sequences per worker and pass."""
    max_sequence_tokens: int = 0
    """0: the base's context."""
    packing: bool = True
    """Several short rows in a sequence; only rows of `sft` are ever packed."""
    weight_decay: float = 0.0
    max_gradient_norm: float = 1.0
    validation_steps: int = 0
    """0: never."""
    dpo_beta: float = 0.1
    labels: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _require(self.learning_rate > 0, "learning_rate", "must be above 0, e.g. 0.001")
        _require(0 <= self.warmup_share <= 1, "warmup_share", "must be between 0 and 1")
        _require(self.max_steps > 0 or self.epochs > 0, "epochs", "must be above 0 without max_steps")
        _require(1 <= self.batch_size <= MAX_BATCH, "batch_size", f"must be between 1 and {MAX_BATCH}")
        _require(self.micro_batch_size >= 1, "micro_batch_size", "must be 1 or more")
        _require(self.weight_decay >= 0, "weight_decay", "must be 0 or more")
        _require(self.max_gradient_norm >= 0, "max_gradient_norm", "must be 0 (no clipping) or more")
        _require(self.dpo_beta > 0, "dpo_beta", "must be above 0, e.g. 0.1")
        _require(
            self.objective in set(OBJECTIVES.values()), "objective", "must be sft, dpo or classification"
        )
        if self.objective == "classification":
            _require(1 < len(self.labels) <= MAX_LABELS, "labels", f"must be 2 to {MAX_LABELS} names")


@dataclass(frozen=True, slots=True)
class Stage:
    """A recipe and the rows that it is done with."""

    recipe: Recipe
    datasets: tuple[DatasetFolder, ...]


@dataclass(frozen=True, slots=True)
class Work:
    """Everything that a run of the loop needs; the same work in the same folder goes on where it was cut."""

    folder: Path
    base: Path
    """Directory of the base's files."""
    base_name: str
    stages: tuple[Stage, ...]
    lora: Lora | None = field(default_factory=Lora)
    """None: every weight is trained and the result is a new base."""
    quantization: str = "none"
    """`none`, `int8` or `nf4`."""
    precision: str = "auto"
    """`auto`, `fp32` or `bf16`."""
    gradient_checkpointing: bool = False
    parallelism: str = "ddp"
    seed: int = 0
    checkpoint_steps: int = 100
    checkpoints_kept: int = 2
    deadline: float = 0.0
    """Unix seconds; 0 for none."""

    def __post_init__(self) -> None:
        _require(bool(self.stages), "stages", "must be one or more")
        _require(self.checkpoint_steps >= 1, "checkpoint_steps", "must be 1 or more")
        _require(
            1 <= self.checkpoints_kept <= MAX_KEPT, "checkpoints_kept", f"must be between 1 and {MAX_KEPT}"
        )
        _require(
            self.lora is not None or self.quantization == "none", "quantization",
            "a base of whole weights is trained as its files have it; choose LoRA or no quantization",
        )  # fmt: skip
        _require(
            self.parallelism != "fsdp" or self.quantization == "none", "placement.parallelism",
            "a base in 8 or 4 bits cannot be shared among workers; choose PARALLELISM_DDP or no quantization",
        )  # fmt: skip
        if self.lora is not None:
            _require(1 <= self.lora.rank <= MAX_RANK, "lora.rank", f"must be between 1 and {MAX_RANK}")
            _require(1 <= self.lora.alpha <= MAX_ALPHA, "lora.alpha", f"must be between 1 and {MAX_ALPHA}")
            _require(0 <= self.lora.dropout < 1, "lora.dropout", "must be 0 or more and below 1")
        kinds = {stage.recipe.objective == "classification" for stage in self.stages}
        _require(len(kinds) == 1, "objective", "classification cannot share a job with another objective")

    @property
    def labels(self) -> tuple[str, ...]:
        """A classifier's labels in output order; empty for a language model."""
        recipe = self.stages[0].recipe
        return recipe.labels if recipe.objective == "classification" else ()


def lora_of(spec: job_pb2.TrainingSpec) -> Lora | None:
    """Give the shape that a job asks for; None for full training."""
    if spec.method == job_pb2.TRAINING_METHOD_FULL:
        return None
    lora = spec.lora
    rank = lora.rank or Lora().rank
    return Lora(
        rank=rank,
        alpha=lora.alpha or 2 * rank,
        dropout=lora.dropout,
        targets=tuple(lora.target_modules) or DEFAULT_TARGETS,
        rank_stabilised=lora.rank_stabilised,
    )


def recipe_of(spec: job_pb2.TrainingSpec, *, objective: str = "") -> Recipe:
    """Give a job's recipe; unset fields get this module's defaults.  `objective` overrides a job's of several stages."""
    wanted = objective or OBJECTIVES.get(spec.objective, "")
    given = spec.hyperparameters
    named = {
        name: getattr(given, name)
        for name in (
            "learning_rate", "warmup_share", "epochs", "max_steps", "batch_size", "micro_batch_size",
            "max_sequence_tokens", "packing", "weight_decay", "max_gradient_norm", "validation_steps",
        )
        if given.HasField(name)
    }  # fmt: skip
    plain = Recipe()
    batch = named.get("batch_size", plain.batch_size)
    named.setdefault("micro_batch_size", min(batch, plain.micro_batch_size))
    return Recipe(
        objective=wanted,
        schedule=SCHEDULES[given.schedule],
        labels=tuple(spec.labels),
        **named,
    )


def work_of(
    spec: job_pb2.TrainingSpec,
    *,
    folder: Path,
    base: Path,
    datasets: tuple[DatasetFolder, ...],
    deadline: float = 0.0,
    stages: tuple[Stage, ...] = (),
) -> Work:
    """Give the work of a job with these folders; `stages` replaces the job's single one."""
    given, filled = spec.hyperparameters, {}
    if given.HasField("checkpoint_steps"):
        filled["checkpoint_steps"] = given.checkpoint_steps
    if given.HasField("checkpoints_kept"):
        filled["checkpoints_kept"] = given.checkpoints_kept
    fsdp = spec.placement.parallelism == job_pb2.PARALLELISM_FSDP
    return Work(
        folder=folder,
        base=base,
        base_name=spec.base.name,
        stages=stages or (Stage(recipe_of(spec), datasets),),
        lora=lora_of(spec),
        quantization=QUANTIZATIONS[spec.quantization],
        precision=PRECISIONS[given.precision],
        gradient_checkpointing=given.gradient_checkpointing,
        parallelism="fsdp" if fsdp else "ddp",
        seed=given.seed,
        deadline=deadline,
        **filled,
    )


def _require(holds: object, name: str, problem: str) -> None:
    if not holds:
        raise InvalidArgumentError(name, problem)
