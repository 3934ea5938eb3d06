"""`/v1/responses`: OpenAI's own types take every response and event; what is stored continues, and ends."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from openai import AsyncOpenAI
from openai.types.responses import Response, ResponseItemList, ResponseStreamEvent
from pydantic import BaseModel, TypeAdapter

from kala.errors import UnavailableError
from kala.inference.v1 import inference_pb2 as pb
from tests.fakes.gateway_suite import Suite
from tests.fakes.scripted_ethics import FORBIDDEN
from tests.fakes.scripted_inference import REPLY, finish, route, saying, text

pytestmark = pytest.mark.asyncio(loop_scope="session")

EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
WHOLE = TypeAdapter(Response)


def checked(answer: httpx.Response) -> dict[str, Any]:
    """A response as OpenAI's strict types take it."""
    assert answer.status_code == 200, answer.text
    WHOLE.validate_json(answer.content, strict=True)
    return dict(answer.json())


def text_of(body: dict[str, Any]) -> str:
    return "".join(
        part["text"]
        for item in body["output"]
        if item["type"] == "message"
        for part in item["content"]
        if part["type"] == "output_text"
    )


async def ask(suite: Suite, given: Any = "What is the capital of France?", **fields: Any) -> dict[str, Any]:
    return checked(await suite.post("/v1/responses", {"model": "auto", "input": given, **fields}))


async def events_of(response: httpx.Response) -> list[dict[str, Any]]:
    """The events of a stream: each of OpenAI's types, numbered without a gap, named as its type."""
    assert response.headers["content-type"].startswith("text/event-stream")
    events, name = [], ""
    async for line in response.aiter_lines():
        if line.startswith("event: "):
            name = line.removeprefix("event: ")
        elif line.startswith("data: "):
            data = line.removeprefix("data: ")
            EVENT.validate_json(data, strict=True)
            events.append(json.loads(data))
            assert events[-1]["type"] == name
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    return events


async def stream(suite: Suite, given: Any = "What?", **fields: Any) -> list[dict[str, Any]]:
    body = {"model": "auto", "input": given, "stream": True, **fields}
    async with suite.http.stream("POST", "/v1/responses", json=body, headers=suite.bearer()) as response:
        assert response.status_code == 200, await response.aread()
        return await events_of(response)


def kinds(events: list[dict[str, Any]]) -> list[str]:
    """Types without `response.`, deltas in a row as one."""
    short = [event["type"].removeprefix("response.") for event in events]
    return [
        kind for place, kind in enumerate(short) if not (kind.endswith("delta") and short[place - 1] == kind)
    ]


async def test_an_answer_is_a_response_with_a_receipt(suite: Suite) -> None:
    body = await ask(suite, instructions="Be brief.", metadata={"case": "7"}, temperature=0.5)
    assert body["status"] == "completed"
    assert text_of(body) == REPLY
    assert body["usage"]["total_tokens"] == 12
    assert (body["metadata"], body["instructions"], body["temperature"]) == ({"case": "7"}, "Be brief.", 0.5)
    assert body["kala"]["receipt"]["status"] == "LOGGED"
    await suite.receipt(body["kala"]["receipt"]["id"])
    [action] = suite.inference.chats
    assert [(one.role, one.content[0].text) for one in action.messages] == [
        (pb.ROLE_SYSTEM, "Be brief."),
        (pb.ROLE_USER, "What is the capital of France?"),
    ]


async def test_a_stream_tells_every_step_in_order_and_ends_with_the_response_that_is_stored(
    suite: Suite,
) -> None:
    suite.inference.script = lambda _action: saying("The capital ", "is ", "Paris.")
    events = await stream(suite)
    assert kinds(events) == [
        "created", "in_progress", "output_item.added", "content_part.added", "output_text.delta",
        "output_text.done", "content_part.done", "output_item.done", "completed",
    ]  # fmt: skip
    assert (
        "".join(event["delta"] for event in events if event["type"].endswith(".delta"))
        == "The capital is Paris."
    )
    final = events[-1]["response"]
    assert text_of(final) == "The capital is Paris."
    assert checked(await suite.get(f"/v1/responses/{final['id']}")) == final


