"""The model calls KALA's own tools: every call is judged, logged, cleared, run and checked, or it does not happen."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from kala.errors import InvalidArgumentError, UnavailableError
from kala.inference.v1 import inference_pb2 as pb
from kala.tools.v1 import execution_pb2
from tests.fakes.gateway_suite import Suite, eventually, running_suite, words_of
from tests.fakes.scripted_ethics import FORBIDDEN
from tests.fakes.scripted_inference import Step, finish, route, saying, text
from tests.fakes.scripted_tools import (
    APPROVAL,
    RUN,
    WORKSPACE,
    artifact,
    ended,
    needing_approval,
    printing,
    started,
    wrote,
)

pytestmark = pytest.mark.asyncio(loop_scope="session")

CODE = '{"language":"python","code":"print(6*7)"}'


def calling(*calls: pb.ToolCall, words: str = "") -> list[Step]:
    """A turn in which the model calls tools."""
    said = [text(words)] if words else []
    return [
        route(),
        *said,
        pb.ChatResponse(delta=pb.ChatDelta(tool_calls=calls)),
        finish(pb.FINISH_REASON_TOOL_CALLS),
    ]


def call(name: str = "code_execution", arguments: str = CODE, *, index: int = 0) -> pb.ToolCall:
    return pb.ToolCall(id=f"call_{name}_{index}", name=name, arguments=arguments, index=index)


def turns(suite: Suite, *scripts: Sequence[Step]) -> None:
    """Let the model's turns go so, one after the other, and the last one again and again."""
    waiting = list(scripts)
    suite.inference.script = lambda _action: waiting.pop(0) if len(waiting) > 1 else waiting[0]


async def test_a_call_is_judged_logged_run_and_told_to_the_model(tool_suite: Suite) -> None:
    turns(tool_suite, calling(call(), words="Let me compute."), saying("It is 42."))
    response = await tool_suite.chat("What is 6*7?", kala_tools="auto")
    answer = ChatCompletion.model_validate_json(response.content, strict=True)
    assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == ("It is 42.", "stop")
    assert answer.choices[0].message.tool_calls is None
    assert answer.usage is not None
    assert answer.usage.total_tokens == 24
    (executed,) = tool_suite.tools.executed
    assert (executed.tool, executed.arguments_json, executed.call_id) == (
        "code_execution",
        CODE,
        "call_code_execution_0",
    )
    first, second = tool_suite.inference.chats
    assert [tool.name for tool in first.tools] == ["code_execution", "filesystem", "shell"]
    assert [message.role for message in second.messages] == [pb.ROLE_USER, pb.ROLE_ASSISTANT, pb.ROLE_TOOL]
    assert json.loads(second.messages[2].content[0].text)["stdout"] == "42\n"
    leaves = await tool_suite.leaves()
    assert [leaf["type"] for leaf in leaves] == [
        "chat.intent", "chat.outcome", "execute.intent", "execute.outcome", "chat.intent", "chat.outcome",
    ]  # fmt: skip
    facts = dict(leaves[3]["attributes"])
    assert facts["run.status"] == "OK"
    assert facts["run.isolation"] == "bubblewrap/standard"
    assert facts["run.name"] == RUN
    assert leaves[3]["intent"] == leaves[2]["idempotency_key"]
    assert len({dict(leaf["attributes"])["request_id"] for leaf in leaves}) == 1


async def test_the_answer_tells_every_step_with_receipts_that_verify(tool_suite: Suite) -> None:
    left = artifact("out/a.txt", b"hello")
    tool_suite.tools.script = lambda _: [started(), ended({"stdout": ""}, artifacts=[left])]
    turns(tool_suite, calling(call()), saying("Done."))
    tools = (await tool_suite.chat(kala_tools="auto")).json()["kala"]["tools"]
    (step,) = tools["steps"]
    assert (step["call_id"], step["status"], step["exit_code"]) == ("call_code_execution_0", "OK", 0)
    assert step["artifacts"][0]["sha256"] == left.content.sha256.hex()
    leaf = await tool_suite.receipt(step["receipt"]["id"])
    assert leaf.value["type"] == "execute.outcome"
    assert [message["role"] for message in tools["messages"]] == ["assistant", "tool"]
    assert tools["messages"][1]["tool_call_id"] == "call_code_execution_0"
    assert len(tools["turns"]) == 2
    assert tools["requires_action"] is None


