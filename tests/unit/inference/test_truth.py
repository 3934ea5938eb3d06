"""What an answer must be, held against what it is."""

from __future__ import annotations

import json

import pytest

from kala.errors import InvalidArgumentError
from services.inference.backend import BackendFailure, Blame
from services.inference.chat import (
    AnswerForm,
    ChatCall,
    Delta,
    FinishReason,
    Form,
    Image,
    Message,
    Role,
    Text,
    Tool,
    ToolCall,
    ToolMode,
)
from services.inference.truth import HINTS, Untrue, demands, has_schema, told_so

USER = Message(Role.USER, (Text("Go."),))
SCHEMA = json.dumps({"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]})
TOOLS = (Tool("add", parameters_json=SCHEMA, strict=True), Tool("now"))
STOP, LENGTH, CALLS, FILTER = (
    FinishReason.STOP,
    FinishReason.LENGTH,
    FinishReason.TOOL_CALLS,
    FinishReason.CONTENT_FILTER,
)


def call(
    *, form: Form = Form.TEXT, mode: ToolMode = ToolMode.DEFAULT, tools: tuple[Tool, ...] = ()
) -> ChatCall:
    schema = SCHEMA if form is Form.JSON_SCHEMA else ""
    name = "add" if mode is ToolMode.NAMED else ""
    return ChatCall(
        (USER,), tools=tools, tool_mode=mode, tool_name=name, answer_form=AnswerForm(form, schema_json=schema)
    )


def calling(*calls: tuple[str, str]) -> Delta:
    return Delta(tool_calls=tuple(ToolCall(f"c{i}", name, text, i) for i, (name, text) in enumerate(calls)))


def reason_against(asked: ChatCall, answer: Delta, finish: FinishReason = STOP) -> str:
    """Give why the answer is refused, or how it truly ended."""
    try:
        return demands(asked).verified(answer, finish).value
    except BackendFailure as failure:
        return failure.reason


@pytest.mark.parametrize(
    ("form", "text", "verdict"),
    [
        (Form.TEXT, "anything", "stop"),
        (Form.JSON_OBJECT, ' {"a": 1}\n', "stop"),
        (Form.JSON_OBJECT, "[1]", "ANSWER_NOT_JSON"),
        (Form.JSON_OBJECT, '```json\n{"a": 1}\n```', "ANSWER_NOT_JSON"),
        (Form.JSON_OBJECT, "", "ANSWER_NOT_JSON"),
        (Form.JSON_OBJECT, '{"a": NaN}', "ANSWER_NOT_JSON"),
        (Form.JSON_SCHEMA, '{"n": 1}', "stop"),
        (Form.JSON_SCHEMA, '{"n": "1"}', "ANSWER_BREAKS_SCHEMA"),
        (Form.JSON_SCHEMA, "Sure! {}", "ANSWER_NOT_JSON"),
    ],
)
def test_an_answer_has_the_form_that_was_asked_for(form: Form, text: str, verdict: str) -> None:
    assert reason_against(call(form=form), Delta(text=text)) == verdict


@pytest.mark.parametrize("finish", [LENGTH, FILTER])
def test_an_answer_that_says_it_was_cut_is_not_held_to_its_form(finish: FinishReason) -> None:
    assert reason_against(call(form=Form.JSON_OBJECT), Delta(text='{"a'), finish) == finish.value
    required = call(mode=ToolMode.REQUIRED, tools=TOOLS)
    assert reason_against(required, calling(("add", '{"n')), finish) == finish.value


def test_a_models_own_refusal_stands() -> None:
    assert reason_against(call(form=Form.JSON_OBJECT), Delta(refusal="I will not.")) == "stop"


@pytest.mark.parametrize(
    ("mode", "answer", "verdict"),
    [
        (ToolMode.REQUIRED, Delta(text="No."), "TOOL_NOT_CALLED"),
        (ToolMode.REQUIRED, calling(("now", "{}")), "tool_calls"),
        (ToolMode.REQUIRED, calling(("rm", "{}")), "WRONG_TOOL_CALLED"),
        (ToolMode.NAMED, calling(("now", "{}")), "WRONG_TOOL_CALLED"),
        (ToolMode.NAMED, calling(("add", '{"n": 1}')), "tool_calls"),
        (ToolMode.NONE, calling(("now", "{}")), "TOOL_CALLED"),
        (ToolMode.AUTO, Delta(text="No."), "stop"),
        (ToolMode.AUTO, calling(("now", "")), "tool_calls"),
        (ToolMode.AUTO, calling(("now", "{oops")), "TOOL_ARGUMENTS_NOT_JSON"),
        (ToolMode.AUTO, calling(("now", "[1]")), "TOOL_ARGUMENTS_NOT_JSON"),
        (ToolMode.AUTO, calling(("add", "{}")), "TOOL_ARGUMENTS_BREAK_SCHEMA"),
    ],
)
def test_functions_are_called_as_was_asked(mode: ToolMode, answer: Delta, verdict: str) -> None:
    assert reason_against(call(mode=mode, tools=TOOLS), answer) == verdict


def test_a_function_may_not_be_called_where_none_was_given() -> None:
    assert reason_against(call(), calling(("now", "{}"))) == "TOOL_CALLED"


def test_only_one_function_is_called_where_one_was_allowed() -> None:
    asked = ChatCall((USER,), tools=TOOLS, parallel_tool_calls=False)
    assert reason_against(asked, calling(("now", "{}"), ("now", "{}"))) == "TOO_MANY_TOOL_CALLS"


def test_arguments_are_held_against_a_schema_only_where_it_is_strict() -> None:
    loose = (Tool("add", parameters_json=SCHEMA),)
    assert reason_against(call(tools=loose), calling(("add", '{"n": "x"}'))) == "tool_calls"


def test_an_answer_with_calls_needs_no_form() -> None:
    assert reason_against(call(form=Form.JSON_SCHEMA, tools=TOOLS), calling(("now", "{}"))) == "tool_calls"


def test_a_finish_that_the_answer_belies_is_the_servers_fault() -> None:
    with pytest.raises(BackendFailure) as caught:
        demands(call(tools=TOOLS)).verified(Delta(text="Hi"), CALLS)
    assert (caught.value.reason, caught.value.blame) == ("FINISH_UNTRUE", Blame.BACKEND)


def test_what_a_model_wrote_never_enters_a_record() -> None:
    with pytest.raises(Untrue) as caught:
        demands(call(form=Form.JSON_SCHEMA)).verified(Delta(text='{"n": "secret"}'), STOP)
    assert caught.value.detail == "answered with JSON that breaks the schema asked for (type)"
    assert caught.value.told == "$.n"
    assert caught.value.blame is Blame.MODEL


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        (ChatCall((USER,), answer_form=AnswerForm(Form.JSON_SCHEMA, "", '{"type": 1}')), "response_format"),
        (ChatCall((USER,), tools=(Tool("f", parameters_json='{"type": 1}', strict=True),)), r"tools\[0\]"),
    ],
)
def test_a_schema_that_is_none_is_told_before_anything_is_generated(asked: ChatCall, field: str) -> None:
    assert has_schema(asked)
    with pytest.raises(InvalidArgumentError, match=field):
        demands(asked)


def test_a_schema_that_nothing_is_held_against_is_not_looked_at() -> None:
    asked = ChatCall((USER,), tools=(Tool("f", parameters_json='{"type": 1}'),))
    assert not has_schema(asked)
    demands(asked)


HINT = HINTS["ANSWER_NOT_JSON"]


def test_a_hint_ends_the_users_last_message() -> None:
    (message,) = told_so(call(), HINT).messages
    assert message.parts == (Text(f"Go.\n\n{HINT}"),)


def test_a_hint_after_an_image_is_a_part_of_its_own() -> None:
    image = Image("data:image/png;base64,AA", "")
    (message,) = told_so(ChatCall((Message(Role.USER, (image,)),)), HINT).messages
    assert message.parts == (image, Text(HINT))


def test_a_hint_after_a_tools_result_is_a_message_of_its_own() -> None:
    result = Message(Role.TOOL, (Text("5"),), tool_call_id="c1")
    assert told_so(ChatCall((USER, result)), HINT).messages == (
        USER,
        result,
        Message(Role.USER, (Text(HINT),)),
    )