async def test_thoughts_refusals_and_calls_are_items_of_their_own(suite: Suite) -> None:
    suite.inference.script = lambda _action: [
        route(),
        pb.ChatResponse(delta=pb.ChatDelta(reasoning="Let me think.")),
        text("I will look."),
        pb.ChatResponse(delta=pb.ChatDelta(refusal="Not that.")),
        pb.ChatResponse(delta=pb.ChatDelta(tool_calls=[pb.ToolCall(index=0, id="call_a", name="look", arguments='{"a"')])),
        pb.ChatResponse(delta=pb.ChatDelta(tool_calls=[pb.ToolCall(index=1, name="look", arguments="{}")])),
        pb.ChatResponse(delta=pb.ChatDelta(tool_calls=[pb.ToolCall(index=0, arguments=":1}")])),
        finish(pb.FINISH_REASON_TOOL_CALLS),
    ]  # fmt: skip
    tools = [{"type": "function", "name": "look", "parameters": {"type": "object"}, "strict": True}]
    events = await stream(suite, tools=tools)
    streamed = events[-1]["response"]["output"]
    whole = (await ask(suite, tools=tools))["output"]
    for output in (streamed, whole):
        thought, message, first, second = output
        assert thought["content"] == [{"type": "reasoning_text", "text": "Let me think."}]
        assert [part["type"] for part in message["content"]] == ["output_text", "refusal"]
        assert (first["call_id"], first["arguments"]) == ("call_a", '{"a":1}')
        assert second["call_id"].startswith("call_")
        assert second["arguments"] == "{}"
    assert kinds(events)[:8] == [
        "created", "in_progress", "output_item.added", "content_part.added", "reasoning_text.delta",
        "reasoning_text.done", "content_part.done", "output_item.done",
    ]  # fmt: skip
    done = [event["item"]["id"] for event in events if event["type"] == "response.output_item.done"]
    assert done == [item["id"] for item in streamed]


async def test_a_later_response_continues_the_stored_conversation(suite: Suite) -> None:
    first = await ask(suite, "My name is Bob.", instructions="Be brief.")
    suite.inference.chats.clear()
    second = await ask(suite, "What is my name?", previous_response_id=first["id"])
    assert second["previous_response_id"] == first["id"]
    third = await ask(suite, [{"role": "user", "content": "Sure?"}], previous_response_id=second["id"])
    told = [(one.role, one.content[0].text) for one in suite.inference.chats[-1].messages]
    # The first turn's instructions are not carried over: OpenAI's rule.
    assert told == [
        (pb.ROLE_USER, "My name is Bob."), (pb.ROLE_ASSISTANT, REPLY), (pb.ROLE_USER, "What is my name?"),
        (pb.ROLE_ASSISTANT, REPLY), (pb.ROLE_USER, "Sure?"),
    ]  # fmt: skip
    assert third["status"] == "completed"


async def test_a_functions_result_reaches_the_model_with_its_call(suite: Suite) -> None:
    call = pb.ChatDelta(tool_calls=[pb.ToolCall(index=0, id="call_1", name="look", arguments="{}")])
    suite.inference.script = lambda _action: [
        route(), pb.ChatResponse(delta=call), finish(pb.FINISH_REASON_TOOL_CALLS),
    ]  # fmt: skip
    tools = [{"type": "function", "name": "look", "parameters": {}, "strict": False}]
    first = await ask(suite, "Look!", tools=tools, tool_choice={"type": "function", "name": "look"})
    suite.inference.script = lambda _action: saying("Seen.")
    result = {"type": "function_call_output", "call_id": "call_1", "output": "a cat"}
    await ask(suite, [result], previous_response_id=first["id"], tools=tools)
    _, assistant, tool = suite.inference.chats[-1].messages
    assert (assistant.tool_calls[0].id, assistant.tool_calls[0].name) == ("call_1", "look")
    assert (tool.role, tool.tool_call_id, tool.content[0].text) == (pb.ROLE_TOOL, "call_1", "a cat")


async def test_items_may_be_sent_back_or_referred_to(suite: Suite) -> None:
    first = await ask(suite, "Remember 7.")
    items = (await suite.get(f"/v1/responses/{first['id']}/input_items")).json()["data"]
    reference = {"type": "item_reference", "id": first["output"][0]["id"]}
    await ask(suite, [*items, reference, {"role": "user", "content": "Which?"}], store=False)
    told = [one.content[0].text for one in suite.inference.chats[-1].messages]
    assert told == ["Remember 7.", REPLY, "Which?"]
    answer = await suite.post(
        "/v1/responses", {"input": [{"type": "item_reference", "id": "msg_" + "0" * 36}]}
    )
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "input[0].id")


async def test_what_is_not_stored_cannot_be_asked_for(suite: Suite) -> None:
    body = await ask(suite, store=False)
    assert body["store"] is False
    assert (await suite.get(f"/v1/responses/{body['id']}")).status_code == 404
    answer = await suite.post("/v1/responses", {"input": "x", "previous_response_id": body["id"]})
    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["code"]) == (
        400, "previous_response_id", "previous_response_not_found",
    )  # fmt: skip


