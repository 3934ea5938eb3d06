"""Holds an answer against what was asked of it: its form, its function calls, and why it says that it ended.  Pure.

Servers accept constraints and ignore them: mlx_lm.server every `response_format`, llama-server `tool_choice: required`.
An answer that was cut (`length`), withheld (`content_filter`) or refused by the model says so itself, and is not held to
a form that it could not reach.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Final

import orjson

from kala.errors import InvalidArgumentError
from services.inference.backend import BackendFailure, Blame
from services.inference.chat import (
    ChatCall,
    Delta,
    FinishReason,
    Form,
    Message,
    Role,
    Text,
    Tool,
    ToolCall,
    ToolMode,
)
from services.inference.json_schema import Fault, Schema, UncheckableSchemaError, schema_of

HINTS: Final = {
    "ANSWER_NOT_JSON": (
        "Your answer was not JSON. Answer again with one JSON object and nothing else: no words before or after it, "
        "and no code fence."
    ),
    "ANSWER_BREAKS_SCHEMA": (
        "Your answer was JSON, but it did not follow the required schema. Answer again with JSON that follows it "
        "exactly: every required property, no others, and each value of its type."
    ),
    "TOOL_NOT_CALLED": "You have not called a function. Answer again by calling one of the functions you were given.",
    "WRONG_TOOL_CALLED": "You have not called the function that is required here. Answer again by calling it.",
    "TOOL_CALLED": "You may not call a function here. Answer again in words.",
    "TOO_MANY_TOOL_CALLS": "You may call one function only. Answer again with a single call.",
    "TOOL_ARGUMENTS_NOT_JSON": (
        "The arguments of your function call were not a JSON object. Answer again with arguments that are one."
    ),
    "TOOL_ARGUMENTS_BREAK_SCHEMA": (
        "The arguments of your function call did not follow the function's parameters. Answer again with arguments "
        "that follow them exactly."
    ),
}
"""What a model is told of its mistake, by the mistake's reason.  Fixed texts: after the judgement nothing else may be added."""


class Untrue(BackendFailure):
    """An answer that is not what was asked for; `hint` is the fixed text that tells its model so, empty for none."""

    def __init__(self, reason: str, detail: str, *, told: str = "") -> None:
        super().__init__(reason, detail, blame=Blame.MODEL, told=told)
        self.hint = HINTS.get(reason, "")


