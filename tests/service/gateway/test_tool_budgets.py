"""How far a request with KALA's tools may go: turns, calls, tokens, and what its key may use; it stops before it acts."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from typing import Any

import httpx
import pytest

from gateway.limits.estimates import estimate_of
from kala.inference.v1 import inference_pb2 as pb
from tests.fakes.gateway_suite import Suite, eventually
from tests.fakes.scripted_inference import Step, finish, route, saying

pytestmark = pytest.mark.asyncio(loop_scope="session")

CODE = '{"language":"python","code":"print(6*7)"}'
TURN_TOKENS = 12
"""What the scripted model says that a turn used."""


def calling(*names: str) -> list[Step]:
    calls = [
        pb.ToolCall(id=f"call_{index}", name=name, arguments=CODE, index=index)
        for index, name in enumerate(names or ("code_execution",))
    ]
    delta = pb.ChatResponse(delta=pb.ChatDelta(tool_calls=calls))
    return [route(), delta, finish(pb.FINISH_REASON_TOOL_CALLS)]


def turns(suite: Suite, *scripts: Sequence[Step]) -> None:
    """Let the model's turns go so, one after the other, and the last one again and again."""
    waiting = list(scripts)
    suite.inference.script = lambda _action: waiting.pop(0) if len(waiting) > 1 else waiting[0]


async def limited(suite: Suite, amount: int) -> str:
    """A key that may chat and use tools, and has so many tokens altogether."""
    budget = {"unit": "BUDGET_UNIT_TOKENS", "period": "BUDGET_PERIOD_TOTAL", "amount": str(amount)}
    body = {
        "display_name": "limited",
        "scopes": ["SCOPE_CHAT", "SCOPE_TOOLS"],
        "limits": {"budgets": [budget]},
    }
    return str((await suite.post("/kala/v1/gateway/keys", body)).json()["secret"])


async def left_of(suite: Suite, key: str) -> int:
    """What a key's budget has left, as it says to one that asks for more."""
    refused = await ask(suite, key, max_completion_tokens=1_000_000)
    assert refused.status_code == 429
    found = re.search(r"and (\d+) left of it", refused.json()["error"]["message"])
    assert found is not None
    return int(found[1])


async def settled(suite: Suite, key: str, *, left: int) -> None:
    """Wait until a key has this much left: an answer leaves before it is settled."""

    async def is_so() -> bool:
        return await left_of(suite, key) == left

    assert await eventually(is_so)


async def ask(suite: Suite, key: str, **fields: Any) -> httpx.Response:
    body = {
        "model": "auto",
        "messages": [{"role": "user", "content": "What is 6*7?"}],
        "kala_tools": "auto",
        "max_completion_tokens": 10,
        **fields,
    }
    return await suite.http.post("/v1/chat/completions", json=body, headers=suite.bearer(key))


async def test_a_request_narrows_its_own_turns_and_calls(tool_suite: Suite) -> None:
    turns(tool_suite, calling())
    body = (await tool_suite.chat(kala_tools="auto", kala_tool_limits={"turns": 2})).json()
    assert len(tool_suite.inference.chats) == 2
    assert tool_suite.inference.chats[-1].tool_choice.mode == pb.TOOL_CHOICE_MODE_NONE
    assert len(tool_suite.tools.executed) == 1
    assert body["kala"]["tools"]["stopped"] == "turns"
    tool_suite.tools.executed.clear()
    turns(tool_suite, calling(), saying("Without, then."))
    body = (await tool_suite.chat(kala_tools="auto", kala_tool_limits={"calls": 0})).json()
    assert tool_suite.tools.executed == []
    assert [step["status"] for step in body["kala"]["tools"]["steps"]] == ["OVER_BUDGET"]
    assert body["choices"][0]["message"]["content"] == "Without, then."


async def test_no_request_widens_the_gateways_limits(tool_suite: Suite) -> None:
    turns(tool_suite, calling())
    wide = {"turns": 60, "calls": 200, "tokens": 10**9}
    body = (await tool_suite.chat(kala_tools="auto", kala_tool_limits=wide)).json()
    assert len(tool_suite.inference.chats) == 4
    assert body["kala"]["tools"]["stopped"] == "turns"


async def test_a_request_whose_tokens_are_used_stops_before_its_calls_run_and_may_be_gone_on_with(
    tool_suite: Suite,
) -> None:
    turns(tool_suite, calling())
    messages = [{"role": "user", "content": "What is 6*7?"}]
    limits = {"tokens": TURN_TOKENS}
    body = (await tool_suite.chat(messages=messages, kala_tools="auto", kala_tool_limits=limits)).json()
    assert tool_suite.tools.executed == []
    choice, tools = body["choices"][0], body["kala"]["tools"]
    assert (choice["finish_reason"], tools["stopped"]) == ("tool_calls", "tokens")
    assert [call["id"] for call in choice["message"]["tool_calls"]] == ["call_0"]
    assert body["usage"]["total_tokens"] == TURN_TOKENS
    turns(tool_suite, saying("It is 42."))
    again = await tool_suite.chat(messages=[*messages, *tools["messages"]], kala_tools="auto")
    assert len(tool_suite.tools.executed) == 1
    assert again.json()["choices"][0]["message"]["content"] == "It is 42."


