"""Ranks documents: by a model made for it, and by the likeness of embeddings where there is none.  Pure but for the asking."""

from __future__ import annotations

import asyncio
import math
from array import array
from collections.abc import Sequence
from operator import mul
from typing import TYPE_CHECKING

from services.inference.tasks import EmbedCall, RerankCall, Scores, Vectors

if TYPE_CHECKING:
    from collections.abc import Callable

    from services.inference.backend import Embedder, ModelInfo


def best_first(scores: Sequence[float], *, top_n: int | None) -> list[tuple[int, float]]:
    """Give (position, score) of the best documents, the earlier one first where two score alike."""
    order = sorted(range(len(scores)), key=lambda index: (-scores[index], index))
    return [(index, scores[index]) for index in order[:top_n]]


async def scores_by_likeness(
    embedder: Embedder, call: RerankCall, model: ModelInfo, begin: Callable[[], None]
) -> Scores:
    """Score documents by the cosine of the angle between their vectors and the query's, -1 to 1; raises BackendFailure."""
    vectors = await embedder.embed(EmbedCall((call.query, *call.documents)), model, begin)
    # A thousand long vectors take a tenth of a second, in which the event loop serves others.
    return await asyncio.to_thread(likeness, vectors)


def likeness(vectors: Vectors) -> Scores:
    """Compare the first vector with all others; a vector of zeros is like nothing."""
    query, *documents = vectors.values
    return Scores(tuple(_cosine(query, document) for document in documents), vectors.usage)


def _cosine(one: array[float], other: array[float]) -> float:
    lengths = math.hypot(*one) * math.hypot(*other)
    return sum(map(mul, one, other)) / lengths if lengths else 0.0
