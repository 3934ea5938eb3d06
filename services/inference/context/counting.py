"""Counts a prompt for the model that would answer it, and fits it to that model's context if asked.

Nothing is generated, no model is loaded, and no prompt leaves for a remote backend: it was not judged yet.
"""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Awaitable
from dataclasses import dataclass, replace
from typing import Final

from kala.errors import FailedPreconditionError, InvalidArgumentError
from services.inference.backend import Backend, BackendFailure, ModelInfo, TokenCounter
from services.inference.chat import ChatCall, Part, Text
from services.inference.context.budgets import content_budget
from services.inference.context.estimate import estimate_media, estimate_prompt, estimate_text
from services.inference.context.fitting import Fit, Messages, keep_system_and_tail, shorten_content

CONTEXT_UNKNOWN: Final = "CONTEXT_UNKNOWN"


class Strategy(enum.Enum):
    """How a prompt is to be fitted."""

    NONE = "none"
    KEEP_SYSTEM_AND_TAIL = "keep-system-and-tail"
    CONTENT_BUDGET = "content-budget"


@dataclass(frozen=True, slots=True)
class Counted:
    """A prompt's tokens for one model; `fitted` is None where only a count was asked for."""

    tokens: int
    is_estimated: bool
    context_tokens: int | None
    fitted: Fit | None = None


class _TokenizerLost(Exception):  # noqa: N818 - a turn of events, not an error
    """The tokenizer failed; from now on the measure estimates."""


class BackendMeasure:
    """Counts with the backend's own tokenizer until that fails once, and estimates from then on.

    Exact and estimated numbers are of two kinds and must not be set off against each other, so the failure is told.
    """

    def __init__(self, backend: Backend, call: ChatCall, model: ModelInfo) -> None:
        self._call = call
        self._model = model
        self._counter: TokenCounter | None = None
        # A remote tokenizer would see the prompt before anybody judged it.
        if isinstance(backend, TokenCounter) and not backend.identity.is_remote:
            self._counter = backend
        self.is_estimated = self._counter is None

    async def prompt(self, messages: Messages) -> int:
        """Count a conversation with the call's functions."""
        if self._counter is None:
            # Megabytes take tens of milliseconds, and fitting counts often: others get their turn in between.
            await asyncio.sleep(0)
            return estimate_prompt(messages, self._call.tools)
        # No tokenizer tells what an image becomes, so the rest is counted without it.
        texts = tuple(replace(message, parts=_texts(message.parts)) for message in messages)
        counting = self._counter.count_prompt(replace(self._call, messages=texts), self._model)
        counted, media = await self._exactly(counting), estimate_media(messages)
        self.is_estimated = self.is_estimated or media > 0
        return counted + media

    async def text(self, text: str) -> int:
        """Count a text by itself."""
        if self._counter is None:
            return estimate_text(text)
        return await self._exactly(self._counter.count_text(text, self._model))

    async def _exactly(self, counting: Awaitable[int]) -> int:
        try:
            return await counting
        except BackendFailure as failure:
            self._counter, self.is_estimated = None, True
            raise _TokenizerLost from failure


async def count(
    backend: Backend, call: ChatCall, model: ModelInfo, *, strategy: Strategy, reserved_tokens: int
) -> Counted:
    """Count, and fit by `strategy` with `reserved_tokens` kept free for the answer.

    Raises InvalidArgumentError where the prompt cannot be made to fit, and FailedPreconditionError where the context
    is needed and unknown.
    """
    measure = BackendMeasure(backend, call, model)
    limit = None if strategy is Strategy.NONE else _limit(backend, model, reserved_tokens)
    try:
        return await _counted(call, model, strategy, limit, measure)
    except _TokenizerLost:
        return await _counted(call, model, strategy, limit, measure)


async def _counted(
    call: ChatCall, model: ModelInfo, strategy: Strategy, limit: int | None, measure: BackendMeasure
) -> Counted:
    given = Fit(call.messages, await measure.prompt(call.messages))
    fitted = None if strategy is Strategy.NONE else await _fitted(strategy, given, limit, model, measure)
    return Counted(given.tokens, measure.is_estimated, model.context_tokens, fitted)


async def _fitted(
    strategy: Strategy, given: Fit, limit: int | None, model: ModelInfo, measure: BackendMeasure
) -> Fit:
    if strategy is Strategy.CONTENT_BUDGET:
        budget = content_budget(model.id, model.context_tokens)
        return await shorten_content(given, budget=budget, limit=limit, measure=measure)
    if limit is None:
        raise FailedPreconditionError(
            f"the context of {model.id!r} is not known, so nothing can be fitted to it; load the model, or configure "
            "its context length",
            reason=CONTEXT_UNKNOWN,
        )
    return await keep_system_and_tail(given, limit=limit, measure=measure)


def _limit(backend: Backend, model: ModelInfo, reserved_tokens: int) -> int | None:
    context = model.context_tokens
    if context is None:
        return None
    if reserved_tokens >= context:
        raise InvalidArgumentError(
            "reserve_output_tokens",
            f"{reserved_tokens} tokens for the answer leave no room in the context of {context} tokens of {model.id!r} "
            f"on {backend.identity.name}; ask for fewer output tokens or load the model with a longer context",
        )
    return context - reserved_tokens


def _texts(parts: tuple[Part, ...]) -> tuple[Part, ...]:
    return tuple(part for part in parts if isinstance(part, Text))
