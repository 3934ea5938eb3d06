"""What a response's request comes to: a chat that says the same, or an error that names the field."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.chat_action import build_action
from gateway.responses.ids import ItemIds, is_response_id, response_id, response_of
from gateway.responses.input_schema import ItemReference
from gateway.responses.items import Placed, kept, text_item
from gateway.responses.schema import parse_response_request
from gateway.responses.translate import Translated, translate
from kala.errors import InvalidArgumentError

RESPONSE = response_id("0" * 32)


def translated(body: dict[str, Any]) -> Translated:
    """The whole way of a request without a stored conversation; what is kept is translated again, as a later turn."""
    request = parse_response_request(body)
    ids = ItemIds(RESPONSE)
    given_items = [] if request.input is None else request.input
    items = (
        [text_item(given_items, ids)]
        if isinstance(given_items, str)
        else [kept(item, ids) for item in given_items if not isinstance(item, ItemReference)]
    )
    chat = translate(request, [Placed(item, f"input[{place}]") for place, item in enumerate(items)])
    build_action(chat.chat)
    return chat


def says(body: dict[str, Any]) -> list[tuple[str, Any]]:
    return [(message.role, message.content) for message in translated(body).chat.messages]


def test_items_become_messages_in_their_order() -> None:
    items = [
        {"role": "developer", "content": "Be kind."},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Hi."}]},
        {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "Hm."}]},
        {"type": "message", "role": "assistant", "id": "msg_1", "status": "completed",
         "content": [{"type": "output_text", "text": "Hello.", "annotations": []}]},
        {"role": "user", "content": "Bye."},
    ]  # fmt: skip
    assert says({"input": items, "instructions": "Be brief."}) == [
        ("system", "Be brief."), ("developer", "Be kind."), ("user", "Hi."), ("assistant", "Hello."), ("user", "Bye."),
    ]  # fmt: skip


def test_calls_in_a_row_are_one_message_with_their_results_behind() -> None:
    items = [
        {"role": "user", "content": "Look twice."},
        {"type": "function_call", "call_id": "a", "name": "look", "arguments": "{}"},
        {"type": "function_call", "call_id": "b", "name": "look", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "b", "output": "dog"},
        {"type": "function_call_output", "call_id": "a", "output": [{"type": "input_text", "text": "cat"}]},
    ]
    chat = translated({"input": items}).chat
    assert [message.role for message in chat.messages] == ["user", "assistant", "tool", "tool"]
    calls = getattr(chat.messages[1], "tool_calls", None)
    assert [call.id for call in calls or ()] == ["a", "b"]


def test_only_allowed_tools_are_offered() -> None:
    tools = [{"type": "function", "name": name, "parameters": {}} for name in ("look", "touch")]
    choice = {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "look"}]}
    chat = translated({"input": "x", "tools": tools, "tool_choice": choice}).chat
    assert ([tool.function.name for tool in chat.tools or ()], chat.tool_choice) == (["look"], "required")


def test_an_error_about_a_message_names_the_item_behind_instructions() -> None:
    image = {"type": "input_image", "image_url": "data:image/png;base64,AAAA"}
    items = [{"role": "user", "content": "x"}, {"role": "system", "content": [image]}]
    with pytest.raises(InvalidArgumentError) as error:
        translated({"input": items, "instructions": "Be brief."})
    assert error.value.field.startswith("input[1].content[0]")


@pytest.mark.parametrize("kala", [None, {}, {"approval": 5}, {"approval": "nonsense"}])
def test_a_call_without_its_approval_cannot_go_on(kala: Any) -> None:
    call = {
        "type": "mcp_approval_request",
        "id": "m",
        "name": "shell",
        "arguments": "{}",
        "server_label": "kala",
    }
    answer = {"type": "mcp_approval_response", "approval_request_id": "m", "approve": True}
    with pytest.raises(InvalidArgumentError) as error:
        translated({"input": [{**call, "kala": kala}, answer], "kala_tools": "auto"})
    assert error.value.field == "input[1].approval_request_id"


def test_an_items_id_names_its_response() -> None:
    item = text_item("x", ItemIds(RESPONSE))
    assert response_of(item["id"]) == RESPONSE
    assert is_response_id(RESPONSE)
    assert response_of("msg_elsewhere") is None
    assert not is_response_id("resp_\0" + "0" * 31)


_WORDS = st.one_of(st.text(max_size=8), st.sampled_from(["call_1", "look", "mcpr_1", "{}"]))
_ANY: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 2) | st.floats(allow_nan=False) | _WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_WORDS, inner, max_size=3),
    max_leaves=6,
)
_PART = st.fixed_dictionaries(
    {"type": st.sampled_from(["input_text", "output_text", "refusal", "input_image", "x"])},
    optional={
        "text": _WORDS,
        "refusal": _WORDS,
        "image_url": st.just("data:image/png;base64,AAAA"),
        "detail": _ANY,
    },
)
_ITEM = st.fixed_dictionaries(
    {},
    optional={
        "type": st.sampled_from(
            ["message", "function_call", "function_call_output", "reasoning", "mcp_call", "mcp_approval_request",
             "mcp_approval_response", "x"]
        ),
        "role": st.sampled_from(["user", "assistant", "system", "developer", "tool"]),
        "content": _WORDS | st.lists(_PART, max_size=2) | _ANY,
        "id": _WORDS, "call_id": _WORDS, "name": _WORDS, "arguments": _WORDS, "output": _WORDS | st.lists(_PART, max_size=2),
        "server_label": st.just("kala"), "approve": st.booleans(), "approval_request_id": _WORDS, "kala": _ANY,
        "summary": st.just([]), "status": st.sampled_from(["completed", "incomplete", "x"]),
    },
)  # fmt: skip
_BODY = st.fixed_dictionaries(
    {"input": st.lists(_ITEM, max_size=4) | _WORDS | _ANY},
    optional={
        "instructions": _WORDS, "tools": _ANY, "tool_choice": _ANY, "text": _ANY, "reasoning": _ANY, "include": _ANY,
        "kala_tools": st.sampled_from(["auto", "none", "x"]), "metadata": _ANY, "top_logprobs": _ANY,
        "max_tool_calls": _ANY, "kala_approvals": _ANY, "temperature": _ANY, "truncation": _ANY,
    },
)  # fmt: skip


@given(_BODY)
def test_whatever_is_sent_is_a_chat_or_an_error_that_names_a_field(body: dict[str, Any]) -> None:
    field = ""
    try:
        chat = translated(body)
    except InvalidArgumentError as error:
        field = error.field
    else:
        field = "none"
        assert len(chat.chat.messages) == len(chat.origins)
    assert field
