"""What was tried for a request, and the errors that say why nothing came of it.  Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from kala.errors import (
    FailedPreconditionError,
    InvalidArgumentError,
    KalaError,
    NotFoundError,
    UnavailableError,
)
from services.inference.backend import BackendFailure, ContextOverflow, Identity, LoadState, ModelInfo
from services.inference.router import Candidate, PassedOver, Route

_TOO_LONG: Final = {
    "messages": ("the prompt", "shorten the conversation"),
    "prompt": ("the prompt", "shorten it"),
    "inputs": ("a text", "shorten or split it"),
    "documents": ("a document with the query", "shorten or split it"),
}
"""What is over the context, and what to do about it, by field."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """One try at one backend; `reason` is empty on success."""

    backend: str
    model: str
    reason: str
    detail: str
    elapsed_seconds: float
    is_spliced: bool = False
    """Whether it carried on the text of an earlier backend."""


def callers_error(
    identity: Identity,
    model: ModelInfo,
    failure: BackendFailure,
    *,
    field: str = "messages",
    estimate: Callable[[], int] | None = None,
) -> InvalidArgumentError:
    """Tell the caller what is wrong with the request and what to do.

    `field` is the one that may be too long, `estimate` its tokens where the backend does not tell them.
    """
    if isinstance(failure, ContextOverflow):
        return _overflow_error(identity, model, failure, field, estimate)
    told = f": {failure.told}" if failure.told else ""
    return InvalidArgumentError(
        failure.field, f"{identity.name} {failure.detail}{told}", reason=failure.reason
    )


def _overflow_error(
    identity: Identity,
    model: ModelInfo,
    overflow: ContextOverflow,
    field: str,
    estimate: Callable[[], int] | None,
) -> InvalidArgumentError:
    subject, cure = _TOO_LONG[field]
    if overflow.prompt_tokens is not None:
        prompt = f"has {overflow.prompt_tokens} tokens, more"
    else:
        prompt = "is longer" if estimate is None else f"is longer (about {estimate()} tokens by estimate)"
    context, most = overflow.context_tokens or model.context_tokens, model.max_context_tokens
    limit = "its context" if most is None else f"its context, which is {most} tokens at most"
    limit = limit if context is None else f"its context of {context} tokens"
    return InvalidArgumentError(
        field,
        f"{subject} {prompt} than {model.id!r} on {identity.name} takes, {limit}; "
        f"{cure} or load the model with a longer context",
        reason=overflow.reason,
    )


def failed_mid_stream(identity: Identity, failure: BackendFailure) -> UnavailableError:
    """Say that an answer of which a part was released broke off."""
    return UnavailableError(
        f"{identity.name} {failure.detail}; the text so far is incomplete", reason="BACKEND_FAILED_MID_STREAM"
    )


def untrue_error(identity: Identity, failure: BackendFailure, *, is_released: bool) -> UnavailableError:
    """Say that the answer is not what was asked for."""
    where = f" (at {failure.told})" if failure.told else ""
    stands = "; what was sent so far is not what was asked for" if is_released else ""
    return UnavailableError(
        f"{identity.name} {failure.detail}{where}{stands}; try again, ask for it in a message too, "
        "or name a backend that enforces it",
        reason=failure.reason,
    )


def over_budget(attempts: list[Attempt]) -> UnavailableError:
    """Say that no further backend was tried, to spare those that still work."""
    reasons = "; ".join(f"{attempt.backend} {attempt.detail}" for attempt in attempts)
    return UnavailableError(
        f"no backend answered: {reasons}; no other was tried, because too many requests have failed lately",
        reason="RETRY_BUDGET_SPENT",
    )


def all_failed(route: Route, attempts: list[Attempt], *, retry_after_seconds: float | None) -> KalaError:
    """Say why no backend answered, with one reason each."""
    if len(route.candidates) == 1 and len(attempts) == 1 and not _others(route.passed_over):
        return _only_one_failed(route.candidates[0], attempts[0], retry_after_seconds)
    reasons = [f"{attempt.backend} {attempt.detail}" for attempt in attempts]
    reasons += [f"{passed.backend}: {passed.detail}" for passed in _others(route.passed_over)]
    return UnavailableError(
        f"no backend answered: {'; '.join(reasons)}",
        reason="ALL_BACKENDS_FAILED",
        retry_after_seconds=retry_after_seconds,
    )


def _others(passed_over: tuple[PassedOver, ...]) -> list[PassedOver]:
    silent = {"NOT_ASKED", "DEMO_ONLY_BY_NAME", "MODEL_NOT_FOUND"}
    return [passed for passed in passed_over if passed.reason not in silent]


def _only_one_failed(candidate: Candidate, attempt: Attempt, retry_after_seconds: float | None) -> KalaError:
    text = f"{attempt.backend} {attempt.detail}"
    if attempt.reason == "NO_MODEL_LOADED" or (
        attempt.reason == "MODEL_NOT_FOUND" and candidate.model.state is LoadState.NOT_LOADED
    ):
        return FailedPreconditionError(
            f"{attempt.backend} has {candidate.model.id!r} not loaded; load it there first",
            reason="NO_MODEL_LOADED",
        )
    if attempt.reason == "MODEL_NOT_FOUND":
        return NotFoundError(text, reason=attempt.reason)
    return UnavailableError(
        f"no backend answered: {text}",
        reason="ALL_BACKENDS_FAILED",
        retry_after_seconds=retry_after_seconds,
    )
