"""What loading a model has in common on every server: finding it, its context, and proof that it is there.  Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from kala.errors import FailedPreconditionError, InvalidArgumentError, NotFoundError
from services.inference.backend import BackendFailure, LoadState, ModelInfo

MAX_LISTED: Final = 12
"""Names listed in a message: enough to find the right one, few enough to read."""

LOAD_SECONDS: Final = 900.0
"""A large model comes from a slow disk in minutes; no act takes longer (design section 4)."""

POLL_SECONDS: Final = 0.25
"""How often a server is asked whether a model is there, or gone."""


def find_installed(models: Iterable[ModelInfo], wanted: str, *, server: str, cure: str) -> ModelInfo:
    """Give the model of this id or alias; raises NotFoundError that lists what there is and says how to get more."""
    listed = tuple(models)
    for model in listed:
        if wanted in {model.id, *model.aliases}:
            return model
    there = ", ".join(model.id for model in listed[:MAX_LISTED]) or "none"
    raise NotFoundError(
        f"{server} has no model {wanted!r}; there are: {there}; {cure}", reason="MODEL_NOT_FOUND"
    )


def check_context(info: ModelInfo, context_tokens: int | None) -> None:
    """Refuse a context that the model was not made for; raises InvalidArgumentError with both numbers."""
    longest = info.max_context_tokens
    if context_tokens is not None and longest is not None and context_tokens > longest:
        raise InvalidArgumentError(
            "context_tokens",
            f"must be at most {longest}, which {info.id} was made for; it is {context_tokens}",
        )


def check_loaded(info: ModelInfo, context_tokens: int | None, *, server: str) -> ModelInfo:
    """Give a model that was just loaded, or raise when it is not, or not with the context asked for."""
    if info.state is not LoadState.LOADED:
        raise BackendFailure("LOAD_FAILED", f"did not load {info.id}")
    got = info.context_tokens
    if context_tokens is not None and got is not None and got < context_tokens:
        problem = f"loaded {info.id} with {got} tokens of context instead of {context_tokens}"
        raise FailedPreconditionError(f"{server} {problem}", reason="CONTEXT_NOT_APPLIED")
    return info
