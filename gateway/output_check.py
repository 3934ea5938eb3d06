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
from gateway.release import HoldBack, Piece, Track
from kala.common.v1 import decision_pb2
from kala.errors import ClearanceError, InvalidArgumentError, KalaError, UnavailableError
from kala.ethics.v1 import ethics_pb2

UNSAID: Final = "the backend failed; its own words about it did not pass the check of outputs"
"""Stands for a backend's words that may not leave."""

MAX_TRACKS: Final = 128
"""The contract's limit for positions of one channel; what is over shares the last one."""

FIRST_TEXT: Final = 32
"""Where an answer's own fields (`answer.py`, 23 at most) come before its texts."""

CHARS_A_SECOND: Final = 4_096
"""A slow machine's judges read at least so much; a long output gets that much longer."""


async def check_texts(
    ethics: EthicsClient,
    act: Act,
    decision_id: str,
    texts: Mapping[str, str],
    *,
    channel: ethics_pb2.OutputChannel.ValueType = ethics_pb2.OUTPUT_CHANNEL_TEXT,
    tracks: Iterable[Piece] = (),
) -> decision_pb2.Decision:
    """Have every text of an output judged, and `tracks` as what they are; give the decision.

    Raises UnavailableError when there is none, or one that allows what was not checked.
    """
    held = HoldBack()
    own = tuple(tracks)
    for track, text in (*own, *_texts_as_tracks(texts, channel, first=FIRST_TEXT if own else 0)):
        held.push(track, text)
    call = ethics.open_check()
    try:
        async with asyncio.timeout(ethics.timeout_seconds + held.held / CHARS_A_SECOND):
            for request in _requests(act, decision_id, held):
                await call.write(request)
            async for response in call:
                for further in response.checked:
                    held.check(Track(further.channel, further.index), further.characters)
                if response.decision.outcome:
                    return _covering(response.decision, held)
    except grpc.RpcError as error:
        raise ethics_failure(error) from error
    except (TimeoutError, asyncio.InvalidStateError) as error:
        raise UnavailableError(UNAVAILABLE_TEXT, reason=ETHICS_UNAVAILABLE) from error
    finally:
        call.cancel()
    raise UnavailableError(UNAVAILABLE_TEXT, reason=ETHICS_UNAVAILABLE)


def _covering(decision: decision_pb2.Decision, held: HoldBack) -> decision_pb2.Decision:
    """Give a decision back; an ALLOW that does not cover every word is no ALLOW of this output."""
    held.release()
    if decision.outcome == decision_pb2.OUTCOME_ALLOW and held.held:
        raise UnavailableError(UNAVAILABLE_TEXT, reason=ETHICS_UNAVAILABLE)
    return decision


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


def _texts_as_tracks(
    texts: Mapping[str, str], channel: ethics_pb2.OutputChannel.ValueType, *, first: int
) -> Iterable[Piece]:
    for position, text in enumerate(texts.values(), start=first):
        yield Piece(Track(channel, min(position, MAX_TRACKS - 1)), text)


def _requests(act: Act, decision_id: str, held: HoldBack) -> Iterable[ethics_pb2.CheckOutputRequest]:
    yield ethics_pb2.CheckOutputRequest(
        start=ethics_pb2.OutputStart(
            decision_id=decision_id, request_text=act.request_text, principal=act.caller.principal
        )
    )
    chunks = [
        # The track's channel is the contract's enum by construction.
        ethics_pb2.OutputChunk(channel=channel, index=index, text=text[at : at + MAX_CHUNK_CHARS])  # type: ignore[arg-type]
        for (channel, index), text in held.take_unsent()
        for at in range(0, len(text), MAX_CHUNK_CHARS)
    ]
    if sum(len(chunk.text) for chunk in chunks) > MAX_CHUNK_CHARS:
        for chunk in chunks:
            yield ethics_pb2.CheckOutputRequest(chunk=chunk)
        chunks = []
    yield ethics_pb2.CheckOutputRequest(finish=ethics_pb2.OutputFinish(chunks=chunks))
