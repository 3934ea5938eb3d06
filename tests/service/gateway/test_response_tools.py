"""KALA's own tools in responses: each call is an item of OpenAI's shape, and one that waits for a person goes on later."""

from __future__ import annotations

from typing import Any

import pytest

from tests.fakes.gateway_suite import Suite
from tests.fakes.scripted_inference import saying
from tests.fakes.scripted_tools import APPROVAL, needing_approval, printing
from tests.service.gateway.test_responses import ask, checked, kinds, stream, text_of
from tests.service.gateway.test_tool_loop import CODE, call, calling, turns

pytestmark = pytest.mark.asyncio(loop_scope="session")

DELETE = '{"command":"rm -r out"}'


def types(output: list[dict[str, Any]]) -> list[str]:
    return [item["type"] for item in output]


@pytest.mark.parametrize("is_stream", [False, True], ids=["whole", "stream"])
async def test_a_call_stands_among_the_items_with_its_result(tool_suite: Suite, is_stream: bool) -> None:
    turns(tool_suite, calling(call(), words="Let me compute."), saying("It is 42."))
    if is_stream:
        events = await stream(tool_suite, kala_tools="auto")
        body = events[-1]["response"]
        assert [kind for kind in kinds(events) if kind.startswith("mcp")] == [
            "mcp_call.in_progress", "mcp_call_arguments.delta", "mcp_call_arguments.done", "mcp_call.completed",
        ]  # fmt: skip
    else:
        body = await ask(tool_suite, kala_tools="auto")
    assert types(body["output"]) == ["message", "mcp_call", "message"]
    _, made, last = body["output"]
    assert (made["server_label"], made["name"], made["arguments"], made["status"]) == (
        "kala", "code_execution", CODE, "completed",
    )  # fmt: skip
    assert "42" in made["output"]
    assert made["kala"]["receipt"]["status"] == "LOGGED"
    assert last["content"][0]["text"] == "It is 42."
    assert body["usage"]["total_tokens"] == 24
    assert checked(await tool_suite.get(f"/v1/responses/{body['id']}")) == body

    # What the tool said is told again with the conversation, as untrusted as it was.
    turns(tool_suite, saying("As I said."))
    await ask(tool_suite, "Again?", previous_response_id=body["id"])
    words, result, answer, _ = tool_suite.inference.chats[-1].messages[1:]
    assert (words.content[0].text, words.tool_calls[0].arguments) == ("Let me compute.", CODE)
    assert (result.tool_call_id, answer.content[0].text) == (words.tool_calls[0].id, "It is 42.")


@pytest.mark.parametrize("is_stream", [False, True], ids=["whole", "stream"])
async def test_a_call_that_waits_for_a_person_goes_on_when_it_is_approved(
    tool_suite: Suite, is_stream: bool
) -> None:
    turns(tool_suite, calling(call(), call("shell", DELETE, index=1)))
    tool_suite.tools.script = lambda action: (
        needing_approval() if action.tool == "shell" and not action.approval else printing("done")
    )
    if is_stream:
        body = (await stream(tool_suite, "Clean up.", kala_tools="auto"))[-1]["response"]
    else:
        body = await ask(tool_suite, "Clean up.", kala_tools="auto")
    assert types(body["output"]) == ["mcp_call", "mcp_approval_request"]
    waiting = body["output"][1]
    assert (waiting["name"], waiting["arguments"], waiting["kala"]["approval"]) == ("shell", DELETE, APPROVAL)
    assert body["kala"]["tools"]["requires_action"] is not None

    turns(tool_suite, saying("Deleted."))
    answer = {"type": "mcp_approval_response", "approval_request_id": waiting["id"], "approve": True}
    done = await ask(tool_suite, [answer], previous_response_id=body["id"], kala_tools="auto")
    assert types(done["output"]) == ["mcp_call", "message"]
    assert done["output"][0]["approval_request_id"] == waiting["id"]
    assert (done["output"][0]["name"], done["output"][0]["arguments"]) == ("shell", DELETE)
    assert text_of(done) == "Deleted."
    assert tool_suite.tools.executed[-1].approval == APPROVAL

    turns(tool_suite, saying("Yes."))
    await ask(tool_suite, "Is it gone?", previous_response_id=done["id"])
    told = tool_suite.inference.chats[-1].messages
    answered = [one.tool_call_id for one in told if one.tool_call_id]
    called = [made.id for one in told for made in one.tool_calls]
    assert sorted(answered) == sorted(called)
    assert len(called) == 2


@pytest.mark.parametrize(
    "later",
    [lambda request: {"type": "mcp_approval_response", "approval_request_id": request, "approve": False},
     lambda _request: {"role": "user", "content": "Never mind."}],
    ids=["declined", "passed over"],
)  # fmt: skip
async def test_a_call_that_nobody_approves_is_not_carried_out(tool_suite: Suite, later: Any) -> None:
    turns(tool_suite, calling(call("shell", DELETE)))
    tool_suite.tools.script = lambda _action: needing_approval()
    body = await ask(tool_suite, "Clean up.", kala_tools="auto")
    before = len(tool_suite.tools.executed)
    turns(tool_suite, saying("Fine."))
    request = body["output"][-1]["id"]
    await ask(tool_suite, [later(request)], previous_response_id=body["id"], kala_tools="auto")
    assert len(tool_suite.tools.executed) == before
    told = [one for one in tool_suite.inference.chats[-1].messages if one.tool_call_id]
    assert ["not carried out" in one.content[0].text for one in told] == [True]


async def test_an_answer_to_no_request_is_named(tool_suite: Suite) -> None:
    given = [{"type": "mcp_approval_response", "approval_request_id": "mcpr_x", "approve": True}]
    answer = await tool_suite.post("/v1/responses", {"input": given, "kala_tools": "auto"})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "input[0].approval_request_id")


async def test_kalas_tools_need_their_scope_in_the_background_too(tool_suite: Suite) -> None:
    headers = tool_suite.bearer(tool_suite.new_key("chat"))
    for fields in ({}, {"background": True}):
        body = {"input": "x", "kala_tools": "auto", **fields}
        answer = await tool_suite.http.post("/v1/responses", json=body, headers=headers)
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "insufficient_permissions")


async def test_a_call_of_the_clients_is_left_to_it(tool_suite: Suite) -> None:
    turns(tool_suite, calling(call(), call("look", "{}", index=1), words="Both."))
    tools = [{"type": "function", "name": "look", "parameters": {}, "strict": False}]
    body = await ask(tool_suite, "Look and compute.", kala_tools="auto", tools=tools)
    assert types(body["output"]) == ["message", "mcp_call", "function_call"]
    assert body["output"][2]["name"] == "look"
