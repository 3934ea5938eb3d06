"""Fits a conversation to the model's context before anything is judged, where the client asked for that.

What inference gives back is what ethics judges, what the log commits to and what the model reads; the answer says what
was done.  Without the client's word nothing is ever left out: a prompt over the context is refused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import grpc

from gateway.acts import Fitting
from gateway.generation import backend_failure
from gateway.truncation import STRATEGIES
from kala.errors import InvalidArgumentError, KalaError
from kala.inference.v1 import inference_pb2 as pb

if TYPE_CHECKING:
    from kala.inference.v1.inference_pb2_grpc import InferenceServiceAsyncStub

ANSWER_TOKENS: Final = 512
"""Kept free for an answer whose request names no limit."""

FIT_SECONDS: Final = 30.0
"""A few counts of a long prompt by a busy model server."""


_RESERVED: Final = "reserve_output_tokens"


async def fit(inference: InferenceServiceAsyncStub, action: pb.ChatAction, strategy: str) -> Fitting:
    """Fit the action's conversation in place and give what was done.

    Raises InvalidArgumentError where it cannot be made to fit, and the error of inference where it cannot say.
    """
    given = action.sampling.max_output_tokens or ANSWER_TOKENS
    request = pb.CountTokensRequest(
        model=action.model,
        messages=action.messages,
        tools=action.tools,
        provider=action.provider,
        role=action.role,
        allow_remote=action.allow_remote,
        fit=STRATEGIES[strategy],
        reserve_output_tokens=given,
    )
    try:
        response = await inference.CountTokens(request, timeout=FIT_SECONDS)
    except grpc.RpcError as error:
        raise _in_the_clients_words(backend_failure(error)) from error
    dropped = len(action.messages) - len(response.fitted)
    del action.messages[:]
    action.messages.extend(response.fitted)
    action.truncation = pb.TRUNCATION_FITTED
    return Fitting(
        strategy=strategy,
        tokens=response.tokens,
        fitted_tokens=response.fitted_tokens,
        dropped_messages=dropped,
        context_tokens=response.context_tokens if response.HasField("context_tokens") else None,
        is_estimated=response.estimated,
    )


def _in_the_clients_words(error: KalaError) -> KalaError:
    if isinstance(error, InvalidArgumentError) and error.field == _RESERVED:
        return InvalidArgumentError("max_completion_tokens", error.problem, reason=error.reason)
    return error
