"""No byte of a forbidden span leaves in an event, a response or what is stored, wherever it stands and is split."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from kala.inference.v1 import inference_pb2 as pb
from tests.fakes.gateway_suite import Suite
from tests.fakes.scripted_ethics import FORBIDDEN
from tests.fakes.scripted_inference import finish, route

pytestmark = pytest.mark.asyncio(loop_scope="session")

# Longer than any overlap that the judge holds back, so that words before it do leave.
HARMLESS = "It was a dark and stormy night, and so on. "

FIELDS: dict[str, Callable[[str], pb.ChatDelta]] = {
    "text": lambda words: pb.ChatDelta(text=words),
    "reasoning": lambda words: pb.ChatDelta(reasoning=words),
    "refusal": lambda words: pb.ChatDelta(refusal=words),
    "arguments": lambda words: pb.ChatDelta(tool_calls=[pb.ToolCall(index=0, id="c", name="look", arguments=words)]),
    "name": lambda words: pb.ChatDelta(tool_calls=[pb.ToolCall(index=0, id="c", name=words.strip()[:64])]),
    "id": lambda words: pb.ChatDelta(tool_calls=[pb.ToolCall(index=0, id=words.strip()[:64], name="look")]),
    "token": lambda words: pb.ChatDelta(text="x" * len(words), logprobs=[pb.TokenLogprob(token=words)]),
}  # fmt: skip
UNSPLIT = ("name", "id")


@pytest.mark.parametrize("is_stream", [True, False], ids=["stream", "whole"])
@pytest.mark.parametrize("field", FIELDS)
async def test_a_forbidden_span_never_leaves(suite: Suite, field: str, is_stream: bool) -> None:
    tools = [{"type": "function", "name": "look", "parameters": {}, "strict": False}]
    splits = (0,) if field in UNSPLIT else range(0, len(FORBIDDEN), 2)
    for split in splits:
        pieces = (
            [FORBIDDEN] if field in UNSPLIT else [HARMLESS, FORBIDDEN[:split], FORBIDDEN[split:], HARMLESS]
        )
        deltas = [pb.ChatResponse(delta=FIELDS[field](piece)) for piece in pieces if piece]
        suite.inference.script = lambda _action, deltas=deltas: [route(), *deltas, finish()]  # type: ignore[misc] # bound now
        body = {"input": "Tell me.", "stream": is_stream, "tools": tools, "top_logprobs": 1}
        answer = await suite.post("/v1/responses", body)
        assert answer.status_code == 200, answer.text
        name = answer.text.partition("resp_")[2][:32]
        stored = await suite.get(f"/v1/responses/resp_{name}")
        assert stored.json()["incomplete_details"] == {"reason": "content_filter"}
        for told in (answer.text, stored.text):
            assert FORBIDDEN not in told
            assert FORBIDDEN not in _joined(told)


def _joined(events: str) -> str:
    """The words of all deltas together."""
    return "".join(part.partition('"')[0] for part in events.split('"delta":"')[1:])
