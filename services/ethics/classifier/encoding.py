"""Arrange token ids for the classifier. Training and judging use this one module, so both see the same.

A request begins with [CLS]; an answer or an untrusted text has a mark after it that says so. The request that an
answer replies to comes first, as the first segment of the pair. Pure but for numpy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from services.ethics.judge import Stage

MAX_TOKENS: Final = 256
MAX_CONTEXT_TOKENS: Final = 64
PAD, CLS, SEP = 0, 101, 102
# [unused1] and [unused2] of the vocabulary: free for use as marks of a stage.
STAGE_MARKS: Final[Mapping[Stage, int | None]] = {Stage.REQUEST: None, Stage.OUTPUT: 2, Stage.TOOL_RESULT: 3}


@dataclass(frozen=True, slots=True)
class Encoded:
    """One text as token ids (T) with their segment, 0 or 1 (T)."""

    ids: NDArray[np.int32]
    types: NDArray[np.int8]


def room_for_text(context_tokens: int, stage: Stage) -> int:
    """How many tokens of a text fit beside its marks and this much context."""
    first = min(context_tokens, MAX_CONTEXT_TOKENS) + 1 if context_tokens else 0
    return MAX_TOKENS - 2 - first - (STAGE_MARKS[stage] is not None)


def arrange(text: Sequence[int], context: Sequence[int], stage: Stage) -> Encoded:
    """Marks around the tokens of a text and the end of the request that it answers; a long text keeps its two ends."""
    mark = STAGE_MARKS[stage]
    head = [CLS] if mark is None else [CLS, mark]
    first = [*context[-MAX_CONTEXT_TOKENS:], SEP] if context else []
    room = room_for_text(len(context), stage)
    kept = list(text) if len(text) <= room else [*text[: room // 2], *text[-(room - room // 2) :]]
    ids = [*head, *first, *kept, SEP]
    types = [0] * (len(head) + len(first)) + [int(bool(first))] * (len(kept) + 1)
    return Encoded(np.array(ids, np.int32), np.array(types, np.int8))


def batch_arrays(
    encoded: Sequence[Encoded], width: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Ids, attention mask and segments of a batch, each (B, width)."""
    ids = np.full((len(encoded), width), PAD, np.int64)
    mask = np.zeros_like(ids)
    types = np.zeros_like(ids)
    for row, item in enumerate(encoded):
        ids[row, : len(item.ids)] = item.ids
        mask[row, : len(item.ids)] = 1
        types[row, : len(item.ids)] = item.types
    return ids, mask, types
