"""How much content a model of some size can make use of.  Pure.

The numbers are those of a studio that scores threat reports with small local models: 1B models get about 550 tokens of
content, 3B models 2,600, models of 8B and more 6,700, each within the context that such models are usually loaded with.
"""

from __future__ import annotations

import re
from typing import Final

SMALL: Final = 550
MEDIUM: Final = 2600
LARGE: Final = 6700

MEDIUM_FROM: Final = 2.0
LARGE_FROM: Final = 6.0
"""Billions of parameters."""

SMALL_CONTEXT: Final = 2048
MEDIUM_CONTEXT: Final = 4096
"""The contexts that 1B and 3B models are usually loaded with; they stand in where a name tells no size."""

# "4bit" is no size; "e4b" (Gemma 3n) and "8x7b" are.
_BILLIONS: Final = re.compile(r"(?<![0-9.])([0-9]{1,4}(?:\.[0-9]{1,3})?)b(?![a-z0-9])")
_MILLIONS: Final = re.compile(r"(?<![0-9.])([0-9]{1,4})m(?![a-z0-9])")


def parameter_billions(name: str) -> float | None:
    """Read a model's size out of its name, None where it tells none: `qwen/qwen3-4b-2507` has 4."""
    lowered = name.lower()
    if (found := _BILLIONS.search(lowered)) is not None:
        return float(found.group(1))
    if (found := _MILLIONS.search(lowered)) is not None:
        return float(found.group(1)) / 1000
    return None


def content_budget(name: str, context_tokens: int | None) -> int:
    """Give the most content for a model, in tokens; one whose size nobody knows is judged by its context.

    A model of unknown size and context gets the least, which every model can read.
    """
    billions = parameter_billions(name)
    if billions is not None:
        return SMALL if billions < MEDIUM_FROM else MEDIUM if billions < LARGE_FROM else LARGE
    if context_tokens is None or context_tokens <= SMALL_CONTEXT:
        return SMALL
    return MEDIUM if context_tokens <= MEDIUM_CONTEXT else LARGE
