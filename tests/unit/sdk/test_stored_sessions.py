"""A conversation that the gateway stores: named once, told by it, gone on with from another process."""

from __future__ import annotations

from collections.abc import Callable

import httpx
import pytest

from kala.core.async_session import AsyncUnifiedKALASession
from kala.core.unified_session import UnifiedKALASession
from kala.errors import NotFoundError
from tests.fakes.gateway import FakeGateway, completion, failure, stream
from tests.unit.sdk.test_waiting_turns import CALL, approvals, made, waiting, went_on

Use = Callable[[FakeGateway], FakeGateway]
NAME = "sessions/sess_1"


def opened() -> httpx.Response:
    return httpx.Response(200, json={"session": {"name": NAME}})


def test_each_request_says_only_its_own_turn_and_the_session(use: Use) -> None:
    gateway = use(FakeGateway([opened(), completion("A"), stream("B")]))
    with UnifiedKALASession(stored=True, system_prompt="Be brief.") as session:
        assert session.stored_session == ""
        session.chat("one")
        assert session.stored_session == NAME
        assert list(session.stream("two")) == ["B"]
        assert len(session.history) == 5
    assert [[each["content"] for each in chat["messages"]] for chat in gateway.chats] == [
        ["Be brief.", "one"],
        ["Be brief.", "two"],
    ]
    assert {chat["kala_session"] for chat in gateway.chats} == {NAME}
    assert len([request for request in gateway.seen if request.url.path.endswith("/sessions")]) == 1


async def test_another_process_goes_on_and_forgets_it(use: Use) -> None:
    gateway = use(FakeGateway([completion("A"), stream("B")]))
    async with AsyncUnifiedKALASession(stored=NAME) as session:
        assert await session.chat("three") == "A"
        assert [piece async for piece in session.stream("four")] == ["B"]
        await session.forget()
    assert [len(chat["messages"]) for chat in gateway.chats] == [1, 1]
    assert {chat["kala_session"] for chat in gateway.chats} == {NAME}
    assert (gateway.seen[-1].method, gateway.seen[-1].url.path) == ("DELETE", f"/kala/v1/gateway/{NAME}")


def test_a_session_that_is_nobodys_says_so(use: Use) -> None:
    use(FakeGateway([failure(404, "session_not_found", "there is no such session")]))
    with UnifiedKALASession(stored="sessions/other") as session, pytest.raises(NotFoundError):
        session.chat("Hello")


def test_a_turn_that_waits_is_with_the_gateway_already(use: Use) -> None:
    gateway = use(FakeGateway([made(), opened(), waiting(), approvals("APPROVED"), went_on()]))
    with UnifiedKALASession(enable_tools=True, stored=True) as session:
        session.chat("Clean up.", use_tools=True)
        assert session.resume() == "Deleted."
    last = gateway.chats[-1]
    assert last["messages"] == [{"role": "system", "content": "Go on."}]
    assert last["kala_session"] == NAME
    assert list(last["kala_approvals"]) == [CALL["id"]]


def test_without_it_nothing_is_stored(use: Use) -> None:
    gateway = use(FakeGateway([completion("A")]))
    with UnifiedKALASession() as session:
        session.chat("one")
        session.forget()
    assert "kala_session" not in gateway.chats[0]
    assert len(gateway.seen) == 1
