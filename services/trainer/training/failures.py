"""What can break in the middle of training, in words that say what to do about it."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from kala.errors import KalaError, ResourceExhaustedError
from services.trainer.training.recipe import Work

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
        raise ResourceExhaustedError(f"{_memory_words(work)}", reason=OUT_OF_MEMORY) from error


def _memory_words(work: Work) -> str:
    recipe = work.stages[0].recipe
    cures = []
    if recipe.micro_batch_size > 1:
        cures.append(
            f"set micro_batch_size to {max(1, recipe.micro_batch_size // 2)} (it is {recipe.micro_batch_size})"
        )
    if not work.gradient_checkpointing:
        cures.append("switch gradient_checkpointing on")
    tokens = recipe.max_sequence_tokens
    cures.append(f"lower max_sequence_tokens{f' (it is {tokens})' if tokens else ''}")
    if work.lora is not None and work.quantization == "none":
        cures.append("hold the base in INT8 or NF4")
    if work.lora is None:
        cures.append("train LoRA instead of every weight, or spread it over workers with PARALLELISM_FSDP")
    return f"memory was not enough; the mildest cure first: {'; '.join(cures)}"
