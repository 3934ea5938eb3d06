"""Checks a finished output as a whole, for acts whose answers are not streamed through the hold-back."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from typing import Final

import grpc

from gateway.acts import Act
from gateway.answer import MAX_CHUNK_CHARS
from gateway.errors import ETHICS_UNAVAILABLE
from gateway.judge import UNAVAILABLE_TEXT, EthicsClient, ethics_failure
from kala.common.v1 import decision_pb2
from kala.errors import ClearanceError, InvalidArgumentError, KalaError, UnavailableError
from kala.ethics.v1 import ethics_pb2

UNSAID: Final = "the backend failed; its own words about it did not pass the check of outputs"
"""Stands for a backend's words that may not leave."""

MAX_TRACKS: Final = 128
"""The contract's limit for positions of one channel; what is over shares the last one."""


CHARS_A_SECOND: Final = 4_096
"""A slow machine's judges read at least so much; a long output gets that much longer."""


async def check_texts(
    ethics: EthicsClient,
    act: Act,
    decision_id: str,
    texts: Mapping[str, str],
    *,
    channel: ethics_pb2.OutputChannel.ValueType = ethics_pb2.OUTPUT_CHANNEL_TEXT,
) -> decision_pb2.Decision:
    """Have every text of an output judged and give the decision; raises UnavailableError when there is none."""
    call = ethics.open_check()
    seconds = ethics.timeout_seconds + sum(map(len, texts.values())) / CHARS_A_SECOND
    try:
        async with asyncio.timeout(seconds):
            for request in _requests(act, decision_id, texts, channel):
                await call.write(request)
            async for response in call:
                if response.decision.outcome:
                    decision: decision_pb2.Decision = response.decision
                    return decision
    except grpc.RpcError as error:
        raise ethics_failure(error) from error
    except (TimeoutError, asyncio.InvalidStateError) as error:
        raise UnavailableError(UNAVAILABLE_TEXT, reason=ETHICS_UNAVAILABLE) from error
    finally:
        call.cancel()
    raise UnavailableError(UNAVAILABLE_TEXT, reason=ETHICS_UNAVAILABLE)


async def in_checked_words(ethics: EthicsClient, act: Act, decision_id: str, error: KalaError) -> KalaError:
    """Give an error of an actor as it may leave: without its words where they do not pass.

    A backend may have written them.  Raises UnavailableError when nobody can judge them.
    """
    if isinstance(error, ClearanceError):
        return error  # said before any backend was reached
    decision = await check_texts(ethics, act, decision_id, {"error": error.message})
    if decision.outcome != decision_pb2.OUTCOME_ALLOW:
        error.message = UNSAID
        if isinstance(error, InvalidArgumentError):
            error.problem = UNSAID
    return error


def _requests(
    act: Act, decision_id: str, texts: Mapping[str, str], channel: ethics_pb2.OutputChannel.ValueType
) -> Iterable[ethics_pb2.CheckOutputRequest]:
    yield ethics_pb2.CheckOutputRequest(
        start=ethics_pb2.OutputStart(
            decision_id=decision_id, request_text=act.request_text, principal=act.caller.principal
        )
    )
    for position, text in enumerate(texts.values()):
        for start in range(0, len(text), MAX_CHUNK_CHARS):
            yield ethics_pb2.CheckOutputRequest(
                chunk=ethics_pb2.OutputChunk(
                    channel=channel,
                    index=min(position, MAX_TRACKS - 1),
                    text=text[start : start + MAX_CHUNK_CHARS],
                )
            )
    yield ethics_pb2.CheckOutputRequest(finish=ethics_pb2.OutputFinish())
