"""Every rule of the hold-back is there for a reason: with any one broken, the leak matrix or a test like it fails."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import pytest

from gateway import answer
from gateway.answer import NAMES, TEXT, AnswerBuffer, Release, ToolPiece, tool_arguments
from gateway.generation import Generation
from gateway.release import HoldBack, Piece, Track, _Cursor
from kala.common.v1 import decision_pb2
from kala.errors import UnavailableError
from kala.ethics.v1 import ethics_pb2
from kala.inference.v1 import inference_pb2 as pb
from services.ethics import output_check
from services.ethics.output_check import ChannelChecker
from services.ethics.output_stream import OutputStream
from services.ethics.views import View
from tests.fakes.streamed_answers import LocalEthics, generate, prepare
from tests.service.gateway.test_leak_matrix import (
    AT_ONCE,
    BOUNDS,
    FIELDS,
    HARMLESS,
    SPAN,
    lead_of,
    require_no_leak,
)

Detector = Callable[[], Awaitable[None]]


async def the_matrix() -> None:
    """A few of its places, in every field."""
    ethics = LocalEthics()
    for field in FIELDS.values():
        for hold in BOUNDS.values():
            for offset in (0, 200):
                lead = lead_of(offset)
                pieces = [lead, SPAN[:11], SPAN[11:-3], SPAN[-3:], ". " + HARMLESS * 4]
                await require_no_leak(ethics, field, pieces, lead, hold)


async def a_span_split_over_fields() -> None:
    """Half of it in one field, half in another."""
    deltas = [pb.ChatDelta(reasoning=SPAN[:19]), pb.ChatDelta(text=SPAN[19:])]
    left = await generate(LocalEthics(), deltas, hold=AT_ONCE)
    assert left.text == left.reasoning == ""


async def a_harmless_answer() -> None:
    """All of it leaves, the end only with the decision; and all of it was given to the check, once."""
    ethics = LocalEthics()
    text = HARMLESS * 8
    for hold in BOUNDS.values():
        left = await generate(
            ethics, [pb.ChatDelta(text=text[:300]), pb.ChatDelta(text=text[300:])], hold=hold
        )
        assert left.text == left.record.text == text
        chunks = [chunk.text for request in left.written for chunk in _chunks(request)]
        assert "".join(chunks) == text


async def a_judge_that_allows_what_it_was_not_given() -> None:
    """Offsets beyond what was sent cover nothing that comes later."""
    held = HoldBack()
    held.push(TEXT, "abc")
    held.check(TEXT, 6)
    held.take_unsent()
    assert held.release() == []
    held.check(TEXT, 9)
    held.push(TEXT, "def")
    held.take_unsent()
    assert "".join(piece.text for piece in held.release()) == "abc"


async def a_judge_that_allows_without_checking() -> None:
    """An ALLOW is none of an answer that it does not cover."""

    class Generous(LocalEthics):
        def CheckOutput(self, *, timeout: float) -> Any:  # noqa: N802 - the contract's name
            call = super().CheckOutput(timeout=timeout)
            answers = call._answers

            async def without_offsets() -> Any:
                async for said in answers:
                    del said.checked[:]
                    yield said

            call._answers = without_offsets()
            return call

    with pytest.raises(UnavailableError):
        await generate(Generous(), [pb.ChatDelta(text="Hi there.")], hold=AT_ONCE)


async def bytes_that_are_not_the_token() -> None:
    """Nobody checked them."""
    entry = pb.TokenLogprob(token="x", token_bytes=SPAN.encode(), top=[pb.TokenLogprob(token_bytes=b"\xf0")])
    left = await generate(LocalEthics(), [pb.ChatDelta(logprobs=[entry])], hold=AT_ONCE)
    (told,) = (entry for out in left.releases for entry in out.logprobs)
    assert (told.token_bytes, told.top[0].token_bytes) == (b"", b"")


async def a_generation_that_failed() -> None:
    """What its check passes afterwards stays."""
    buffer = AnswerBuffer()
    failed = prepare(LocalEthics(), [], buffer, hold=AT_ONCE)
    buffer.take_in(pb.ChatDelta(text="checked"))
    buffer.take_unsent()
    buffer.check(TEXT, 7)
    failed.fail(UnavailableError("lost"))

    async def on_release(out: Release) -> None:
        pytest.fail(f"{out.text} left")

    await failed._let_out(on_release, is_final=True)


async def a_span_beside_a_long_text() -> None:
    """How far one field is checked says nothing of another."""
    deltas = [
        pb.ChatDelta(reasoning=SPAN[:20]),
        pb.ChatDelta(text=HARMLESS * 8),
        pb.ChatDelta(reasoning=SPAN[20:]),
    ]
    left = await generate(LocalEthics(), deltas, hold=AT_ONCE)
    assert left.reasoning == ""


async def a_name_that_comes_after_its_arguments() -> None:
    """A call leaves with its name, and the record names no other."""
    buffer = AnswerBuffer({"f"})
    buffer.take_in(pb.ChatDelta(tool_calls=[pb.ToolCall(arguments="{}")]))
    buffer.take_unsent()
    buffer.check(tool_arguments(0), 2)
    assert not buffer.release().tool_calls
    buffer.take_in(pb.ChatDelta(tool_calls=[pb.ToolCall(id="c", name="f")]))
    buffer.take_unsent()
    assert not buffer.release(is_final=True).tool_calls
    buffer.check(NAMES, 2)
    assert buffer.release(is_final=True).tool_calls == (ToolPiece(0, "c", "f", "{}"),)


DETECTORS: tuple[Detector, ...] = (
    a_judge_that_allows_what_it_was_not_given,
    a_name_that_comes_after_its_arguments,
    bytes_that_are_not_the_token,
    a_judge_that_allows_without_checking,
    a_generation_that_failed,
    a_span_split_over_fields,
    a_span_beside_a_long_text,
    a_harmless_answer,
    the_matrix,
)  # fmt: skip


def _chunks(request: Any) -> Iterable[Any]:
    event = request.WhichOneof("event")
    return [request.chunk] if event == "chunk" else getattr(getattr(request, event), "chunks", ())


def _covers_what_is_generated(self: HoldBack, track: Track, characters: int) -> None:
    held = self._tracks.get(track)
    if held is not None:
        held.checked = held.generated


def _believes_any_offset(self: HoldBack, track: Track, characters: int) -> None:
    held = self._tracks.get(track)
    if held is not None:
        held.checked = min(characters, held.generated)


def _covers_all_tracks(self: HoldBack, track: Track, characters: int) -> None:
    for held in self._tracks.values():
        held.checked = min(characters, held.sent.taken)


def _sends_only_text(self: HoldBack) -> list[Piece]:
    self._unsent = 0
    found = [Piece(track, held.sent.take(held.parts, held.generated)) for track, held in self._tracks.items()]
    return [piece for piece in found if piece.text and piece.track == TEXT]


def _all_logprobs(self: AnswerBuffer) -> Iterable[pb.TokenLogprob]:
    while self._logprobs:
        yield self._logprobs.popleft().entry


def _keeps_bytes(self: AnswerBuffer, entry: pb.TokenLogprob) -> None:
    needs = ((answer.CHOSEN_TOKENS, self._held.push(answer.CHOSEN_TOKENS, entry.token)),)
    self._logprobs.append(answer._HeldLogprob(entry, needs))


async def _releases_on_any_decision(self: Generation, response: Any, on_release: Any) -> None:
    for track in self._buffer._held._tracks:
        self._buffer.check(track, 1 << 30)
    await self._let_out(on_release, is_final=True)
    self.state.decision = response.decision


async def _believes_any_allow(self: Generation, response: Any, on_release: Any) -> None:
    if response.decision.outcome == decision_pb2.OUTCOME_ALLOW:
        self._note_checked(response.checked)
        await self._let_out(on_release, is_final=True)
    self.state.decision = response.decision


async def _lets_out_when_over(self: Generation, on_release: Any, *, is_final: bool) -> None:
    if released := self._buffer.release(is_final=is_final):
        await on_release(released)


async def _ends_without_the_last_words(self: Generation, finish: Any) -> None:
    self.state.finish = finish
    self._buffer.take_unsent()
    await self._send(ethics_pb2.CheckOutputRequest(finish=ethics_pb2.OutputFinish()))


def _holds_back_half(self: ChannelChecker, view: View) -> int:
    safe = len(view.text) - len(SPAN) // 2
    return len(self._text) if view.name == "reversed" else view.locate(safe - 1, safe)[1] if safe > 0 else 0


def _skips_one(self: _Cursor, parts: list[str], upto: int) -> str:
    begin, self.taken = self.taken + 1, max(self.taken, upto)
    return "".join(parts)[begin:upto]


async def _nothing_across(_self: OutputStream) -> None:
    return


MUTANTS: dict[str, tuple[object, str, object]] = {
    "a check covers whatever was generated": (HoldBack, "check", _covers_what_is_generated),
    "a check covers what it was not given": (HoldBack, "check", _believes_any_offset),
    "a check of one field covers all": (HoldBack, "check", _covers_all_tracks),
    "only text is sent to the check": (HoldBack, "take_unsent", _sends_only_text),
    "text leaves as it comes": (
        HoldBack,
        "release",
        lambda self: [
            Piece(track, held.released.take(held.parts, held.generated))
            for track, held in self._tracks.items()
        ],
    ),
    "a character is skipped": (_Cursor, "take", _skips_one),
    "log probabilities do not wait": (AnswerBuffer, "_release_logprobs", _all_logprobs),
    "alternatives are not held, bytes are kept": (AnswerBuffer, "_take_logprob", _keeps_bytes),
    "calls do not wait for their names": (answer._Call, "is_due", lambda *_, **__: True),
    "every name counts as declared": (
        AnswerBuffer,
        "_take_call",
        lambda self, piece: self._calls.setdefault(
            piece.index, answer._Call(answer.ToolCallText(piece.id, piece.name), waiting=piece.arguments)
        ),
    ),
    "a refusal releases": (Generation, "_take_decision", _releases_on_any_decision),
    "any ALLOW will do": (Generation, "_take_decision", _believes_any_allow),
    "text leaves after a failure": (Generation, "_let_out", _lets_out_when_over),
    "the last words are not checked": (Generation, "_take_finish", _ends_without_the_last_words),
    "half of a span is held back": (ChannelChecker, "_safe_end", _holds_back_half),
    "escapes are not read": (output_check, "unescape", lambda text: text),
    "views hold back nothing": (ChannelChecker, "_safe_end", lambda self, _view: len(self._text)),
    "fields are not joined": (OutputStream, "_read_across", _nothing_across),
}


async def test_all_is_well_without_a_mutant() -> None:
    for detector in DETECTORS:
        await detector()


@pytest.mark.parametrize("name", MUTANTS)
async def test_a_mutant_of_the_hold_back_is_caught(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    target, attribute, replacement = MUTANTS[name]
    monkeypatch.setattr(target, attribute, replacement)
    for detector in DETECTORS:
        try:
            await detector()
        except (Exception, pytest.fail.Exception):  # noqa: BLE001 - whatever it notices
            return
    pytest.fail(f"nobody noticed that {name}")