@dataclass(frozen=True, slots=True)
class Demands:
    """What one call demands of its answer."""

    call: ChatCall
    form_schema: Schema | None
    argument_schemas: dict[str, Schema]
    """By function, of those that are strict."""

    def verified(self, answer: Delta, reason: FinishReason) -> FinishReason:
        """Give why a whole answer truly ended; raises Untrue when it is not what was asked for.

        A finish that the answer belies is the server's fault, not the model's: BackendFailure FINISH_UNTRUE.
        """
        calls = answer.tool_calls
        if calls and not self._allows_calls:
            raise Untrue("TOOL_CALLED", "called a function although none was to be called")
        if reason is FinishReason.TOOL_CALLS and not calls:
            raise BackendFailure("FINISH_UNTRUE", "said that it calls a function and called none")
        if reason in {FinishReason.LENGTH, FinishReason.CONTENT_FILTER} or answer.refusal:
            return reason
        self._check_choice(calls)
        for call in calls:
            self._check_arguments(call)
        if calls:
            return FinishReason.TOOL_CALLS
        self._check_form(answer.text)
        return reason

    @property
    def _allows_calls(self) -> bool:
        return bool(self.call.tools) and self.call.tool_mode is not ToolMode.NONE

    def _check_choice(self, calls: tuple[ToolCall, ...]) -> None:
        if self.call.demands_a_tool and not calls:
            raise Untrue("TOOL_NOT_CALLED", "called no function although one was required")
        names = {call.name for call in calls}
        if self.call.tool_mode is ToolMode.NAMED and names - {self.call.tool_name}:
            raise Untrue("WRONG_TOOL_CALLED", "called another function than the one required")
        if self.call.tool_mode is ToolMode.REQUIRED and not names & {tool.name for tool in self.call.tools}:
            raise Untrue("WRONG_TOOL_CALLED", "called a function that it was not given")
        if self.call.parallel_tool_calls is False and len(calls) > 1:
            raise Untrue(
                "TOO_MANY_TOOL_CALLS", f"called {len(calls)} functions at once although one was allowed"
            )

    def _check_arguments(self, call: ToolCall) -> None:
        # Some servers write nothing where a function takes nothing.
        arguments = _json(call.arguments) if call.arguments.strip() else {}
        if not isinstance(arguments, dict):
            raise Untrue(
                "TOOL_ARGUMENTS_NOT_JSON", "called a function with arguments that are no JSON object"
            )
        schema = self.argument_schemas.get(call.name)
        fault = None if schema is None else _fault(schema, arguments)
        if fault is not None:
            raise Untrue(
                "TOOL_ARGUMENTS_BREAK_SCHEMA",
                f"called a function with arguments that break its schema ({fault.keyword})",
                told=f"{call.name}: {fault.path}",
            )

    def _check_form(self, text: str) -> None:
        if self.call.answer_form.form is Form.TEXT:
            return
        value = _json(text)
        is_object = isinstance(value, dict)
        if value is _NOT_JSON or (self.form_schema is None and not is_object):
            raise Untrue("ANSWER_NOT_JSON", "answered with something that is not the JSON asked for")
        fault = None if self.form_schema is None else _fault(self.form_schema, value)
        if fault is not None:
            raise Untrue(
                "ANSWER_BREAKS_SCHEMA",
                f"answered with JSON that breaks the schema asked for ({fault.keyword})",
                told=fault.path,
            )


def demands(call: ChatCall) -> Demands:
    """Say what a call demands; raises InvalidArgumentError for a schema that its answer could not be held against.

    Compiling a schema that was not seen lately takes milliseconds, checking a hostile one up to a second: both are for
    a thread wherever `has_schema` is true.
    """
    form = call.answer_form
    return Demands(
        call,
        form_schema=_schema("response_format.json_schema", form.schema_json)
        if form.form is Form.JSON_SCHEMA
        else None,
        argument_schemas={
            tool.name: _schema(f"tools[{index}].parameters_json", tool.parameters_json)
            for index, tool in enumerate(call.tools)
            if _is_strict(tool)
        },
    )


def has_schema(call: ChatCall) -> bool:
    """Tell whether a schema takes part in checking the answer."""
    return call.answer_form.form is Form.JSON_SCHEMA or any(_is_strict(tool) for tool in call.tools)


def told_so(call: ChatCall, hint: str) -> ChatCall:
    """Ask again, with the fixed text that says what was wrong.

    It goes to the end of the last message of the user, or becomes one: many templates refuse two in a row.
    """
    *others, last = call.messages
    if last.role is not Role.USER:
        return replace(call, messages=(*call.messages, Message(Role.USER, (Text(hint),))))
    *parts, end = last.parts
    ending = (Text(f"{end.text}\n\n{hint}"),) if isinstance(end, Text) else (end, Text(hint))
    return replace(call, messages=(*others, replace(last, parts=(*parts, *ending))))


_NOT_JSON: Final = object()


def _json(text: str) -> Any:  # Any: JSON
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return _NOT_JSON


def _is_strict(tool: Tool) -> bool:
    return bool(tool.strict) and bool(tool.parameters_json)


def _schema(field: str, text: str) -> Schema:
    try:
        return schema_of(text)
    except UncheckableSchemaError as error:
        raise InvalidArgumentError(field, str(error)) from error


def _fault(schema: Schema, value: object) -> Fault | None:
    try:
        return schema.first_fault(value)
    except UncheckableSchemaError as error:
        raise Untrue(
            "ANSWER_UNCHECKABLE", f"answered with what cannot be checked: the schema {error}"
        ) from error