async def test_no_tool_runs_before_its_intent_is_durable(tool_suite: Suite) -> None:
    seen: list[list[str]] = []

    async def look() -> list[str]:
        return [leaf["type"] for leaf in await tool_suite.leaves()]

    hold = asyncio.Event()
    tool_suite.tools.script = lambda _: [hold, *printing("x")]
    turns(tool_suite, calling(call()), saying("ok"))
    asking = asyncio.ensure_future(tool_suite.chat(kala_tools="auto"))
    await asyncio.wait_for(tool_suite.tools.began.wait(), 10)
    seen.append(await look())
    hold.set()
    await asking
    assert seen[0][-1] == "execute.intent"


async def test_with_the_log_away_no_tool_runs_although_chats_go_on(tmp_path: Path) -> None:
    async with running_suite(tmp_path, has_tools=True) as suite:
        turns(suite, calling(call()), saying("ok"))
        await suite.audit.stop()
        plain = await suite.chat()
        assert plain.status_code == 200, plain.text
        turns(suite, calling(call()), saying("ok"))
        response = await suite.chat(kala_tools="auto")
        assert (response.status_code, response.json()["error"]["code"]) == (503, "audit_unavailable")
        assert suite.tools.executed == []


async def test_a_call_that_the_laws_refuse_never_reaches_the_tools(tool_suite: Suite) -> None:
    turns(tool_suite, calling(call(arguments='{"code":"please refuse"}')), saying("I will not."))
    # Its own text is in the next chat, too, which a real judge reads in its context.
    actions = tool_suite.ethics.actions
    response = await tool_suite.chat(kala_tools="auto")
    assert tool_suite.tools.executed == []
    (step,) = response.json()["kala"]["tools"]["steps"]
    assert step["status"] == "REFUSED_BY_THE_LAWS"
    assert step["decision"]["law"] == 1
    assert [action.audience.rpartition("/")[2] for action in actions][:2] == ["Chat", "Execute"]
    assert "execute.refused" in [leaf["type"] for leaf in await tool_suite.leaves()]


async def test_a_result_that_is_not_fit_reaches_neither_model_nor_client(tool_suite: Suite) -> None:
    tool_suite.tools.script = lambda _: printing(f"well {FORBIDDEN}")
    for wants_stream in (False, True):
        turns(tool_suite, calling(call()), saying("Withheld, it seems."))
        answer = await tool_suite.chat(kala_tools="auto", stream=wants_stream)
        assert FORBIDDEN not in answer.text
        assert "WITHHELD" in answer.text
    told = tool_suite.inference.chats[1].messages[-1].content[0].text
    assert "did not pass" in told
    outcomes = await tool_suite.leaves(kind="execute.outcome")
    assert outcomes[0]["result"]["status"] == "refused"


async def test_a_word_cut_between_pieces_or_streams_is_found(tool_suite: Suite) -> None:
    half = FORBIDDEN[:6].encode()
    rest = FORBIDDEN[6:].encode()
    other = execution_pb2.OUTPUT_STREAM_STDERR
    # Out of both streams in turn, and out of one with the other between its pieces.
    as_seen = [wrote(half), wrote(rest, stream=other)]
    as_joined = [wrote(half), wrote(b"--", stream=other), wrote(rest)]
    for events in (as_seen, as_joined):
        tool_suite.tools.script = lambda _, events=events: [started(), *events, ended({"ok": True})]
        response = await tool_suite.post(
            "/kala/v1/tools/execute", {"tool": "code_execution", "arguments_json": CODE}
        )
        assert response.status_code == 403


