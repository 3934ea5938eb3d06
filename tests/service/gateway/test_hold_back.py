"""The bounds of the hold-back: when a check starts, that one runs at a time, and that its work is linear."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import grpc
import pytest

from gateway.answer import TEXT, AnswerBuffer, Release
from gateway.generation import Generation, HoldBounds
from gateway.release import HoldBack
from kala.errors import UnavailableError
from kala.ethics.v1 import ethics_pb2
from kala.inference.v1 import inference_pb2 as pb
from tests.fakes.streamed_answers import CheckCall, LocalEthics, generate, prepare
from tests.service.gateway.test_leak_matrix import HARMLESS

NEVER = 3_600.0
NEVER_FULL = 1_000_000


class SteppedEthics:
    """A stub of ethics that answers when the test says so: every answer passes all that it was given."""

    def __init__(self) -> None:
        self.written: list[ethics_pb2.CheckOutputRequest] = []
        self.given = 0
        self._answers: asyncio.Queue[ethics_pb2.CheckOutputResponse] = asyncio.Queue()

    def CheckOutput(self, *, timeout: float) -> SteppedEthics:  # noqa: N802 - the contract's name
        del timeout
        return self

    async def write(self, request: ethics_pb2.CheckOutputRequest) -> None:
        self.written.append(request)
        self.given += sum(len(chunk.text) for chunk in chunks_of(request))

    def answer(self) -> None:
        self._answers.put_nowait(
            ethics_pb2.CheckOutputResponse(
                checked=[
                    ethics_pb2.CheckedUpTo(channel=ethics_pb2.OUTPUT_CHANNEL_TEXT, characters=self.given)
                ]
            )
        )

    async def __aiter__(self) -> AsyncIterator[ethics_pb2.CheckOutputResponse]:
        while True:
            yield await self._answers.get()

    def cancel(self) -> None:
        """Nothing runs on its own here."""

    @property
    def flushes(self) -> list[str]:
        """What each flush brought."""
        return [
            "".join(chunk.text for chunk in chunks_of(request))
            for request in self.written
            if request.HasField("flush")
        ]


def chunks_of(request: ethics_pb2.CheckOutputRequest) -> Iterator[ethics_pb2.OutputChunk]:
    event = request.WhichOneof("event")
    if event == "chunk":
        yield request.chunk
    elif event in {"flush", "finish"}:
        yield from getattr(request, event).chunks


class Reader:
    """A generation under the test's hands: text goes in, what leaves is kept."""

    def __init__(self, ethics: SteppedEthics, hold: HoldBounds) -> None:
        self.buffer = AnswerBuffer()
        self.generation: Generation = prepare(ethics, [], self.buffer, hold=hold)  # type: ignore[arg-type]  # a stub
        self.left = ""
        self.generation._check = ethics
        self._reading = asyncio.ensure_future(self.generation._read_check(self._keep))

    async def _keep(self, release: Release) -> None:
        self.left += release.text

    async def say(self, words: str) -> None:
        await self.generation._take_chat(pb.ChatResponse(delta=pb.ChatDelta(text=words)))
        await self.settle()

    async def settle(self) -> None:
        for _ in range(8):
            await asyncio.sleep(0)

    def elapse(self) -> None:
        """Let the time of the hold-back be over."""
        assert self.generation._hold is not None
        self.generation._hold.cancel()
        self.generation._check_now()

    async def close(self) -> None:
        self.generation._stop_timers()
        self._reading.cancel()
        await asyncio.wait([self._reading])


async def test_a_check_starts_at_the_bound_of_characters_and_only_its_end_releases() -> None:
    ethics = SteppedEthics()
    reader = Reader(ethics, HoldBounds(characters=10, seconds=NEVER))
    await reader.say("12345")
    assert ethics.written == []
    await reader.say("67890")
    assert [chunk.text for request in ethics.written for chunk in chunks_of(request)] == ["1234567890"]
    assert reader.left == ""
    ethics.answer()
    await reader.settle()
    assert reader.left == "1234567890"
    await reader.close()


async def test_a_check_starts_at_the_bound_of_time_and_only_its_end_releases() -> None:
    ethics = SteppedEthics()
    reader = Reader(ethics, HoldBounds(characters=1_000, seconds=NEVER))
    await reader.say("a few words")
    reader.elapse()
    await reader.settle()
    assert ethics.flushes == ["a few words"]
    assert reader.left == ""
    ethics.answer()
    await reader.settle()
    assert reader.left == "a few words"
    await reader.close()


async def test_a_slow_check_gathers_what_comes_meanwhile_for_the_next_one() -> None:
    ethics = SteppedEthics()
    reader = Reader(ethics, HoldBounds(characters=1_000, seconds=NEVER))
    await reader.say("first")
    reader.elapse()
    await reader.settle()
    for word in (" second", " third", " fourth"):
        await reader.say(word)
        reader.elapse()
        await reader.settle()
    assert ethics.flushes == ["first"]
    ethics.answer()
    await reader.settle()
    assert ethics.flushes == ["first", " second third fourth"]
    assert reader.left == "first"
    ethics.answer()
    await reader.settle()
    assert reader.left == "first second third fourth"
    await reader.close()


async def test_text_that_was_sent_by_its_length_is_still_flushed_in_its_time() -> None:
    ethics = SteppedEthics()
    reader = Reader(ethics, HoldBounds(characters=5, seconds=NEVER))
    await reader.say("long enough")
    reader.elapse()
    await reader.settle()
    assert ethics.flushes == [""]
    await reader.close()


