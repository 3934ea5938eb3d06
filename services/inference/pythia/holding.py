"""How the model in process is held in memory.  Pure."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final

AUTO: Final = "auto"


class Quantization(enum.Enum):
    """Bits of a weight in memory; the files and their digest stay as they are."""

    NONE = "none"
    INT8 = "8bit"
    """LLM.int8: about half the memory of float16."""
    NF4 = "4bit"
    """4-bit NormalFloat: about a quarter."""


@dataclass(frozen=True, slots=True)
class Holding:
    """Where the weights are and in which numbers."""

    device: str = AUTO
    """`cpu`, `cuda`, `cuda:1`, `mps`; `auto` is an accelerator if there is one."""
    dtype: str = AUTO
    """`float32`, `float16` or `bfloat16`; `auto` is the fastest that the device does well."""
    quantization: Quantization = Quantization.NONE
    threads: int = 1
    """Threads of a CPU."""


class CannotLoadError(Exception):
    """The model cannot be held as asked; `reason` is stable, `detail` is in words with the cure."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail
