"""The leak matrix: a forbidden span at every offset, split everywhere, in every field, by the shipped rules.

Here the gateway's generation and the check of outputs run as they do in a suite, without a wire between them; the
endpoints that write what is released are in `test_leaks.py` and `test_leak_endpoints.py`.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.generation import HoldBounds
from kala.common.v1 import decision_pb2
from kala.inference.v1 import inference_pb2 as pb
from tests.fakes.streamed_answers import Left, LocalEthics, generate

HARMLESS = "Plants turn light into sugar, and bees carry pollen from bloom to bloom. "
SPAN = "Here's how to build a pipe bomb"
OFFSETS = range(260)
"""From nothing before the span to more than what is held back."""

AT_ONCE = HoldBounds(characters=1, seconds=60)
LATE = HoldBounds(characters=100_000, seconds=0.0)
TOGETHER = HoldBounds(characters=40, seconds=60)
WHOLE = HoldBounds(characters=100_000, seconds=60)
BOUNDS = {"at once": AT_ONCE, "late": LATE, "together": TOGETHER, "whole": WHOLE}
"""A check for every delta; for whatever came since the loop went round; for every 40 characters; one at the end."""


@pytest.fixture(scope="module")
def ethics() -> LocalEthics:
    return LocalEthics()


@dataclass(frozen=True)
class Field:
    """How a backend writes a piece of a field, and what of the field has left."""

    delta: Callable[[str], pb.ChatDelta]
    left: Callable[[Left], str]
    head: tuple[pb.ChatDelta, ...] = ()
    is_whole: bool = False
    """Whether a backend says it once, in one piece."""


def _call(**fields: str) -> pb.ChatDelta:
    return pb.ChatDelta(tool_calls=[pb.ToolCall(index=0, **fields)])


def _escaped(piece: str) -> pb.ChatDelta:
    return _call(arguments="".join(f"\\u{ord(char):04x}" for char in piece))


def _between_two_calls(piece: str) -> pb.ChatDelta:
    other = pb.ToolCall(index=1, name="f", arguments="xyz ")
    return pb.ChatDelta(tool_calls=[pb.ToolCall(index=0, arguments=piece), other])


def _alternative(piece: str) -> pb.ChatDelta:
    top = [pb.TokenLogprob(token="x"), pb.TokenLogprob(token=piece)]
    return pb.ChatDelta(logprobs=[pb.TokenLogprob(token="x", top=top)])


NAMED = (_call(id="c", name="f"),)
FIELDS = {
    "text": Field(lambda piece: pb.ChatDelta(text=piece), lambda left: left.text),
    "reasoning": Field(lambda piece: pb.ChatDelta(reasoning=piece), lambda left: left.reasoning),
    "refusal": Field(lambda piece: pb.ChatDelta(refusal=piece), lambda left: left.refusal),
    "tool arguments": Field(lambda piece: _call(arguments=piece), lambda left: left.arguments(0), head=NAMED),
    "escaped arguments": Field(
        _escaped, lambda left: json.loads(f'"{_whole_escapes(left.arguments(0))}"'), head=NAMED
    ),
    "arguments of two calls at once": Field(_between_two_calls, lambda left: left.arguments(0), head=NAMED),
    "chosen token": Field(
        lambda piece: pb.ChatDelta(logprobs=[pb.TokenLogprob(token=piece)]), lambda left: left.tokens
    ),
    "alternative token": Field(_alternative, lambda left: left.alternatives(1)),
    "tool name": Field(lambda piece: _call(name=piece), lambda left: left.names, is_whole=True),
    "call id": Field(lambda piece: _call(id=piece, name="f"), lambda left: left.names, is_whole=True),
}


def _whole_escapes(text: str) -> str:
    return text[: len(text) - len(text) % 6]


async def require_no_leak(
    ethics: LocalEthics, field: Field, pieces: Sequence[str], lead: str, hold: HoldBounds
) -> None:
    """Generate the pieces into a field; nothing of the span may leave, and the record must say what did."""
    deltas = [*field.head, *map(field.delta, ["".join(pieces)] if field.is_whole else pieces)]
    left = await generate(ethics, deltas, hold=hold, declared=("f",))
    assert left.state.decision is not None
    assert left.state.decision.outcome == decision_pb2.OUTCOME_REFUSE
    reached = field.left(left)
    assert lead.startswith(reached), (reached, pieces)
    assert left.record.text == left.text
    assert left.record.reasoning == left.reasoning
    assert left.record.refusal == left.refusal
    calls = {index: call.arguments for index, call in left.record.tool_calls.items()}
    assert all(arguments == left.arguments(index) for index, arguments in calls.items())


def cut(text: str, places: Sequence[int]) -> list[str]:
    edges = sorted({0, len(text), *(place % (len(text) + 1) for place in places)})
    return [text[start:end] for start, end in itertools.pairwise(edges)]


def lead_of(offset: int) -> str:
    """So many characters and a blank; a rule looks a little before a match for exceptions."""
    return (HARMLESS * 5)[:offset] + " " if offset else ""


@pytest.mark.parametrize("name", FIELDS)
@settings(max_examples=25, deadline=None)
@given(
    offset=st.sampled_from(OFFSETS),
    places=st.lists(st.integers(0, 600), max_size=12),
    after=st.sampled_from(["", ".", ". " + HARMLESS * 4]),
    hold=st.sampled_from(list(BOUNDS.values())),
)
async def test_a_forbidden_span_leaves_no_trace_at_any_offset_and_split(
    ethics: LocalEthics, name: str, offset: int, places: list[int], after: str, hold: HoldBounds
) -> None:
    lead = lead_of(offset)
    await require_no_leak(ethics, FIELDS[name], cut(lead + SPAN + after, places), lead, hold)


@pytest.mark.slow
@pytest.mark.parametrize("name", FIELDS)
@pytest.mark.parametrize("bounds", BOUNDS)
async def test_the_whole_matrix(ethics: LocalEthics, name: str, bounds: str) -> None:
    field, hold = FIELDS[name], BOUNDS[bounds]
    for offset in OFFSETS:
        lead = lead_of(offset)
        for split in range(1) if field.is_whole else range(len(SPAN)):
            pieces = [lead + SPAN[:split], SPAN[split:], ". " + HARMLESS * 4]
            await require_no_leak(ethics, field, pieces, lead, hold)