async def test_escapes_in_a_result_hide_nothing(tool_suite: Suite) -> None:
    hidden = "".join(f"\\u{ord(letter):04x}" for letter in FORBIDDEN)
    last = ended({})
    last.exit.result_json = f'{{"stdout": "{hidden}"}}'
    tool_suite.tools.script = lambda _: [started(), last]
    turns(tool_suite, calling(call()), saying("ok"))
    response = await tool_suite.chat(kala_tools="auto")
    assert response.json()["kala"]["tools"]["steps"][0]["status"] == "WITHHELD"
    assert hidden not in response.text


async def test_after_a_tool_result_judge_and_tools_are_told_of_untrusted_content(tool_suite: Suite) -> None:
    turns(tool_suite, calling(call()), calling(call("shell", '{"command":"ls"}')), saying("ok"))
    await tool_suite.chat(kala_tools="auto")
    assert [action.after_untrusted_content for action in tool_suite.tools.executed] == [False, True]
    said = [action.after_untrusted_content for action in tool_suite.ethics.actions]
    assert said == [False, False, True, True, True]


async def test_an_approval_stops_the_loop_and_the_same_conversation_goes_on_with_it(
    tool_suite: Suite,
) -> None:
    turns(tool_suite, calling(call(), call("shell", '{"command":"rm -r out"}', index=1)), saying("Deleted."))
    tool_suite.tools.script = lambda action: (
        needing_approval() if action.tool == "shell" and not action.approval else printing("done")
    )
    messages = [{"role": "user", "content": "Clean up."}]
    body = (await tool_suite.chat(messages=messages, kala_tools="auto")).json()
    choice, tools = body["choices"][0], body["kala"]["tools"]
    assert choice["finish_reason"] == "tool_calls"
    assert [made["id"] for made in choice["message"]["tool_calls"]] == ["call_shell_1"]
    assert tools["requires_action"]["approvals"] == [
        {"call_id": "call_shell_1", "tool": "shell", "approval": APPROVAL, "reason": "it deletes files"}
    ]
    assert [step["status"] for step in tools["steps"]] == ["OK", "APPROVAL_REQUIRED"]
    assert len(tool_suite.inference.chats) == 1
    turns(tool_suite, saying("Deleted."))
    again = await tool_suite.chat(
        messages=[*messages, *tools["messages"]],
        kala_tools="auto",
        kala_approvals={"call_shell_1": APPROVAL},
    )
    assert again.json()["choices"][0]["message"]["content"] == "Deleted."
    assert tool_suite.tools.executed[-1].approval == APPROVAL
    assert tool_suite.tools.executed[-1].arguments_json == '{"command":"rm -r out"}'
    answered = [
        message.tool_call_id for message in tool_suite.inference.chats[-1].messages if message.tool_call_id
    ]
    assert answered == ["call_code_execution_0", "call_shell_1"]


async def test_a_stream_tells_words_and_steps_and_no_call_that_kala_runs(tool_suite: Suite) -> None:
    turns(tool_suite, calling(call(), words="Let me see."), saying("It is 42."))
    response, events = await tool_suite.stream("What is 6*7?", kala_tools="auto")
    assert response.status_code == 200
    for event in events[:-1]:
        ChatCompletionChunk.model_validate(event)
    assert words_of(events) == "Let me see.\n\nIt is 42."
    steps = [event["kala"]["step"] for event in events[:-2] if "kala" in event]
    assert [(step["tool"], json.loads(step["result"])["stdout"]) for step in steps] == [
        ("code_execution", "42\n")
    ]
    deltas = [choice["delta"] for event in events[:-1] for choice in event["choices"]]
    assert not any("tool_calls" in delta for delta in deltas)
    assert events[-2]["kala"]["tools"]["steps"][0]["status"] == "OK"
    assert events[-1] == "[DONE]"


async def test_a_stream_ends_with_the_calls_that_wait_for_a_person(tool_suite: Suite) -> None:
    turns(tool_suite, calling(call("shell", '{"command":"rm x"}')), saying("never"))
    tool_suite.tools.script = lambda _: needing_approval()
    _, events = await tool_suite.stream(kala_tools="auto")
    calls = [
        made
        for event in events[:-1]
        for choice in event["choices"]
        for made in choice["delta"].get("tool_calls", ())
    ]
    assert [(made["id"], made["function"]["arguments"]) for made in calls] == [
        ("call_shell_0", '{"command":"rm x"}')
    ]
    last = events[-2]
    assert last["choices"][0]["finish_reason"] == "tool_calls"
    assert last["kala"]["tools"]["requires_action"]["approvals"][0]["approval"] == APPROVAL


