"""Stored sessions: chats go on in them, each caller has its own, and an erasure reaches their words."""

from __future__ import annotations

import asyncio
import base64
import json
import sqlite3
from contextlib import closing
from datetime import timedelta
from typing import Any

import httpx
import pytest

from gateway import page_tokens
from kala.inference.v1 import inference_pb2 as pb
from tests.fakes.gateway_suite import Suite
from tests.fakes.scripted_inference import REPLY, finish, route, saying, text

pytestmark = pytest.mark.asyncio(loop_scope="session")

PATH = "/kala/v1/gateway/sessions"


async def new_session(suite: Suite, **fields: Any) -> str:
    answer = await suite.post(PATH, fields)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["session"]["name"])


async def session_of(suite: Suite, name: str) -> dict[str, Any]:
    answer = await suite.get(f"/kala/v1/gateway/{name}")
    assert answer.status_code == 200, answer.text
    return dict(answer.json()["session"])


def told(suite: Suite) -> list[tuple[int, str]]:
    return [(one.role, one.content[0].text) for one in suite.inference.chats[-1].messages]


async def erase(suite: Suite, person: str) -> dict[str, int]:
    named = await suite.post("/kala/v1/gateway/subjects:name", {"person": person})
    body = {"reason": "The person asked for it.", "request_id": base64.b64encode(b"r" * 16).decode()}
    answer = await suite.post(f"/kala/v1/audit/{named.json()['name']}:erase", body)
    assert answer.status_code == 200, answer.text
    certificate = base64.b64decode(answer.json()["certificate"]).decode()
    return {one["store"]: one["items"] for one in json.loads(certificate)["stores"]}


async def test_a_chat_goes_on_where_its_session_stopped(suite: Suite) -> None:
    name = await new_session(suite, title="About France")
    await suite.chat("My name is Bob.", kala_session=name)
    system = {"role": "system", "content": "Be brief."}
    _, events = await suite.stream(
        kala_session=name, messages=[system, {"role": "user", "content": "And mine?"}]
    )
    assert events[-1] == "[DONE]"
    assert told(suite) == [
        (pb.ROLE_SYSTEM, "Be brief."), (pb.ROLE_USER, "My name is Bob."), (pb.ROLE_ASSISTANT, REPLY),
        (pb.ROLE_USER, "And mine?"),
    ]  # fmt: skip
    await suite.chat("Sure?", kala_session=name)
    # Instructions belong to their request.
    assert [words for _, words in told(suite)] == ["My name is Bob.", REPLY, "And mine?", REPLY, "Sure?"]
    session = await session_of(suite, name)
    assert (session["title"], session["requests"]) == ("About France", "3")


async def test_a_call_and_its_result_are_kept(suite: Suite) -> None:
    name = await new_session(suite)
    call = pb.ChatDelta(tool_calls=[pb.ToolCall(index=0, id="call_1", name="look", arguments="{}")])
    suite.inference.script = lambda _action: [
        route(), pb.ChatResponse(delta=call), finish(pb.FINISH_REASON_TOOL_CALLS),
    ]  # fmt: skip
    tools = [{"type": "function", "function": {"name": "look", "parameters": {}}}]
    await suite.chat("Look!", kala_session=name, tools=tools)
    suite.inference.script = lambda _action: saying("Seen.")
    result = {"role": "tool", "tool_call_id": "call_1", "content": "a cat"}
    answer = await suite.chat(kala_session=name, messages=[result], tools=tools)
    assert answer.status_code == 200, answer.text
    _, assistant, tool = suite.inference.chats[-1].messages
    assert assistant.tool_calls[0].id == tool.tool_call_id == "call_1"


async def test_a_refused_turn_counts_and_is_not_told_again(suite: Suite) -> None:
    name = await new_session(suite)
    await suite.chat("please refuse", kala_session=name)
    await suite.chat("Something else.", kala_session=name)
    assert [words for _, words in told(suite)] == ["Something else."]
    assert (await session_of(suite, name))["requests"] == "2"


async def test_of_two_requests_at_once_one_is_told_that_the_other_was_first(suite: Suite) -> None:
    name = await new_session(suite)
    gate = asyncio.Event()
    suite.inference.script = lambda _action: [route(), text("Slow."), gate, finish()]
    slow = asyncio.create_task(suite.chat("One", kala_session=name))
    await suite.inference.began.wait()
    suite.inference.script = lambda _action: saying("Fast.")
    assert (await suite.chat("Two", kala_session=name)).status_code == 200
    gate.set()
    late = await slow
    assert (late.status_code, late.json()["error"]["code"]) == (409, "session_moved")
    await suite.chat("Three", kala_session=name)
    assert [words for _, words in told(suite)] == ["Two", "Fast.", "Three"]