async def test_a_stream_tells_what_ended_it_and_the_calls_that_are_left(tool_suite: Suite) -> None:
    turns(tool_suite, calling())
    _, events = await tool_suite.stream(kala_tools="auto", kala_tool_limits={"tokens": 1})
    last = events[-2]
    assert (last["choices"][0]["finish_reason"], last["kala"]["tools"]["stopped"]) == ("tool_calls", "tokens")
    left = [
        call
        for event in events[:-1]
        for choice in event["choices"]
        for call in choice["delta"].get("tool_calls", ())
    ]
    assert [call["id"] for call in left] == ["call_0"]


async def size_of_a_turn(suite: Suite) -> int:
    """What the first turn of a request is taken to use."""
    turns(suite, saying("42"))
    assert (await ask(suite, suite.key)).status_code == 200
    estimate = estimate_of(suite.inference.chats[-1])
    suite.inference.chats.clear()
    return estimate.input_tokens + (estimate.output_tokens or 0)


async def test_kalas_tools_are_of_what_a_request_sets_aside(tool_suite: Suite) -> None:
    turn = await size_of_a_turn(tool_suite)
    key = await limited(tool_suite, turn - 1)
    refused = await ask(tool_suite, key)
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "insufficient_quota")
    assert tool_suite.inference.chats == []
    plain = await ask(tool_suite, key, kala_tools="none")
    assert plain.status_code == 200, plain.text


async def test_a_key_that_cannot_pay_for_another_turn_runs_no_tool_and_is_charged_for_what_it_used(
    tool_suite: Suite,
) -> None:
    turn = await size_of_a_turn(tool_suite)
    key = await limited(tool_suite, turn + turn // 2)
    turns(tool_suite, calling())
    answer = (await ask(tool_suite, key)).json()
    assert answer["kala"]["tools"]["stopped"] == "budget"
    assert answer["choices"][0]["finish_reason"] == "tool_calls"
    assert tool_suite.tools.executed == []
    assert len(tool_suite.inference.chats) == 1
    await settled(tool_suite, key, left=turn + turn // 2 - TURN_TOKENS)


async def test_turns_that_a_key_can_pay_for_are_charged_once(tool_suite: Suite) -> None:
    turn = await size_of_a_turn(tool_suite)
    key = await limited(tool_suite, 4 * turn)
    turns(tool_suite, calling(), saying("42"))
    answer = await ask(tool_suite, key)
    assert answer.json()["choices"][0]["message"]["content"] == "42", answer.text
    assert answer.json()["kala"]["tools"]["stopped"] is None
    await settled(tool_suite, key, left=4 * turn - 2 * TURN_TOKENS)


async def test_racing_loops_never_use_more_than_their_key_has(tool_suite: Suite) -> None:
    turn = await size_of_a_turn(tool_suite)
    key = await limited(tool_suite, 3 * turn)
    tool_suite.inference.script = lambda action: (
        saying("42") if any(message.role == pb.ROLE_TOOL for message in action.messages) else calling()
    )
    answers: list[httpx.Response] = []
    for _ in range(20):
        answers = await asyncio.gather(*(ask(tool_suite, key) for _ in range(12)))
        assert {answer.status_code for answer in answers} <= {200, 429}
        # On a busy machine all may be refused, each while the others hold a part of what it needs; then none used any.
        if any(answer.status_code == 200 for answer in answers):
            break
    ends = [answer.json()["kala"]["tools"]["stopped"] for answer in answers if answer.status_code == 200]
    assert ends
    assert set(ends) <= {None, "budget"}
    # Each that could pay ran its tool; none that could not did.
    assert len(tool_suite.tools.executed) == ends.count(None)
    used = sum(answer.json()["usage"]["total_tokens"] for answer in answers if answer.status_code == 200)
    await settled(tool_suite, key, left=3 * turn - used)


async def test_a_clients_own_call_sets_nothing_more_aside(tool_suite: Suite) -> None:
    turn = await size_of_a_turn(tool_suite)
    weather = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
    key = await limited(tool_suite, turn + turn // 2)
    turns(tool_suite, calling("weather"))
    answer = (await ask(tool_suite, key, tools=[weather])).json()
    assert answer["kala"]["tools"]["stopped"] is None
    assert [call["function"]["name"] for call in answer["choices"][0]["message"]["tool_calls"]] == ["weather"]


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"kala_tool_limits": {"turns": 1}}, "kala_tool_limits"),
        ({"kala_tools": "auto", "kala_tool_limits": {"turns": 0}}, "kala_tool_limits.turns"),
        ({"kala_tools": "auto", "kala_tool_limits": {"tokens": "many"}}, "kala_tool_limits.tokens"),
        ({"kala_tools": "auto", "kala_tool_limits": {"hours": 1}}, "hours"),
    ],
)
async def test_limits_that_are_none_are_named(tool_suite: Suite, fields: dict[str, Any], says: str) -> None:
    response = await tool_suite.chat(**fields)
    assert response.status_code == 400, response.text
    assert says in response.json()["error"]["message"]
    assert tool_suite.inference.chats == []
