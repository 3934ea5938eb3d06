"""What can break in the middle of training, in words that say what to do about it."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

from kala.errors import KalaError, ResourceExhaustedError
from kala.trainer.v1 import job_pb2
from services.trainer.planning.memory import Load, estimate
from services.trainer.planning.shapes import read_shape
from services.trainer.planning.targets import find_targets, trained_parameters
from services.trainer.training.recipe import OBJECTIVES, QUANTIZATIONS, Work

OUT_OF_MEMORY: Final = "OUT_OF_MEMORY"
DISK_FULL: Final = "DISK_FULL"
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
_NO_MEMORY_TEXTS: Final = ("can't allocate memory", "out of memory", "Cannot allocate memory", "bad_alloc")


@contextmanager
def cured(work: Work) -> Iterator[None]:
    """Turn a full disk and too little memory into errors that name the cure; all else passes through."""
    try:
        yield
    except KalaError:
        raise
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise ResourceExhaustedError(
            f"the disk with the job's folder is full; free space, keep fewer checkpoints "
            f"(checkpoints_kept is {work.checkpoints_kept}) or save them less often. "
            "The checkpoints that were written before hold: the job goes on from the last one",
            reason=DISK_FULL,
        ) from error
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not any(text in str(error) for text in _NO_MEMORY_TEXTS):
            if "No space left on device" in str(error):
                raise ResourceExhaustedError(
                    "the disk with the job's folder is full; free space or keep fewer checkpoints",
                    reason=DISK_FULL,
                ) from error
            raise
        raise ResourceExhaustedError(_memory_words(work), reason=OUT_OF_MEMORY) from error


def _memory_words(work: Work) -> str:
    recipe = max((stage.recipe for stage in work.stages), key=lambda recipe: recipe.micro_batch_size)
    cures = []
    if recipe.micro_batch_size > 1:
        half = recipe.micro_batch_size // 2
        cures.append(
            f"set micro_batch_size to {half} (it is {recipe.micro_batch_size}; batch_size may stay as it is)"
        )
    if not work.gradient_checkpointing:
        cures.append("switch gradient_checkpointing on")
    tokens = recipe.max_sequence_tokens
    cures.append(f"lower max_sequence_tokens{f' (it is {tokens})' if tokens else ''}")
    if work.lora is None:
        cures.append(
            "train LoRA instead of every weight, or share the model among workers with PARALLELISM_FSDP"
        )
    elif work.quantization == "none":
        cures.append("hold the base in INT8 or NF4")
    return f"memory was not enough{_estimate(work)}. The mildest cure first: {'; '.join(cures)}"


def _estimate(work: Work) -> str:
    """What each worker was expected to need, by the plan's arithmetic; nothing where the base cannot be read."""
    stage = max(work.stages, key=lambda each: each.recipe.micro_batch_size)
    recipe = stage.recipe
    try:
        shape = read_shape(work.base / "config.json")
        targets = find_targets(shape, work.lora.targets) if work.lora else []
    except KalaError:
        return ""
    spec = job_pb2.TrainingSpec(
        method=job_pb2.TRAINING_METHOD_LORA if work.lora else job_pb2.TRAINING_METHOD_FULL,
        quantization=_number(QUANTIZATIONS, work.quantization),
        objective=_number(OBJECTIVES, recipe.objective),
        hyperparameters=job_pb2.Hyperparameters(
            micro_batch_size=recipe.micro_batch_size,
            max_sequence_tokens=recipe.max_sequence_tokens or shape.context_tokens,
            gradient_checkpointing=work.gradient_checkpointing,
            precision=job_pb2.PRECISION_BF16 if work.precision == "bf16" else job_pb2.PRECISION_FP32,
        ),
    )
    trained = trained_parameters(targets, work.lora.rank) if work.lora else shape.parameters
    width = 2 if work.precision == "bf16" and work.lora else 4
    expected = estimate(Load(shape, spec, trained, width), None)
    return (
        f": by arithmetic each worker needs {_mib(expected.total_bytes)}, of which activations "
        f"{_mib(expected.activation_bytes)} and weights {_mib(expected.weights_bytes)}"
    )


def _number(table: Mapping[Any, str], wanted: str) -> Any:  # an enumeration's number
    return next(number for number, name in table.items() if name == wanted)


def _mib(count: int) -> str:
    return f"{count / (1 << 20):,.0f} MiB"
