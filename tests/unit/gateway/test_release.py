"""released ⊆ checked, whatever is generated and checked in whatever order."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import given
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule

from gateway.answer import MAX_CHUNK_CHARS, NAMES, REASONING, REFUSAL, TEXT, AnswerBuffer, tool_arguments
from gateway.release import HoldBack, Piece, Track
from kala.errors import UnavailableError
from kala.inference.v1 import inference_pb2 as pb

TRACKS = [TEXT, REASONING, REFUSAL, tool_arguments(0), tool_arguments(1)]


class HoldBackMachine(RuleBasedStateMachine):
    """A model of the hold-back: what was generated, and the furthest offset that ever covered real text."""

    tracks = Bundle("tracks")

    def __init__(self) -> None:
        super().__init__()
        self.held = HoldBack()
        self.generated: dict[Track, str] = {}
        self.sent: dict[Track, str] = {}
        self.checked: dict[Track, int] = {}
        self.released: dict[Track, str] = {}

    @rule(track=st.sampled_from(TRACKS), text=st.text(max_size=8))
    def push(self, track: Track, text: str) -> None:
        self.held.push(track, text)
        self.generated[track] = self.generated.get(track, "") + text

    @rule()
    def send(self) -> None:
        for piece in self.held.take_unsent():
            assert piece.text
            self.sent[piece.track] = self.sent.get(piece.track, "") + piece.text
        assert self.held.unsent == 0
        assert self.sent == {track: text for track, text in self.generated.items() if text}

    @rule(track=st.sampled_from(TRACKS), characters=st.integers(0, 40))
    def check(self, track: Track, characters: int) -> None:
        self.held.check(track, characters)
        covered = min(characters, len(self.sent.get(track, "")))
        self.checked[track] = max(covered, self.checked.get(track, 0))

    @rule()
    def release(self) -> None:
        for piece in self.held.release():
            assert piece.text
            self.released[piece.track] = self.released.get(piece.track, "") + piece.text

    @invariant()
    def nothing_leaves_unchecked_and_nothing_is_changed(self) -> None:
        for track, text in self.released.items():
            assert len(text) <= self.checked.get(track, 0)
            assert self.generated[track].startswith(text)
            assert self.held.released(track) == text

    @invariant()
    def what_waits_is_counted(self) -> None:
        generated = sum(map(len, self.generated.values()))
        assert self.held.unsent == generated - sum(map(len, self.sent.values()))
        assert self.held.held == generated - sum(map(len, self.released.values()))

    @invariant()
    def the_record_of_what_was_generated_is_whole(self) -> None:
        for track, text in self.generated.items():
            assert self.held.generated(track) == text


TestHoldBack = HoldBackMachine.TestCase


def test_an_offset_ahead_of_the_text_does_not_cover_what_comes_later() -> None:
    held = HoldBack()
    held.push(TEXT, "abc")
    held.take_unsent()
    held.check(TEXT, 100)
    held.push(TEXT, "def")
    assert [piece.text for piece in held.release()] == ["abc"]
    assert held.held == 3


def test_an_offset_does_not_cover_text_that_no_check_was_given() -> None:
    held = HoldBack()
    held.push(TEXT, "abc")
    held.check(TEXT, 3)
    held.take_unsent()
    assert held.release() == []


def test_a_lower_offset_withdraws_what_has_not_left() -> None:
    held = HoldBack()
    held.push(TEXT, "abcdef")
    held.take_unsent()
    held.check(TEXT, 6)
    held.check(TEXT, 2)
    assert [piece.text for piece in held.release()] == ["ab"]


def test_a_track_without_text_is_ignored() -> None:
    held = HoldBack()
    held.check(TEXT, 5)
    assert held.release() == []
    assert held.take_unsent() == []
    assert held.held == 0
    assert held.released(TEXT) == held.generated(TEXT) == ""
    assert held.released_upto(TEXT) == 0


def _call(**fields: object) -> pb.ChatDelta:
    return pb.ChatDelta(tool_calls=[pb.ToolCall(index=0, **fields)])


def taken(buffer: AnswerBuffer, delta: pb.ChatDelta) -> list[Piece]:
    buffer.take_in(delta)
    return buffer.take_unsent()


def test_a_declared_name_leaves_with_the_first_arguments() -> None:
    buffer = AnswerBuffer({"f"})
    chunks = taken(buffer, _call(id="c", name="f", arguments="{}"))
    assert chunks == [(NAMES, "c\n"), (tool_arguments(0), "{}")]
    assert not buffer.release()
    buffer.check(tool_arguments(0), 2)
    # The id is the backend's choice, so it is checked like its other words.
    assert not buffer.release()
    buffer.check(NAMES, 2)
    (piece,) = buffer.release().tool_calls
    assert (piece.id, piece.name, piece.arguments) == ("c", "f", "{}")


def test_an_undeclared_name_waits_for_its_own_check() -> None:
    buffer = AnswerBuffer()
    chunks = taken(buffer, _call(id="c", name="words of the model", arguments="{}"))
    assert chunks[0] == (NAMES, "c\nwords of the model\n")
    buffer.check(tool_arguments(0), 2)
    buffer.check(NAMES, 2)
    assert not buffer.release().tool_calls
    buffer.check(NAMES, len("c\nwords of the model\n"))
    assert not buffer.released().tool_calls
    (piece,) = buffer.release().tool_calls
    assert (piece.name, piece.arguments) == ("words of the model", "{}")
    assert buffer.released().tool_calls[0].arguments == "{}"
    taken(buffer, _call(arguments="more"))
    assert buffer.released().tool_calls[0].arguments == "{}"


def test_a_call_without_arguments_leaves_at_the_end() -> None:
    buffer = AnswerBuffer({"f"})
    taken(buffer, _call(id="c", name="f"))
    buffer.check(NAMES, 2)
    assert not buffer.release()
    assert buffer.release(is_final=True).tool_calls[0].name == "f"
    assert buffer.has_tool_calls
    assert not buffer.release(is_final=True)


def test_what_left_before_is_checked_too_and_does_not_leave_again() -> None:
    buffer = AnswerBuffer(before="earlier ")
    assert (buffer.held, buffer.unsent, buffer.has_released_text) == (0, 8, False)
    buffer.take_in(pb.ChatDelta(text="later"))
    assert buffer.take_unsent() == [(TEXT, "earlier later")]
    buffer.check(TEXT, 3)
    assert not buffer.release()
    buffer.check(TEXT, 10)
    assert buffer.release().text == "la"
    assert (buffer.released().text, buffer.generated().text, buffer.held) == ("la", "later", 3)


def test_a_call_waits_for_its_name_and_what_its_backend_says_of_it_later_is_not_told() -> None:
    buffer = AnswerBuffer({"f", "g"})
    taken(buffer, _call(arguments="{"))
    buffer.check(tool_arguments(0), 1)
    assert not buffer.release()
    assert buffer.released().tool_calls == {}
    taken(buffer, _call(name="f", arguments="}"))
    buffer.check(tool_arguments(0), 2)
    (piece,) = buffer.release().tool_calls
    assert (piece.id, piece.name, piece.arguments) == ("", "f", "{}")
    taken(buffer, _call(id="late", name="g"))
    assert not buffer.release(is_final=True)
    assert (buffer.released().tool_calls[0].id, buffer.released().tool_calls[0].name) == ("", "f")


def test_more_calls_than_can_be_checked_are_the_backends_failure() -> None:
    buffer = AnswerBuffer()
    taken(buffer, pb.ChatDelta(tool_calls=[pb.ToolCall(index=127, name="f")]))
    with pytest.raises(UnavailableError, match="more than 128 tools"):
        buffer.take_in(pb.ChatDelta(tool_calls=[pb.ToolCall(index=128, name="f")]))


def test_alternatives_that_nobody_can_have_asked_for_do_not_leave() -> None:
    buffer = AnswerBuffer()
    entry = pb.TokenLogprob(token="a", top=[pb.TokenLogprob(token=str(rank)) for rank in range(300)])
    chunks = taken(buffer, pb.ChatDelta(logprobs=[entry]))
    assert len(chunks) == 21
    for track, text in chunks:
        buffer.check(track, len(text))
    assert len(buffer.release().logprobs[0].top) == 20


def test_a_long_text_goes_to_the_check_in_pieces_that_a_message_may_hold() -> None:
    buffer = AnswerBuffer()
    text = "x" * (2 * MAX_CHUNK_CHARS + 1)
    pieces = taken(buffer, pb.ChatDelta(text=text))
    assert [len(piece.text) for piece in pieces] == [MAX_CHUNK_CHARS, MAX_CHUNK_CHARS, 1]


def test_log_probabilities_wait_for_every_token_in_them() -> None:
    buffer = AnswerBuffer()
    entry = pb.TokenLogprob(token="Hi", top=[pb.TokenLogprob(token="No")])
    chunks = taken(buffer, pb.ChatDelta(text="Hi", logprobs=[entry]))
    tracks = [track for track, _ in chunks]
    for track in tracks[:-1]:
        buffer.check(track, 2)
    assert not buffer.release().logprobs
    buffer.check(tracks[-1], 2)
    assert buffer.release().logprobs == (entry,)


def test_bytes_of_a_token_that_are_not_its_text_never_leave() -> None:
    buffer = AnswerBuffer()
    odd = pb.TokenLogprob(
        token="Hi", token_bytes=b"other", top=[pb.TokenLogprob(token="\ufffd", token_bytes=b"\xf0")]
    )
    chunks = taken(buffer, pb.ChatDelta(logprobs=[odd, pb.TokenLogprob(token="é", token_bytes="é".encode())]))
    for track, _ in chunks:
        buffer.check(track, 3)
    first, second = buffer.release().logprobs
    assert (first.token_bytes, first.top[0].token_bytes) == (b"", b"")
    assert second.token_bytes == "é".encode()


def test_the_record_of_a_text_is_the_text_and_of_anything_else_is_json() -> None:
    buffer = AnswerBuffer({"f"})
    buffer.take_in(pb.ChatDelta(text="Grüße"))
    assert buffer.generated().to_bytes() == "Grüße".encode()
    assert buffer.generated().form == "text"
    taken(buffer, _call(id="c", name="f", arguments="{}"))
    assert buffer.generated().form == "message"
    assert b'"arguments":"{}"' in buffer.generated().to_bytes()
    assert buffer.released().to_bytes() == b""


@given(
    st.text(max_size=40),
    st.lists(st.integers(0, 40), max_size=6),
    st.lists(st.integers(1, 5), min_size=1, max_size=9),
)
def test_what_left_is_what_the_record_says(text: str, offsets: list[int], sizes: list[int]) -> None:
    buffer, left, start = AnswerBuffer(), "", 0
    for size in sizes:
        taken(buffer, pb.ChatDelta(text=text[start : start + size]))
        start += size
        for offset in offsets:
            buffer.check(TEXT, offset)
        left += buffer.release().text
    assert buffer.released().text == left
    assert text.startswith(left)
    assert len(left) <= max(offsets, default=0)
