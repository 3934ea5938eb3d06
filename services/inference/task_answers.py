"""Completions, embeddings and rankings as messages of the contract."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kala.inference.v1 import inference_pb2 as pb
from services.inference.answers import finish, route_info, usage_message
from services.inference.chat import Delta
from services.inference.dispatch import Ended, Routed, Step

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, AsyncIterator, Iterable

    from services.inference.chat import Usage
    from services.inference.tasks import Vectors


async def completion(steps: AsyncIterable[Step], *, is_whole: bool) -> AsyncIterator[pb.CompleteResponse]:
    """Write Complete's stream: a whole answer in one message, else the route with the first words, then as they come."""
    waiting: pb.CompleteResponse | None = None
    async for step in steps:
        response = pb.CompleteResponse() if waiting is None else waiting
        _add(response, step)
        waiting = response if is_whole or isinstance(step, Routed) else None
        if waiting is None:
            yield response
    if waiting is not None:
        yield waiting


def embedded(vectors: Vectors, routed: Routed) -> pb.EmbedResponse:
    """Write the vectors of a call."""
    return pb.EmbedResponse(
        embeddings=[pb.Embedding(index=index, values=values) for index, values in enumerate(vectors.values)],
        route=route_info(routed),
        usage=usage_message(vectors.usage),
    )


def ranked(
    best: Iterable[tuple[int, float]], usage: Usage, routed: Routed, *, is_degraded: bool
) -> pb.RerankResponse:
    """Write an order of documents, best first."""
    return pb.RerankResponse(
        results=[pb.RerankResult(index=index, score=score) for index, score in best],
        degraded=is_degraded,
        route=route_info(routed),
        usage=usage_message(usage),
    )


def _add(response: pb.CompleteResponse, step: Step) -> None:
    match step:
        case Delta():
            response.text += step.text
        case Routed():
            response.route.CopyFrom(route_info(step))
        case Ended():
            response.finish.CopyFrom(finish(step))
