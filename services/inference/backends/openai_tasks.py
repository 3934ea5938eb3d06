"""Embeddings and rankings over the OpenAI-compatible protocol, for the servers that have them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from services.inference.backend import BackendFailure, ModelInfo
from services.inference.backends.model_server import OK, ModelServerBackend
from services.inference.backends.task_wire import (
    batches,
    embeddings_body,
    joined,
    read_embeddings,
    read_scores,
    rerank_body,
)
from services.inference.chat import Opened
from services.inference.protection.outcomes import TASK_NOT_SERVED
from services.inference.tasks import EmbedCall, RerankCall, Scores, Vectors

EMBED_PATH: Final = "/v1/embeddings"
RERANK_PATH: Final = "/v1/rerank"

_ABSENT: Final = frozenset({"NOT_SERVED", "HTTP_405", "HTTP_501"})
"""How servers say that an endpoint is not there, or was not switched on."""


class TaskServer(ModelServerBackend):
    """A server that has endpoints whose answer is one body."""

    async def _answer_to(
        self,
        path: str,
        body: bytes,
        begin: Callable[[], None],
        *,
        is_first: bool = True,
        says: str = "embeds no texts",
    ) -> bytes:
        """Send a request and give its whole answer; raises BackendFailure for anything but a 200.

        `begin` is called for the first request of a call: the clearance covers all of it.  `says` is for a server that
        has no such endpoint.
        """
        async with self._http.post(path, body, begin if is_first else _going_on, streams=False) as answer:
            if answer.status == OK:
                return await answer.body()
            failure = self.failure_of(answer.status, await answer.error_body())
            if failure.reason in _ABSENT:
                raise BackendFailure(TASK_NOT_SERVED, says, told=failure.told)
            raise failure


class EmbeddingServer(TaskServer):
    """A server that embeds."""

    async def embed(self, call: EmbedCall, model: ModelInfo, begin: Callable[[], None]) -> Vectors:
        """Embed in batches, one after the other; see Embedder."""
        parts: list[Vectors] = []
        for texts in batches(call.inputs):
            body = embeddings_body(texts, model=self.wire_model(model), dimensions=call.dimensions)
            answer = await self._answer_to(EMBED_PATH, body, begin, is_first=not parts)
            answered, part = read_embeddings(answer, texts=len(texts))
            self._check_model(Opened(answered), model)
            parts.append(part)
        return joined(parts, dimensions=call.dimensions)


class RankingServer(EmbeddingServer):
    """A server that embeds and ranks."""

    async def rerank(self, call: RerankCall, model: ModelInfo, begin: Callable[[], None]) -> Scores:
        """Score all documents in one request; see Reranker."""
        body = rerank_body(call.query, call.documents, model=self.wire_model(model))
        answered, scores = read_scores(
            await self._answer_to(RERANK_PATH, body, begin, says="ranks no documents"),
            documents=len(call.documents),
        )
        self._check_model(Opened(answered), model)
        return scores


def _going_on() -> None:
    """Begin nothing: the call has begun with its first batch."""
