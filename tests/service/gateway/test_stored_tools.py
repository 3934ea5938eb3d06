"""A stored session in which a call waits for a person: gone on with by its approval, without saying the turn again."""

from __future__ import annotations

import pytest

from kala.inference.v1 import inference_pb2 as pb
from tests.fakes.gateway_suite import Suite
from tests.fakes.scripted_inference import finish, route, saying
from tests.fakes.scripted_tools import APPROVAL, needing_approval, printing

pytestmark = pytest.mark.asyncio(loop_scope="session")

ARGUMENTS = '{"command":"rm -r out"}'


async def test_a_turn_that_waits_goes_on_from_the_session_alone(tool_suite: Suite) -> None:
    delta = pb.ChatDelta(tool_calls=[pb.ToolCall(id="call_1", name="shell", arguments=ARGUMENTS)])
    tool_suite.inference.script = lambda action: (
        saying("Deleted.")
        if any(message.role == pb.ROLE_TOOL for message in action.messages)
        else [route(), pb.ChatResponse(delta=delta), finish(pb.FINISH_REASON_TOOL_CALLS)]
    )
    tool_suite.tools.script = lambda action: printing("gone") if action.approval else needing_approval()
    made = await tool_suite.post("/kala/v1/gateway/sessions", {})
    name = made.json()["session"]["name"]
    first = (await tool_suite.chat("Clean up.", kala_tools="auto", kala_session=name)).json()
    assert first["kala"]["tools"]["requires_action"]["approvals"][0]["approval"] == APPROVAL
    instructions = [{"role": "system", "content": "Go on."}]
    again = await tool_suite.chat(
        messages=instructions,
        kala_tools="auto",
        kala_session=name,
        kala_approvals={"call_1": APPROVAL},
    )
    assert again.json()["choices"][0]["message"]["content"] == "Deleted.", again.text
    assert tool_suite.tools.executed[-1].approval == APPROVAL
    await tool_suite.chat("And now?", kala_session=name)
    told = [message.role for message in tool_suite.inference.chats[-1].messages]
    assert told == [
        pb.ROLE_USER, pb.ROLE_ASSISTANT, pb.ROLE_TOOL, pb.ROLE_ASSISTANT, pb.ROLE_USER,
    ]  # fmt: skip