async def test_nothing_is_asked_for_text_that_has_left() -> None:
    ethics = SteppedEthics()
    reader = Reader(ethics, HoldBounds(characters=5, seconds=NEVER))
    await reader.say("long enough")
    ethics.answer()
    await reader.settle()
    reader.elapse()
    await reader.settle()
    assert ethics.flushes == []
    await reader.close()


async def test_a_flush_that_is_never_answered_ends_the_generation() -> None:
    ethics = SteppedEthics()
    reader = Reader(ethics, HoldBounds(characters=1_000, seconds=NEVER))
    await reader.say("words")
    reader.elapse()
    assert reader.generation._patience is not None
    reader.generation._patience._run()
    assert reader.generation._over.is_set()
    assert isinstance(reader.generation._error, UnavailableError)
    ethics.answer()
    await reader.settle()
    assert reader.left == ""
    await reader.close()


class DeafEthics(SteppedEthics):
    """Has stopped reading: no write to it ends."""

    async def write(self, request: ethics_pb2.CheckOutputRequest) -> None:
        await super().write(request)
        await asyncio.Event().wait()


@pytest.mark.parametrize("is_last", [False, True])
async def test_a_judge_that_stops_reading_ends_the_generation(*, is_last: bool) -> None:
    # The time began only after a write that had ended, so a stopped judge held the answer for 15 minutes.
    ethics = DeafEthics()
    reader = Reader(ethics, HoldBounds(characters=NEVER_FULL if is_last else 5, seconds=NEVER))
    finish = pb.ChatFinish(reason=pb.FINISH_REASON_STOP) if is_last else None
    response = pb.ChatResponse(delta=pb.ChatDelta(text="long enough"), finish=finish)
    taking = asyncio.ensure_future(reader.generation._take_chat(response))
    await reader.settle()
    assert ethics.written
    if not is_last:
        reader.elapse()
    await reader.settle()
    assert reader.generation._patience is not None
    reader.generation._patience._run()
    assert isinstance(reader.generation._error, UnavailableError)
    waiting = [task for task in (taking, reader.generation._flush) if task is not None]
    for task in waiting:
        task.cancel()
    await asyncio.wait(waiting)
    await reader.close()


@pytest.mark.parametrize("length", [1_000, 2_000, 4_000])
async def test_the_number_of_checks_follows_the_length_and_every_character_is_checked_once(
    length: int,
) -> None:
    text = (HARMLESS * 60)[:length]
    deltas = [pb.ChatDelta(text=char) for char in text]
    left = await generate(LocalEthics(), deltas, hold=HoldBounds(characters=50, seconds=NEVER))
    assert left.text == text
    assert "".join(chunk.text for request in left.written for chunk in chunks_of(request)) == text
    assert len(left.written) == 1 + length // 50 + 1  # the start, the checks, the finish


class DyingEthics(LocalEthics):
    """Goes away after so many answers; keeps how far it had told."""

    def __init__(self, answers: int) -> None:
        super().__init__()
        self._left = answers
        self.told = 0

    def CheckOutput(self, *, timeout: float) -> CheckCall:  # noqa: N802 - the contract's name
        call = super().CheckOutput(timeout=timeout)
        call._answers = self._until_it_dies(call._answers)
        return call

    async def _until_it_dies(
        self, answers: AsyncIterator[ethics_pb2.CheckOutputResponse]
    ) -> AsyncIterator[ethics_pb2.CheckOutputResponse]:
        async for answer in answers:
            if not self._left:
                raise grpc.aio.AioRpcError(
                    grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), grpc.aio.Metadata(), "gone"
                )
            self._left -= 1
            self.told = max([self.told, *(further.characters for further in answer.checked)])
            yield answer


@pytest.mark.parametrize("answers", range(12))
async def test_an_ethics_that_dies_at_any_answer_lets_out_what_it_told_and_no_more(answers: int) -> None:
    ethics, buffer = DyingEthics(answers), AnswerBuffer()
    deltas = [pb.ChatDelta(text=HARMLESS[at : at + 9]) for _ in range(8) for at in range(0, len(HARMLESS), 9)]
    generation = prepare(ethics, deltas, buffer, hold=HoldBounds(characters=20, seconds=NEVER))
    left: list[str] = []

    async def on_release(release: Release) -> None:
        left.append(release.text)

    with pytest.raises(UnavailableError):
        await generation.run(on_release)
    assert len("".join(left)) == ethics.told
    assert buffer.released().text == "".join(left)


def test_the_work_of_the_hold_back_is_linear_in_its_parts() -> None:
    class Counted(list[str]):
        looks = 0

        def __getitem__(self, at: Any) -> Any:
            Counted.looks += 1
            return super().__getitem__(at)

    held, looks = HoldBack(), []
    for _ in range(3):
        Counted.looks = 0
        for number in range(1_000):
            held.push(TEXT, "word ")
            held._tracks[TEXT].parts = (
                Counted(held._tracks[TEXT].parts) if number == 0 else held._tracks[TEXT].parts
            )
            held.take_unsent()
            held.check(TEXT, 10**9)
            held.release()
        looks.append(Counted.looks)
    assert looks[0] == looks[1] == looks[2] <= 4 * 1_000
