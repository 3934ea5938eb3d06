from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable

import grpc
import pytest

from kala.common.v1.decision_pb2 import OUTCOME_ALLOW, OUTCOME_REFUSE
from kala.errors import InvalidArgumentError, KalaError
from kala.ethics.v1 import ethics_pb2 as pb
from services.common.status import from_error
from tests.service.ethics.conftest import PRINCIPAL, Ethics

TEXT, REASONING = pb.OUTPUT_CHANNEL_TEXT, pb.OUTPUT_CHANNEL_REASONING
START = pb.CheckOutputRequest(start=pb.OutputStart(decision_id="d" * 32, principal=PRINCIPAL))
FINISH = pb.CheckOutputRequest(finish=pb.OutputFinish())
FLUSH = pb.CheckOutputRequest(flush=pb.OutputFlush())
HARMLESS = "Plants turn light into sugar. "
BAD = "Here's how to build a pipe bomb: take"


def chunk(text: str, channel: pb.OutputChannel = TEXT, index: int = 0) -> pb.CheckOutputRequest:
    return pb.CheckOutputRequest(chunk=pb.OutputChunk(channel=channel, index=index, text=text))


async def answers(ethics: Ethics, requests: Iterable[pb.CheckOutputRequest]) -> list[pb.CheckOutputResponse]:
    call = ethics.stub.CheckOutput(timeout=30)
    with contextlib.suppress(
        grpc.RpcError, asyncio.InvalidStateError
    ):  # the check may be over before the end
        for request in requests:
            await call.write(request)
        await call.done_writing()
    return [response async for response in call]


async def failure(ethics: Ethics, requests: Iterable[pb.CheckOutputRequest]) -> KalaError:
    with pytest.raises(grpc.RpcError) as caught:
        await answers(ethics, requests)
    return from_error(caught.value)


def checked(responses: list[pb.CheckOutputResponse]) -> list[tuple[int, int, int]]:
    return [
        (item.channel, item.index, item.characters) for response in responses for item in response.checked
    ]


async def test_a_harmless_output_is_checked_to_its_end_and_allowed(ethics: Ethics) -> None:
    responses = await answers(ethics, [START, *[chunk(HARMLESS)] * 20, FLUSH, FINISH])
    offsets = [characters for *_, characters in checked(responses)]
    assert offsets == sorted(set(offsets))
    assert offsets[-1] == 20 * len(HARMLESS)
    assert len(offsets) > 5
    decision = responses[-1].decision
    assert decision.outcome == OUTCOME_ALLOW
    assert len(decision.id) == 32
    assert decision.path[-1].startswith("Decision: ALLOW")


async def test_a_forbidden_output_ends_the_stream_before_it_is_checked(ethics: Ethics) -> None:
    lead = HARMLESS * 10
    responses = await answers(ethics, [START, chunk(lead), chunk(BAD), *[chunk(HARMLESS)] * 10, FINISH])
    assert max(characters for *_, characters in checked(responses)) <= len(lead)
    decision = responses[-1].decision
    assert decision.outcome == OUTCOME_REFUSE
    assert decision.law == 1
    assert decision.evidence[0].field == "text[0]"
    assert decision.evidence[0].start == len(lead)
    assert decision.message


async def test_a_forbidden_end_is_refused_at_the_finish_and_no_channel_goes_out(ethics: Ethics) -> None:
    responses = await answers(ethics, [START, chunk("All fine."), chunk(BAD, REASONING, 1), FINISH])
    assert checked(responses) == []
    assert responses[-1].decision.outcome == OUTCOME_REFUSE
    assert responses[-1].decision.evidence[0].field == "reasoning[1]"


async def test_a_flush_brings_text_and_is_answered_once_also_where_nothing_passed(ethics: Ethics) -> None:
    pieces = [chunk(HARMLESS * 20).chunk, chunk("b", REASONING).chunk, chunk(HARMLESS).chunk]
    flush = pb.CheckOutputRequest(flush=pb.OutputFlush(chunks=pieces))
    responses = await answers(ethics, [START, FLUSH, flush, FLUSH, FINISH])
    assert len(responses) == 4
    empty, passed, nothing_new, last = responses
    assert not empty.checked
    ((channel, _, characters),) = checked([passed])
    assert channel == TEXT
    assert 0 < characters < 21 * len(HARMLESS)
    assert not nothing_new.checked
    assert sorted(checked([last])) == [(TEXT, 0, 21 * len(HARMLESS)), (REASONING, 0, 1)]


@pytest.mark.parametrize("split", [0, 12, 30])
async def test_a_forbidden_span_in_a_flush_ends_the_stream(ethics: Ethics, split: int) -> None:
    lead = HARMLESS * 10
    first, second = chunk(lead + BAD[:split]).chunk, chunk(BAD[split:] + ". " + HARMLESS * 10).chunk
    flushes = [pb.CheckOutputRequest(flush=pb.OutputFlush(chunks=[piece])) for piece in (first, second)]
    responses = await answers(ethics, [START, *flushes, FINISH])
    assert max(characters for *_, characters in checked(responses)) <= len(lead)
    assert responses[-1].decision.outcome == OUTCOME_REFUSE


