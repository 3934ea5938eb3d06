"""The memory that training takes on each worker, and the disk that its results take: arithmetic, no measurement."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from kala.common.v1.adapter_pb2 import QUANTIZATION_INT8, QUANTIZATION_NF4
from kala.trainer.v1 import job_pb2 as pb
from services.trainer.planning.shapes import Shape

GIB: Final = 1 << 30

ADAMW_BYTES: Final = 16
"""Bytes per trained parameter: the number, its gradient and the optimiser's two means, each in fp32."""

NF4_BITS: Final = 4.5
"""Bits per weight in NF4: four, and a fp32 scale for every 64 weights."""

INT8_BYTES: Final = 1.0

MOST: Final = 1 << 62
"""Within every message, and beyond every machine."""

LAYER_BYTES: Final = 34
"""Bytes per token and hidden unit that one layer keeps for its backward pass in half precision, when attention is not
kept (Korthikanti et al. 2022, equation 2); twice that in fp32."""

LOGIT_BYTES: Final = 10
"""Bytes per logit in half precision: the logit, its fp32 copy and the gradient; 12 in fp32."""
LOGIT_BYTES_FP32: Final = 12

GPU_OVERHEAD: Final = 1 * GIB
CPU_OVERHEAD: Final = 750 << 20
"""What torch, transformers and peft take in a process before a model is in it."""

REPORT_BYTES: Final = 8 << 20
CHECKPOINT_FACTOR: Final = 3
"""A checkpoint holds the trained numbers and the optimiser's two means."""


@dataclass(frozen=True, slots=True)
class Load:
    """What the estimate depends on."""

    shape: Shape
    spec: pb.TrainingSpec
    trained: int
    """Parameters that are trained."""
    weight_bytes_per_parameter: int
    """2 where the base is held in half precision, else 4."""

    @property
    def is_full(self) -> bool:
        """Whether every weight is trained."""
        return self.spec.method == pb.TRAINING_METHOD_FULL

    @property
    def workers_per_model(self) -> int:
        """Workers that share one copy of the model."""
        is_shared = self.spec.placement.parallelism == pb.PARALLELISM_FSDP
        return max(self.spec.placement.workers, 1) if is_shared else 1


def estimate(load: Load, available: int | None) -> pb.MemoryEstimate:
    """The estimate on each worker, with cures where it does not fit into `available` bytes."""
    made = pb.MemoryEstimate(
        weights_bytes=_weights(load) // load.workers_per_model,
        training_bytes=_training(load) // load.workers_per_model,
        activation_bytes=min(_activations(load), MOST),
        overhead_bytes=GPU_OVERHEAD if load.spec.placement.gpus_per_worker else CPU_OVERHEAD,
    )
    made.total_bytes = made.weights_bytes + made.training_bytes + made.activation_bytes + made.overhead_bytes
    if available is not None:
        made.available_bytes = available
        if made.total_bytes > available:
            made.cures.extend(_cures(load))
    return made


def disk_bytes(load: Load) -> int:
    """Checkpoints kept, the result and the reports."""
    kept = load.spec.hyperparameters.checkpoints_kept
    # One more than is kept lies there while the next is written.
    return (kept + 1) * load.trained * 4 * CHECKPOINT_FACTOR + load.trained * 4 + REPORT_BYTES


def _weights(load: Load) -> int:
    """Embedding and head stay unquantised."""
    shape, width = load.shape, load.weight_bytes_per_parameter
    per_parameter = {QUANTIZATION_INT8: INT8_BYTES, QUANTIZATION_NF4: NF4_BITS / 8}.get(
        load.spec.quantization, width
    )
    return int(shape.layer_parameters * per_parameter) + shape.embedding_parameters * width


def _training(load: Load) -> int:
    """A full fine-tune's fp32 numbers are counted with the weights."""
    return load.trained * (ADAMW_BYTES - load.weight_bytes_per_parameter if load.is_full else ADAMW_BYTES)


def _activations(load: Load) -> int:
    values, shape = load.spec.hyperparameters, load.shape
    is_fp32 = values.precision == pb.PRECISION_FP32
    # A preference step passes the chosen and the rejected answer.
    rows = values.micro_batch_size * (2 if load.spec.objective == pb.TRAINING_OBJECTIVE_DPO else 1)
    tokens = rows * values.max_sequence_tokens
    layer = tokens * shape.hidden * LAYER_BYTES * (2 if is_fp32 else 1)
    logits = tokens * shape.vocabulary * (LOGIT_BYTES_FP32 if is_fp32 else LOGIT_BYTES)
    if load.spec.objective == pb.TRAINING_OBJECTIVE_CLASSIFICATION:
        logits = 0
    if values.gradient_checkpointing:
        # The logits are gone before the first layer is computed a second time.
        return tokens * shape.hidden * shape.layers * (4 if is_fp32 else 2) + max(logits, layer)
    return layer * shape.layers + logits


def _cures(load: Load) -> list[str]:
    values, spec = load.spec.hyperparameters, load.spec
    cures: list[str] = []
    if not values.gradient_checkpointing:
        cures.append("set hyperparameters.gradient_checkpointing to true: about a third slower")
    if values.micro_batch_size > 1:
        cures.append("set hyperparameters.micro_batch_size to 1; batch_size may stay as it is")
    if values.max_sequence_tokens > 512:  # noqa: PLR2004 - shorter ones cut most conversations
        cures.append(f"halve hyperparameters.max_sequence_tokens to {values.max_sequence_tokens // 2}")
    if load.is_full:
        cures += ["set method to lora", "share the model among more workers: placement.parallelism fsdp"]
    elif spec.quantization not in {QUANTIZATION_INT8, QUANTIZATION_NF4}:
        cures.append("set quantization to 8-bit")
    elif spec.quantization == QUANTIZATION_INT8:
        cures.append("set quantization to nf4")
    cures.append("take a smaller base or a machine with more memory")
    return cures
