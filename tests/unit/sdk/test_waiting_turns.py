"""A turn in which a call waits for a person: named, decided, gone on with, and remembered only then."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from kala.core.async_session import AsyncUnifiedKALASession
from kala.core.unified_session import UnifiedKALASession
from kala.errors import FailedPreconditionError
from tests.fakes.gateway import FakeGateway, completion

Use = Callable[[FakeGateway], FakeGateway]
WORKSPACE = "workspaces/0." + "c" * 32
APPROVAL = "approvals/0." + "a" * 32
CALL = {"id": "call_1", "type": "function", "function": {"name": "shell", "arguments": '{"command":"rm x"}'}}
SAID = [{"role": "assistant", "content": None, "tool_calls": [CALL]}]
RESULT = {"role": "tool", "tool_call_id": "call_1", "content": "gone"}


def waiting() -> httpx.Response:
    body = completion("").json()
    body["choices"][0] |= {"finish_reason": "tool_calls"}
    body["choices"][0]["message"]["tool_calls"] = [CALL]
    needed = {"call_id": "call_1", "tool": "shell", "approval": APPROVAL, "reason": "it deletes files"}
    body["kala"]["tools"] = {
        "messages": SAID,
        "requires_action": {"type": "approval", "approvals": [needed]},
    }
    return httpx.Response(200, json=body)


def went_on(text: str = "Deleted.") -> httpx.Response:
    body = completion(text).json()
    body["kala"]["tools"] = {"messages": [RESULT], "requires_action": None}
    return httpx.Response(200, json=body)


def approvals(state: str) -> httpx.Response:
    return httpx.Response(200, json={"approvals": [{"name": APPROVAL, "state": f"APPROVAL_STATE_{state}"}]})


def made() -> httpx.Response:
    return httpx.Response(200, json={"workspace": {"name": WORKSPACE}})


def waits(session: UnifiedKALASession) -> bool:
    return session.waiting is not None


def test_a_call_that_waits_is_named_and_the_turn_goes_on_when_it_was_decided(use: Use) -> None:
    script = [made(), waiting(), approvals("PENDING"), httpx.Response(200, json={}), approvals("APPROVED")]
    gateway = use(FakeGateway([*script, went_on()]))
    with UnifiedKALASession(enable_tools=True) as session:
        assert session.chat("Clean up.", use_tools=True) == ""
        assert session.waiting is not None
        (call,) = session.waiting.calls
        assert (call.tool, call.approval, call.reason) == ("shell", APPROVAL, "it deletes files")
        assert json.loads(call.arguments) == {"command": "rm x"}
        assert list(session.history) == []
        with pytest.raises(FailedPreconditionError, match=f"{APPROVAL}: not decided yet"):
            session.resume()
        session.decide(APPROVAL, approve=True)
        assert session.resume() == "Deleted."
        assert not waits(session)
        roles = [message["role"] for message in session.history]
        assert roles == ["user", "assistant", "tool", "assistant"]
    again = gateway.chats[-1]
    assert again["messages"] == [{"role": "user", "content": "Clean up."}, *SAID]
    assert again["kala_approvals"] == {"call_1": APPROVAL}
    assert again["kala_workspace"] == WORKSPACE
    decided = next(request for request in gateway.seen if request.url.path.endswith(":decide"))
    assert json.loads(decided.content) == {"approve": True, "comment": ""}


def test_a_new_message_gives_up_the_turn_that_waited(use: Use) -> None:
    gateway = use(FakeGateway([made(), waiting(), completion("Hello.")]))
    with UnifiedKALASession(enable_tools=True) as session:
        session.chat("Clean up.", use_tools=True)
        session.chat("Never mind.")
        assert gateway.chats[-1]["messages"] == [{"role": "user", "content": "Never mind."}]
        with pytest.raises(FailedPreconditionError, match="no call of this session waits"):
            session.resume()


async def test_the_asynchronous_session_goes_on_too(use: Use) -> None:
    gateway = use(FakeGateway([made(), waiting(), approvals("DENIED"), went_on("It was denied.")]))
    async with AsyncUnifiedKALASession(enable_tools=True) as session:
        await session.chat("Clean up.", use_tools=True)
        assert await session.resume() == "It was denied."
        assert len(session.history) == 4
    assert gateway.chats[-1]["kala_approvals"] == {"call_1": APPROVAL}


def test_a_turn_that_used_up_its_calls_leaves_no_unanswered_call_in_the_conversation(use: Use) -> None:
    body: dict[str, Any] = completion("").json()
    body["choices"][0]["message"]["tool_calls"] = [CALL]
    body["kala"]["tools"] = {"messages": SAID, "requires_action": None, "stopped": "turns"}
    use(FakeGateway([made(), httpx.Response(200, json=body)]))
    with UnifiedKALASession(enable_tools=True) as session:
        session.chat("Go on for ever.", use_tools=True)
        assert list(session.history) == []
        assert session.waiting is None
