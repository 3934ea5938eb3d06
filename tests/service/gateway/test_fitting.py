"""Conversations fitted to a context: only when asked, before the judgement, and told to whoever asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest

from kala.errors import FailedPreconditionError, InvalidArgumentError, UnavailableError
from kala.inference.v1 import inference_pb2 as pb
from tests.fakes.gateway_suite import Suite, running_suite
from tests.fakes.scripted_inference import REPLY

pytestmark = pytest.mark.asyncio(loop_scope="session")

TAIL = "keep-system-and-tail"
CONVERSATION = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "An old question"},
    {"role": "assistant", "content": "An old answer"},
    {"role": "user", "content": "And now?"},
]


def without_the_oldest(request: pb.CountTokensRequest) -> pb.CountTokensResponse:
    kept = [request.messages[0], *request.messages[3:]]
    return pb.CountTokensResponse(
        tokens=900,
        fitted=kept,
        fitted_tokens=400,
        context_tokens=512,
        estimated=True,
        backend="backends/fake",
    )


async def chat(suite: Suite, strategy: str = TAIL, **fields: Any) -> httpx.Response:
    body = {"messages": CONVERSATION, **fields}
    return await suite.post("/v1/chat/completions", body, headers={"x-kala-truncation": strategy})


@pytest.mark.parametrize("headers", [{}, {"x-kala-truncation": "refuse"}], ids=["nothing said", "refuse"])
async def test_nothing_is_left_out_unless_it_is_asked_for(suite: Suite, headers: dict[str, str]) -> None:
    response = await suite.post("/v1/chat/completions", {"messages": CONVERSATION}, headers=headers)
    assert suite.inference.counts == []
    (action,) = suite.inference.chats
    assert len(action.messages) == 4
    assert action.truncation == pb.TRUNCATION_UNSPECIFIED
    assert "fitted" not in response.json()["kala"]


async def test_what_is_judged_logged_and_generated_from_is_the_fitted_conversation(suite: Suite) -> None:
    suite.inference.count = without_the_oldest
    response = await chat(suite, max_completion_tokens=100)
    assert response.json()["choices"][0]["message"]["content"] == REPLY
    (judged,) = suite.ethics.actions
    (executed,) = suite.inference.chats
    assert [message.content[0].text for message in executed.messages] == ["Be brief.", "And now?"]
    assert executed.truncation == pb.TRUNCATION_FITTED
    assert judged.action.value == executed.SerializeToString(deterministic=True)
    intent, outcome = await suite.leaves()
    assert intent["action"]["digest"] == outcome["action"]["digest"]


async def test_the_answer_says_what_was_left_out(suite: Suite) -> None:
    suite.inference.count = without_the_oldest
    expected = {
        "strategy": TAIL,
        "prompt_tokens": 900,
        "fitted_tokens": 400,
        "dropped_messages": 2,
        "context_tokens": 512,
        "estimated": True,
    }
    assert (await chat(suite)).json()["kala"]["fitted"] == expected
    headers = suite.bearer() | {"x-kala-truncation": TAIL}
    body = {"messages": CONVERSATION, "stream": True}
    stream = await suite.http.post("/v1/chat/completions", json=body, headers=headers)
    assert '"fitted":{"strategy":"keep-system-and-tail"' in stream.text.split("\n\n")[-3]


async def test_inference_is_told_the_whole_prompt_and_the_room_for_the_answer(suite: Suite) -> None:
    tools = [{"type": "function", "function": {"name": "look_up"}}]
    await chat(suite, "Content-Budget", model="qwen3-4b", tools=tools, max_tokens=77)
    await chat(suite)
    first, second = suite.inference.counts
    assert (first.fit, first.model, first.reserve_output_tokens) == (
        pb.FIT_STRATEGY_CONTENT_BUDGET,
        "qwen3-4b",
        77,
    )
    assert [tool.name for tool in first.tools] == ["look_up"]
    assert (second.fit, second.reserve_output_tokens) == (pb.FIT_STRATEGY_KEEP_SYSTEM_AND_TAIL, 512)
    assert len(second.messages) == 4


async def test_an_operator_may_have_every_conversation_fitted(tmp_path: Path) -> None:
    async with running_suite(tmp_path, truncation=TAIL) as suite:
        suite.inference.count = without_the_oldest
        fitted = await suite.post("/v1/chat/completions", {"messages": CONVERSATION})
        assert fitted.json()["kala"]["fitted"]["strategy"] == TAIL
        assert "fitted" not in (await chat(suite, "refuse")).json()["kala"]


async def test_harm_in_the_part_that_stays_is_refused(suite: Suite) -> None:
    suite.inference.count = without_the_oldest
    messages = [*CONVERSATION[:3], {"role": "user", "content": "please refuse"}]
    response = await chat(suite, messages=messages)
    assert response.json()["choices"][0]["finish_reason"] == "content_filter"
    assert suite.inference.chats == []


async def test_an_unknown_strategy_is_named_with_the_known_ones(suite: Suite) -> None:
    response = await chat(suite, "middle-out")
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, "x-kala-truncation")
    assert "refuse, keep-system-and-tail, content-budget" in error["message"]


@pytest.mark.parametrize(
    ("error", "status", "code", "param"),
    [
        pytest.param(
            InvalidArgumentError("messages", "has 900 tokens", reason="CONTEXT_LENGTH_EXCEEDED"),
            400, "context_length_exceeded", "messages", id="cannot fit",
        ),
        pytest.param(
            InvalidArgumentError("reserve_output_tokens", "leave no room"),
            400, "invalid_value", "max_completion_tokens", id="no room beside the answer",
        ),
        pytest.param(
            FailedPreconditionError("unknown", reason="CONTEXT_UNKNOWN"), 400, "context_unknown", None, id="unknown",
        ),
        pytest.param(UnavailableError("away"), 503, "backends_unavailable", None, id="inference is away"),
    ],
)  # fmt: skip
async def test_what_cannot_be_fitted_is_refused_and_logged_before_anything_is_judged(
    suite: Suite, error: Exception, status: int, code: str, param: str | None
) -> None:
    suite.inference.count = lambda _request: error
    response = await chat(suite)
    told = response.json()["error"]
    assert (response.status_code, told["code"], told["param"]) == (status, code, param)
    assert suite.ethics.actions == []
    assert suite.inference.chats == []
    (leaf,) = await suite.leaves()
    assert leaf["type"] == "chat.invalid"
    assert response.headers["x-kala-receipt"].endswith(leaf["idempotency_key"])