async def test_another_keys_response_does_not_exist(suite: Suite) -> None:
    body = await ask(suite)
    path = f"/v1/responses/{body['id']}"
    for stranger in (suite.new_key("chat", tenant="other"), suite.new_key("chat")):
        headers = suite.bearer(stranger)
        for method, where in (
            ("GET", path), ("DELETE", path), ("POST", f"{path}/cancel"), ("GET", f"{path}/input_items"),
        ):  # fmt: skip
            assert (await suite.http.request(method, where, headers=headers)).status_code == 404
        again = {"input": "x", "previous_response_id": body["id"]}
        answer = await suite.http.post("/v1/responses", json=again, headers=headers)
        assert answer.json()["error"]["code"] == "previous_response_not_found"
    assert (await suite.get(path)).status_code == 200


async def test_a_deleted_response_is_gone_and_so_is_what_followed_it(suite: Suite) -> None:
    first = await ask(suite)
    second = await ask(suite, "And?", previous_response_id=first["id"])
    deleted = await suite.http.delete(f"/v1/responses/{first['id']}", headers=suite.bearer())
    assert deleted.json() == {"id": first["id"], "object": "response", "deleted": True}
    assert (await suite.get(f"/v1/responses/{first['id']}")).status_code == 404
    answer = await suite.post("/v1/responses", {"input": "x", "previous_response_id": second["id"]})
    assert answer.json()["error"]["code"] == "previous_response_not_found"


async def test_a_refused_request_reaches_no_model_and_is_not_told_again(suite: Suite) -> None:
    first = await ask(suite, "Hello.")
    suite.inference.chats.clear()
    refused = await ask(suite, "please refuse", previous_response_id=first["id"])
    assert refused["status"] == "incomplete"
    assert refused["incomplete_details"] == {"reason": "content_filter"}
    assert "I cannot help" in text_of(refused)
    assert suite.inference.chats == []
    await ask(suite, "Then something else.", previous_response_id=refused["id"])
    told = [one.content[0].text for one in suite.inference.chats[-1].messages]
    assert told == ["Hello.", REPLY, "Then something else."]
    events = await stream(suite, "please refuse")
    assert events[-1]["type"] == "response.incomplete"
    assert "I cannot help" in text_of(events[-1]["response"])


@pytest.mark.parametrize("is_stream", [False, True], ids=["whole", "stream"])
async def test_what_fails_its_check_is_neither_answered_nor_stored(suite: Suite, is_stream: bool) -> None:
    suite.inference.script = lambda _action: saying(
        "Fine words, then ", FORBIDDEN[:5], FORBIDDEN[5:], " and more"
    )
    if is_stream:
        events = await stream(suite)
        body, said = events[-1]["response"], json.dumps(events)
    else:
        body = await ask(suite)
        said = json.dumps(body)
    assert body["incomplete_details"] == {"reason": "content_filter"}
    stored = await suite.get(f"/v1/responses/{body['id']}")
    assert FORBIDDEN not in said + stored.text
    assert stored.json() == body


async def test_too_few_tokens_make_an_incomplete_response(suite: Suite) -> None:
    suite.inference.script = lambda _action: [route(), text("The cap"), finish(pb.FINISH_REASON_LENGTH)]
    body = await ask(suite, max_output_tokens=3)
    assert suite.inference.chats[-1].sampling.max_output_tokens == 3
    assert body["incomplete_details"] == {"reason": "max_output_tokens"}
    assert body["output"][0]["status"] == "incomplete"


async def test_a_schema_and_reasoning_reach_the_backend(suite: Suite) -> None:
    form = {"type": "json_schema", "name": "city", "schema": {"type": "object"}, "strict": True}
    body = await ask(suite, text={"format": form}, reasoning={"effort": "low"}, top_logprobs=2)
    action = suite.inference.chats[-1]
    assert (action.response_format.schema_name, action.response_format.json_schema) == (
        "city",
        '{"type":"object"}',
    )
    assert (action.reasoning_effort, action.sampling.top_logprobs) == ("low", 2)
    assert body["text"]["format"]["name"] == "city"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({}, "input"),
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": "x", "conversation": "conv_1"}, "conversation"),
        ({"input": "x", "prompt": {"id": "p"}}, "prompt"),
        ({"input": "x", "tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"input": [{"type": "computer_call"}]}, "input[0]"),
        ({"input": [{"role": "user", "content": [{"type": "input_file", "file_id": "f"}]}]}, "input[0].content[0].type"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "https://a.b/c"}]}]},
         "input[0].content[0].image_url"),
        ({"input": [{"role": "user", "content": "x"}, {"type": "reasoning"}, {"role": "system", "content":
         [{"type": "input_image", "image_url": "data:image/png;base64,AAAA"}]}]}, "input[2].content[0].type"),
        ({"input": "x", "background": True, "store": False}, "store"),
        ({"input": "x", "background": True, "stream": True}, "stream"),
        ({"input": "x", "previous_response_id": "resp_\u0000"}, "previous_response_id"),
        ({"input": "x", "max_output_tokens": 0}, "max_output_tokens"),
        ({"input": "x", "kala_workspace": "workspaces/a"}, "kala_workspace"),
        ({"input": "x", "nonsense": 1}, "nonsense"),
        ({"input": "x", "tools": [{"type": "function", "name": "f", "parameters": {"maximum": 10**20}}]}, "tools"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)  # fmt: skip