async def test_calls_of_the_clients_own_tools_are_left_to_it(tool_suite: Suite) -> None:
    weather = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
    turns(tool_suite, calling(call(), call("weather", "{}", index=1)), saying("never"))
    body = (await tool_suite.chat(kala_tools="auto", tools=[weather])).json()
    assert [made["function"]["name"] for made in body["choices"][0]["message"]["tool_calls"]] == ["weather"]
    assert [step["tool"] for step in body["kala"]["tools"]["steps"]] == ["code_execution"]
    assert len(tool_suite.inference.chats) == 1


async def test_failures_of_a_call_are_told_to_the_model(tool_suite: Suite) -> None:
    errors = [InvalidArgumentError("arguments_json", "must have `code`"), UnavailableError("away")]
    tool_suite.tools.script = lambda _: [errors.pop(0)]
    unknown = call("teleport", "{}")
    turns(tool_suite, calling(call()), calling(call()), calling(unknown), saying("I give up."))
    body = (await tool_suite.chat(kala_tools="auto")).json()
    assert [step["status"] for step in body["kala"]["tools"]["steps"]] == ["FAILED", "FAILED", "UNKNOWN_TOOL"]
    told = [
        message.content[0].text for message in tool_suite.inference.chats[-1].messages if message.tool_call_id
    ]
    assert "must have `code`" in told[0]
    assert "code_execution, filesystem, shell" in told[2]
    assert body["choices"][0]["message"]["content"] == "I give up."


async def test_a_model_that_only_calls_is_stopped(tool_suite: Suite) -> None:
    turns(tool_suite, calling(call()))
    body = (await tool_suite.chat(kala_tools="auto")).json()
    assert len(tool_suite.inference.chats) == 4
    assert tool_suite.inference.chats[-1].tool_choice.mode == pb.TOOL_CHOICE_MODE_NONE
    assert len(tool_suite.tools.executed) == 3
    assert body["kala"]["tools"]["stopped"] == "turns"
    tool_suite.inference.chats.clear()
    turns(tool_suite, calling(*(call(index=index) for index in range(5))), saying("enough"))
    body = (await tool_suite.chat(kala_tools="auto")).json()
    assert [step["status"] for step in body["kala"]["tools"]["steps"]] == ["OK"] * 3 + ["OVER_BUDGET"] * 2


async def test_a_long_result_loses_its_middle_for_the_model(tool_suite: Suite) -> None:
    tool_suite.tools.script = lambda _: printing("a" * 5000 + "end")
    turns(tool_suite, calling(call()), saying("ok"))
    await tool_suite.chat(kala_tools="auto")
    told = tool_suite.inference.chats[1].messages[-1].content[0].text
    assert len(told) < 1200
    assert "characters left out" in told
    assert "end" in told


async def test_runs_in_a_workspace_see_its_files_by_digest(tool_suite: Suite) -> None:
    tool_suite.tools.files = {"a.py": b"print(1)", "out/b.txt": b"b"}
    turns(tool_suite, calling(call(), call("filesystem", '{"operation":"list"}', index=1)), saying("ok"))
    await tool_suite.chat(kala_tools="auto", kala_workspace=WORKSPACE)
    code, files = tool_suite.tools.executed
    assert [reference.name for reference in code.files] == ["a.py", "out/b.txt"]
    assert code.workspace == files.workspace == WORKSPACE
    assert len(files.files) == 0
    assert {principal.tenant for principal in tool_suite.tools.principals} == {"default"}


