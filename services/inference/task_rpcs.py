"""What the servicer does for completions, embeddings and rankings: messages in, values through, messages out."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from kala.errors import (
    FailedPreconditionError,
    InvalidArgumentError,
    KalaError,
    NotFoundError,
    UnavailableError,
)
from kala.inference.v1 import inference_pb2 as pb
from services.common.clearance import VerifiedClearance
from services.common.sealing import unpack_strictly
from services.inference import task_answers
from services.inference.backend import Backend, BackendFailure, Capability, Embedder, Reranker
from services.inference.chat import Delta
from services.inference.dispatch import Dispatch, Routed, Step
from services.inference.one_answer import Answered, OneAnswer
from services.inference.protection.outcomes import TASK_NOT_SERVED
from services.inference.reranking import best_first, scores_by_likeness
from services.inference.roles import NO_ROLE, Routing
from services.inference.router import Route, Wanted
from services.inference.task_conversion import Action, complete_call, embed_call, rerank_call, wanted_for

if TYPE_CHECKING:
    from services.inference.attempts import Attempt
    from services.inference.backend import ModelInfo
    from services.inference.protection.protection import Protection
    from services.inference.registry.registry import Registry
    from services.inference.tasks import EmbedCall, RerankCall, Scores, Vectors

OnFailure = Callable[[list["Attempt"]], None]
"""Told of the attempts of a call that failed."""


@dataclass(frozen=True, slots=True)
class Tasks:
    """Serves what is no chat."""

    registry: Registry
    protection: Protection
    routing: Routing
    recheck: Callable[[VerifiedClearance], None]
    choose: Callable[[Wanted], Awaitable[Route]]
    """Gives the route or raises the KalaError that says why there is none."""
    explain: Callable[[Wanted], Route]
    """Gives the route as it is seen now, which may have no candidates."""

    async def complete(
        self, clearance: VerifiedClearance, on_failure: OnFailure
    ) -> AsyncGenerator[pb.CompleteResponse]:
        """Continue a text."""
        action = unpack_strictly(clearance.action, pb.CompleteAction)
        call = complete_call(action)
        route = await self._route(action, Capability.COMPLETE)
        begin = partial(self.recheck, clearance)
        dispatch = Dispatch(self.registry, call, route, recheck=begin, protection=self.protection)
        echo = action.prompt if action.echo else ""
        try:
            async with aclosing(_echoing(dispatch.run(), echo)) as steps:
                async for response in task_answers.completion(steps, is_whole=not call.stream):
                    yield response
        except KalaError:
            on_failure(dispatch.attempts)
            raise

    async def embed(self, clearance: VerifiedClearance, on_failure: OnFailure) -> pb.EmbedResponse:
        """Turn texts into vectors, all by the same model of the same backend."""
        action = unpack_strictly(clearance.action, pb.EmbedAction)
        call = embed_call(action)
        route = await self._route(action, Capability.EMBED)
        one = OneAnswer(self.registry, route, "inputs", Capability.EMBED, self.protection)
        try:
            answered = await one.of(partial(_embed, call, partial(self.recheck, clearance)))
        except KalaError:
            on_failure(one.attempts)
            raise
        return task_answers.embedded(answered.value, answered.routed)

    async def rerank(self, clearance: VerifiedClearance, on_failure: OnFailure) -> pb.RerankResponse:
        """Order documents by their bearing on a query, by embeddings where no model for ranking answers."""
        action = unpack_strictly(clearance.action, pb.RerankAction)
        call = rerank_call(action)
        tried: list[Attempt] = []
        begin = partial(self.recheck, clearance)
        try:
            answered, is_degraded = await self._ranked(action, call, begin, tried)
        except KalaError:
            on_failure(tried)
            raise
        top_n = action.top_n if action.HasField("top_n") else None
        best = best_first(answered.value.values, top_n=top_n)
        return task_answers.ranked(best, answered.value.usage, answered.routed, is_degraded=is_degraded)

    async def _ranked(
        self, action: pb.RerankAction, call: RerankCall, begin: Callable[[], None], tried: list[Attempt]
    ) -> tuple[Answered[Scores], bool]:
        # Explained, not chosen: that no model ranks is the usual case, and no reason to look at every backend again.
        await self.registry.ready()
        route = self._rankers(self._wanted(action, Capability.RERANK))
        failure: KalaError | None = None
        if route.candidates:
            try:
                return await self._scored(
                    route, partial(_rerank, call, begin), tried, Capability.RERANK
                ), False
            except (UnavailableError, NotFoundError, FailedPreconditionError) as error:
                if not self.protection.may_retry():
                    raise
                failure = error
        try:
            route = await self._route(action, Capability.EMBED)
        except KalaError:
            # Nothing can stand in, so what was asked for is what has to be mended.
            if failure is not None:
                raise failure from None
            route = await self._route(action, Capability.RERANK)
            return await self._scored(route, partial(_rerank, call, begin), tried, Capability.RERANK), False
        return await self._scored(route, partial(_likeness, call, begin), tried, Capability.EMBED), True

    def _rankers(self, wanted: Wanted) -> Route:
        """Give the route of a ranking as far as its backends rank at all."""
        try:
            route = self.explain(wanted)
        except InvalidArgumentError:
            # Whatever is wrong is wrong for embeddings too, or does not matter to them.
            return Route((), ())
        rankers = [
            candidate
            for candidate in route.candidates
            if (entry := self.registry.get(candidate.backend)) and isinstance(entry.backend, Reranker)
        ]
        return Route(tuple(rankers), route.passed_over)

    async def _scored(
        self,
        route: Route,
        ask: Callable[[Backend, ModelInfo], Awaitable[Scores]],
        tried: list[Attempt],
        task: Capability,
    ) -> Answered[Scores]:
        one = OneAnswer(self.registry, route, "documents", task, self.protection, attempts=tried)
        return await one.of(ask)

    async def _route(self, action: Action, task: Capability) -> Route:
        return await self.choose(self._wanted(action, task))

    def _wanted(self, action: Action, task: Capability) -> Wanted:
        return self.routing.settle(wanted_for(action, task), NO_ROLE)


async def _echoing(steps: AsyncGenerator[Step], prompt: str) -> AsyncGenerator[Step]:
    """Put the prompt in front of the answer."""
    async with aclosing(steps):
        async for step in steps:
            yield step
            if prompt and isinstance(step, Routed):
                yield Delta(text=prompt)


async def _embed(call: EmbedCall, begin: Callable[[], None], backend: Backend, model: ModelInfo) -> Vectors:
    if not isinstance(backend, Embedder):
        raise BackendFailure(TASK_NOT_SERVED, "embeds no texts")
    return await backend.embed(call, model, begin)


async def _rerank(call: RerankCall, begin: Callable[[], None], backend: Backend, model: ModelInfo) -> Scores:
    if not isinstance(backend, Reranker):
        raise BackendFailure(TASK_NOT_SERVED, "ranks no documents")
    return await backend.rerank(call, model, begin)


async def _likeness(
    call: RerankCall, begin: Callable[[], None], backend: Backend, model: ModelInfo
) -> Scores:
    if not isinstance(backend, Embedder):
        raise BackendFailure(TASK_NOT_SERVED, "embeds no texts")
    return await scores_by_likeness(backend, call, model, begin)