async def test_what_cannot_be_answered_names_the_field(
    suite: Suite, fields: dict[str, Any], param: str
) -> None:
    answer = await suite.post("/v1/responses", fields)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param), answer.text
    assert len(await suite.leaves(kind="chat.invalid")) == 1


async def test_input_items_come_in_pages(suite: Suite) -> None:
    given = [{"role": "user", "content": f"part {number}"} for number in range(5)]
    body = await ask(suite, given)
    path = f"/v1/responses/{body['id']}/input_items"
    first = await suite.get(path, params={"limit": 2, "order": "asc"})
    TypeAdapter(ResponseItemList).validate_json(first.content, strict=True)
    page = first.json()
    assert page["has_more"] is True
    rest = (await suite.get(path, params={"limit": 50, "order": "asc", "after": page["last_id"]})).json()
    said = [item["content"][0]["text"] for item in [*page["data"], *rest["data"]]]
    assert said == [f"part {number}" for number in range(5)]
    assert rest["has_more"] is False
    newest = (await suite.get(path, params={"limit": 1})).json()["data"]
    assert newest[0]["content"][0]["text"] == "part 4"
    listed = await suite.get(path, params={"include[]": ["reasoning.encrypted_content"] * 2})
    assert listed.status_code == 200, listed.text
    assert (await suite.get(path, params={"after": "msg_x"})).json()["error"]["param"] == "after"


async def test_a_stored_response_can_be_streamed_again_from_any_event_on(suite: Suite) -> None:
    body = await ask(suite)
    path = f"/v1/responses/{body['id']}"
    async with suite.http.stream("GET", path, params={"stream": "true"}, headers=suite.bearer()) as response:
        events = await events_of(response)
    assert events[-1]["response"] == body
    assert "".join(event["delta"] for event in events if event["type"].endswith("text.delta")) == REPLY
    late = await suite.get(path, params={"stream": "true", "starting_after": "4"})
    assert late.text.count("event: ") == len(events) - 5


async def test_a_failure_before_the_first_word_keeps_its_status_and_stores_nothing(suite: Suite) -> None:
    suite.ethics.is_down = True
    answer = await suite.post("/v1/responses", {"input": "x"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "ethics_unavailable")
    assert suite.inference.chats == []


async def test_a_failure_in_the_middle_of_a_stream_ends_it_as_failed(suite: Suite) -> None:
    suite.ethics.window = 1
    suite.inference.script = lambda _action: [
        route(), text("Some words that are long enough to leave"), 0.2, UnavailableError("gone"),
    ]  # fmt: skip
    events = await stream(suite)
    final = events[-1]
    assert final["type"] == "response.failed"
    assert final["response"]["error"]["code"] == "server_error"
    assert checked(await suite.get(f"/v1/responses/{final['response']['id']}"))["status"] == "failed"


class City(BaseModel):
    name: str
    people: int


async def test_openais_own_client_follows_a_stream_and_reads_a_structured_answer(suite: Suite) -> None:
    suite.inference.script = lambda _action: saying('{"name":', ' "Paris", ', '"people": 2100000}')
    async with AsyncOpenAI(base_url=f"{suite.url}/v1", api_key=suite.key, max_retries=0) as client:
        async with client.responses.stream(model="auto", input="Which city?", text_format=City) as events:
            seen = [event.type async for event in events]
            final = await events.get_final_response()
        assert seen[-1] == "response.completed"
        assert final.output_parsed == City(name="Paris", people=2_100_000)
        whole = await client.responses.parse(model="auto", input="Which city?", text_format=City)
        assert whole.output_parsed == City(name="Paris", people=2_100_000)
        listed = [item.id async for item in client.responses.input_items.list(whole.id, limit=1)]
        assert len(listed) == 1
        assert (await client.responses.retrieve(whole.id)).output_text == whole.output_text