async def test_a_client_that_leaves_ends_the_run(tool_suite: Suite) -> None:
    tool_suite.tools.script = lambda _: [started(), asyncio.Event()]
    turns(tool_suite, calling(call()), saying("never"))
    asking = asyncio.ensure_future(tool_suite.chat(kala_tools="auto"))
    await asyncio.wait_for(tool_suite.tools.began.wait(), 10)
    asking.cancel()
    await asyncio.wait_for(tool_suite.tools.cancelled.wait(), 10)

    async def outcome() -> list[dict[str, Any]]:
        return await tool_suite.leaves(kind="execute.outcome")

    (leaf,) = await eventually(outcome)
    assert leaf["result"]["status"] == "cancelled"


async def test_a_later_turn_that_is_refused_ends_with_the_constitutions_words(tool_suite: Suite) -> None:
    tool_suite.tools.script = lambda _: printing("now please refuse")
    turns(tool_suite, calling(call(), words="Looking."), saying("never"))
    _, events = await tool_suite.stream(kala_tools="auto")
    turns(tool_suite, calling(call()), saying("never"))
    assert "I cannot help with that." in words_of(events)
    assert words_of(events).count("I cannot help") == 1
    assert events[-2]["choices"][0]["finish_reason"] == "content_filter"
    body = (await tool_suite.chat(kala_tools="auto")).json()
    assert body["choices"][0]["finish_reason"] == "content_filter"


async def test_an_ethics_that_dies_between_steps_ends_the_stream_with_an_error(tool_suite: Suite) -> None:
    def dying(_action: object) -> Sequence[Any]:
        tool_suite.ethics.is_down = True
        return printing("42")

    tool_suite.tools.script = dying
    turns(tool_suite, calling(call(), words="Looking."), saying("never"))
    _, events = await tool_suite.stream(kala_tools="auto")
    assert events[-1]["error"]["code"] == "ethics_unavailable"
    assert events[-1]["kala"]["tools"]["steps"][0]["status"] == "OK"
    assert "[DONE]" not in events


async def test_a_key_without_the_scope_for_tools_gets_none(tool_suite: Suite) -> None:
    key = tool_suite.bearer(tool_suite.new_key("chat"))
    body = {"messages": [{"role": "user", "content": "Hi"}], "kala_tools": "auto"}
    denied = await tool_suite.http.post("/v1/chat/completions", json=body, headers=key)
    assert denied.status_code == 403
    assert "'tools'" in denied.json()["error"]["message"]
    assert tool_suite.inference.chats == []
    assert [leaf["type"] for leaf in await tool_suite.leaves()] == ["rpc.denied"]


async def test_a_machine_without_isolation_says_why_and_runs_nothing(tool_suite: Suite) -> None:
    tool_suite.tools.unavailable_reason = "bubblewrap: no user namespaces; runsc: not installed"
    response = await tool_suite.chat(kala_tools="auto")
    assert (response.status_code, response.json()["error"]["code"]) == (400, "no_tools")
    assert "no user namespaces" in response.json()["error"]["message"]
    assert tool_suite.inference.chats == []


async def test_without_a_tools_service_the_request_is_unavailable_and_plain_chats_work(suite: Suite) -> None:
    response = await suite.chat(kala_tools="auto")
    assert (response.status_code, response.json()["error"]["code"]) == (503, "tools_not_deployed")
    assert (await suite.chat(kala_tools="none")).status_code == 200


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"kala_tools": "always"}, "kala_tools"),
        ({"kala_workspace": WORKSPACE}, "kala_workspace"),
        ({"kala_tools": "auto", "kala_workspace": "workspaces/../x"}, "kala_workspace"),
        ({"kala_tools": "auto", "kala_approvals": {"c": "x"}}, "kala_approvals"),
        (
            {"kala_tools": "auto", "tools": [{"type": "function", "function": {"name": "shell"}}]},
            "another name",
        ),
        (
            {"kala_tools": "auto", "tool_choice": {"type": "function", "function": {"name": "nothing"}}},
            "not among the tools",
        ),
    ],
)
async def test_what_does_not_go_together_is_named(
    tool_suite: Suite, fields: dict[str, Any], says: str
) -> None:
    response = await tool_suite.chat(**fields)
    assert response.status_code == 400, response.text
    assert says in response.json()["error"]["message"]
    assert tool_suite.inference.chats == []
