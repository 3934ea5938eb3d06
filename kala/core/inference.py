"""`InferenceConfig`: which Pythia model a session wants, and how it generates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from kala.errors import InvalidArgumentError

QUANTIZATIONS: Final = frozenset({"8bit", "4bit", None})


@dataclass(frozen=True, slots=True)
class InferenceConfig:
    """A Pythia model to be served in process by the inference service; every field has a default."""

    model_size: str = "6.9b"
    """70m, 160m, 410m, 1b, 1.4b, 2.8b, 6.9b or 12b."""
    quantization: str | None = "8bit"
    """`8bit`, `4bit` or None for full weights; how a private suite holds them. A running suite has its own setting."""
    max_new_tokens: int = 256
    """Longest answer, in tokens, when a request names no other."""
    temperature: float = 0.7
    """Sampling temperature; 0 always takes the likeliest token."""
    top_p: float = 0.9
    """Nucleus sampling."""

    def __post_init__(self) -> None:
        if self.quantization not in QUANTIZATIONS:
            raise InvalidArgumentError("quantization", "must be 8bit, 4bit or None")