async def test_a_chunk_of_a_megabyte_is_checked(ethics: Ethics) -> None:
    text = (HARMLESS * 40_000)[:1_048_576]
    responses = await answers(ethics, [START, chunk(text), FINISH])
    assert checked(responses)[-1] == (TEXT, 0, len(text))
    assert responses[-1].decision.outcome == OUTCOME_ALLOW


async def test_an_empty_output_is_allowed(ethics: Ethics) -> None:
    responses = await answers(ethics, [START, FINISH])
    (response,) = responses
    assert response.decision.outcome == OUTCOME_ALLOW
    assert not response.checked


async def test_a_whole_output_is_checked_in_one_message(ethics: Ethics) -> None:
    pieces = [chunk(HARMLESS * 5).chunk, chunk(HARMLESS).chunk]
    finish = pb.CheckOutputRequest(finish=pb.OutputFinish(chunks=pieces))
    (response,) = await answers(ethics, [START, finish])
    assert checked([response]) == [(TEXT, 0, 6 * len(HARMLESS))]
    assert response.decision.outcome == OUTCOME_ALLOW


@pytest.mark.parametrize("split", [0, 1, 7, 20])
async def test_a_harmful_whole_output_is_refused_and_no_character_is_told(ethics: Ethics, split: int) -> None:
    pieces = [chunk(BAD[:split]).chunk, chunk(BAD[split:]).chunk, chunk(HARMLESS).chunk]
    finish = pb.CheckOutputRequest(finish=pb.OutputFinish(chunks=pieces))
    (response,) = await answers(ethics, [START, finish])
    assert checked([response]) == []
    assert response.decision.outcome == OUTCOME_REFUSE


async def test_every_channel_has_its_own_offsets(ethics: Ethics) -> None:
    requests = [
        chunk("a" * 7),
        chunk("b" * 5, REASONING),
        chunk("c" * 3, pb.OUTPUT_CHANNEL_TOOL_ARGUMENTS, 2),
    ]
    responses = await answers(ethics, [START, *requests, FINISH])
    assert sorted(checked(responses)) == [
        (TEXT, 0, 7),
        (REASONING, 0, 5),
        (pb.OUTPUT_CHANNEL_TOOL_ARGUMENTS, 2, 3),
    ]


@pytest.mark.parametrize(
    ("requests", "field"),
    [
        ([chunk("x")], "event"),
        ([], "event"),
        ([pb.CheckOutputRequest(start=pb.OutputStart())], "start.decision_id"),
        ([START, START], "event"),
        ([START, pb.CheckOutputRequest()], "event"),
        ([START, chunk("x")], "event"),
        ([START, chunk("x", pb.OUTPUT_CHANNEL_UNSPECIFIED)], "chunk.channel"),
        ([START, chunk("x", TEXT, 128)], "chunk.index"),
        ([START, chunk("x" * 1_048_577)], "chunk.text"),
    ],
    ids=["no start", "nothing", "no decision", "two starts", "empty event", "no finish", "no channel", "index",
         "too long"],
)  # fmt: skip
async def test_a_stream_that_breaks_the_order_names_its_fault(
    ethics: Ethics, requests: list[pb.CheckOutputRequest], field: str
) -> None:
    error = await failure(ethics, requests)
    assert isinstance(error, InvalidArgumentError)
    assert error.field == field


async def test_sixty_four_streams_cancelled_half_way_leave_the_service_well(ethics: Ethics) -> None:
    calls = [ethics.stub.CheckOutput() for _ in range(64)]
    for call in calls:
        await call.write(START)
        await call.write(chunk(HARMLESS * 20))
    for call in calls:
        assert (await call.read()).checked
        call.cancel()
    await asyncio.gather(*(call.code() for call in calls))
    assert (await answers(ethics, [START, chunk("fine"), FINISH]))[-1].decision.outcome == OUTCOME_ALLOW


async def test_streams_cancelled_while_they_are_judged_leave_the_service_well(ethics: Ethics) -> None:
    calls = [ethics.stub.CheckOutput() for _ in range(64)]
    for number, call in enumerate(calls):
        await call.write(START)
        # Different texts: what was answered before would come from the cache.
        await call.write(chunk(f"Plant number {number} turns light into sugar. " * 40))
    # One has its answer and so the others are under way: read by nobody, and given up.
    assert (await calls[0].read()).checked
    for call in calls:
        call.cancel()
    async with asyncio.timeout(30):
        await asyncio.gather(*(call.code() for call in calls))
        assert (await answers(ethics, [START, chunk("fine"), FINISH]))[-1].decision.outcome == OUTCOME_ALLOW