async def test_a_session_belongs_to_its_caller(suite: Suite) -> None:
    name = await new_session(suite)
    for stranger in (suite.new_key("chat", tenant="other"), suite.new_key("chat")):
        headers = suite.bearer(stranger)
        for method in ("GET", "DELETE"):
            answer = await suite.http.request(method, f"/kala/v1/gateway/{name}", headers=headers)
            assert (answer.status_code, answer.json()["error"]["status"]) == (404, "NOT_FOUND")
        body = {"messages": [{"role": "user", "content": "x"}], "kala_session": name}
        chat = await suite.http.post("/v1/chat/completions", json=body, headers=headers)
        assert (chat.status_code, chat.json()["error"]["code"]) == (404, "session_not_found")
        listed = await suite.http.get(PATH, headers=headers)
        assert listed.json().get("sessions", []) == []
    assert suite.inference.chats == []


async def test_sessions_are_listed_in_pages_and_deleted(suite: Suite) -> None:
    before = len((await suite.get(PATH, params={"page_size": 1000})).json().get("sessions", []))
    names = [await new_session(suite, title=str(number)) for number in range(3)]
    first = (await suite.get(PATH, params={"page_size": 2})).json()
    rest = await suite.get(PATH, params={"page_size": 1000, "page_token": first["next_page_token"]})
    found = [one["name"] for one in [*first["sessions"], *rest.json()["sessions"]]]
    assert found[:3] == names[::-1]
    assert len(found) == before + 3
    stolen = await suite.http.get(
        PATH, params={"page_token": first["next_page_token"]}, headers=suite.bearer(suite.new_key("chat"))
    )
    assert stolen.status_code == 400
    deleted = await suite.http.delete(f"/kala/v1/gateway/{names[0]}", headers=suite.bearer())
    assert deleted.status_code == 200
    assert (await suite.get(f"/kala/v1/gateway/{names[0]}")).status_code == 404
    assert (await suite.chat("x", kala_session=names[0])).status_code == 404


async def test_the_token_of_a_page_ends_and_says_so(suite: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_tokens, "TOKEN_LIFETIME", timedelta(0))
    for _ in range(2):
        await new_session(suite)
    token = (await suite.get(PATH, params={"page_size": 1})).json()["next_page_token"]
    answer = await suite.get(PATH, params={"page_token": token})
    assert (answer.status_code, "has expired" in answer.text) == (400, True)


@pytest.mark.parametrize(
    ("fields", "field"),
    [({"title": "x" * 257}, "title"), ({"ttl": "0s"}, "ttl"), ({"ttl": "999999999s"}, "ttl")],
)
async def test_a_session_with_wrong_fields_is_refused(
    suite: Suite, fields: dict[str, Any], field: str
) -> None:
    answer = await suite.post(PATH, fields)
    assert answer.status_code == 400
    assert field in answer.json()["error"]["message"]


async def test_an_expired_session_does_not_exist(suite: Suite) -> None:
    name = await new_session(suite, ttl="1s")
    with closing(sqlite3.connect(suite.directory / "gateway.db")) as database:
        database.execute("UPDATE session SET expires_at = 1 WHERE id = ?", (name.removeprefix("sessions/"),))
        database.commit()
    assert (await suite.get(f"/kala/v1/gateway/{name}")).status_code == 404
    assert (await suite.chat("x", kala_session=name)).status_code == 404


async def test_an_error_about_a_message_names_it_as_the_request_counts(suite: Suite) -> None:
    name = await new_session(suite)
    await suite.chat("My name is Bob.", kala_session=name)
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    answer = await suite.chat(kala_session=name, messages=[{"role": "user", "content": [image]}])
    assert answer.json()["error"]["param"] == "messages[0].content[0].image_url.url"


async def test_what_is_stored_is_sealed_and_an_erasure_reaches_it(own_suite: Suite) -> None:
    suite = own_suite
    name = await new_session(suite, title="About France")
    await suite.chat("I am Alice Liddell.", kala_session=name, user="alice@example.com")
    await suite.chat("I am Bob.", kala_session=name, user="bob@example.com")
    kept = await suite.post("/v1/responses", {"input": "Alice Liddell again.", "user": "alice@example.com"})
    with closing(sqlite3.connect(suite.directory / "gateway.db")) as database:
        stored = "\n".join(database.iterdump())
    assert "Liddell" not in stored
    assert "France" not in stored

    erased = await erase(suite, "alice@example.com")
    assert (
        erased["gateway.session_turns"] == erased["gateway.responses"] == erased["gateway.payload_keys"] == 1
    )
    assert (await suite.get(f"/v1/responses/{kept.json()['id']}")).status_code == 404
    await suite.chat("Who am I?", kala_session=name)
    assert [words for _, words in told(suite)] == ["I am Bob.", REPLY, "Who am I?"]


async def test_with_the_database_gone_nothing_is_asked_of_a_model(own_suite: Suite) -> None:
    suite = own_suite
    with closing(sqlite3.connect(suite.directory / "gateway.db")) as database:
        database.execute("DROP TABLE response")
        database.commit()
    answer: httpx.Response = await suite.post("/v1/responses", {"input": "x"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "database_unavailable")
    assert suite.inference.chats == []
