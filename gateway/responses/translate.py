"""Says a response's request as the chat that it is.  Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from pydantic import ValidationError

from gateway.chat_schema import MAX_MESSAGES, ChatRequest
from gateway.responses.items import Messages, Placed, messages_of
from gateway.responses.schema import AllowedTools, FunctionChoice, FunctionTool, ResponseRequest, SchemaFormat
from gateway.validation import first_error
from kala.errors import InvalidArgumentError

Json = dict[str, Any]  # Any: JSON

_MESSAGE: Final = re.compile(r"messages\[(\d+)\]")
INSTRUCTIONS: Final = "instructions"


@dataclass(frozen=True, slots=True)
class Translated:
    """A request as a chat, and where its messages came from."""

    chat: ChatRequest
    origins: Sequence[str]

    def located(self, error: InvalidArgumentError) -> InvalidArgumentError:
        """Let an error about a message name the item that it was made of."""
        return located(error, self.origins)


def translate(request: ResponseRequest, items: Iterable[Placed]) -> Translated:
    """Give the chat of a request whose conversation is `items`, the oldest first."""
    told = messages_of(items)
    if request.instructions:
        told.messages.insert(0, {"role": "system", "content": request.instructions})
        told.origins.insert(0, INSTRUCTIONS)
    if not told.messages:
        raise InvalidArgumentError("input", "holds nothing that a model can be told")
    if len(told.messages) > MAX_MESSAGES:
        raise InvalidArgumentError(
            "input", f"must come to at most {MAX_MESSAGES} messages; shorten the conversation"
        )
    try:
        chat = ChatRequest.model_validate(_body(request, told))
    except ValidationError as error:
        raise located(first_error(error, {"messages": told.messages}), told.origins) from error
    return Translated(chat, told.origins)


def located(error: InvalidArgumentError, origins: Sequence[str]) -> InvalidArgumentError:
    """Name the item in place of the message."""
    found = _MESSAGE.match(error.field)
    if found is None or int(found[1]) >= len(origins):
        return error
    field = error.field.replace(found[0], origins[int(found[1])], 1)
    return InvalidArgumentError(field, error.problem, reason=error.reason)


def _body(request: ResponseRequest, told: Messages) -> Json:
    body: Json = {
        "model": request.model,
        "messages": told.messages,
        "temperature": request.temperature,
        "top_p": request.top_p,
        "max_completion_tokens": request.max_output_tokens,
        "parallel_tool_calls": request.parallel_tool_calls,
        "stream": request.stream,
        "user": request.user,
        "safety_identifier": request.safety_identifier,
        "kala_tools": request.kala_tools,
        "kala_workspace": request.kala_workspace,
        **_tools(request),
        **_format(request),
    }
    if request.wants_logprobs:
        body |= {"logprobs": True, "top_logprobs": request.top_logprobs}
    if request.reasoning is not None:
        body["reasoning_effort"] = request.reasoning.effort
    if request.wants_kala_tools:
        body["kala_approvals"] = {**told.approvals, **(request.kala_approvals or {})} or None
        body["kala_tool_limits"] = _limits(request)
    return body


def _limits(request: ResponseRequest) -> Json | None:
    if request.kala_tool_limits is not None:
        return request.kala_tool_limits.model_dump()
    return None if request.max_tool_calls is None else {"calls": request.max_tool_calls}


def _tools(request: ResponseRequest) -> Json:
    tools, choice = request.tools or [], request.tool_choice
    if isinstance(choice, AllowedTools):
        allowed = {tool.name for tool in choice.tools}
        tools = [tool for tool in tools if tool.name in allowed]
    if not tools and not request.wants_kala_tools:
        return {}
    return {"tools": [_tool(tool) for tool in tools] or None, "tool_choice": _choice(choice)}


def _tool(tool: FunctionTool) -> Json:
    function: Json = {"name": tool.name, "description": tool.description, "parameters": tool.parameters}
    return {"type": "function", "function": {**function, "strict": tool.strict}}


def _choice(choice: str | AllowedTools | FunctionChoice | None) -> str | Json | None:
    match choice:
        case AllowedTools():
            return choice.mode
        case FunctionChoice():
            return {"type": "function", "function": {"name": choice.name}}
        case _:
            return choice


def _format(request: ResponseRequest) -> Json:
    form = None if request.text is None else request.text.format
    if form is None:
        return {}
    if not isinstance(form, SchemaFormat):
        return {"response_format": {"type": form.type}}
    schema: Json = {"name": form.name, "schema": form.schema_, "strict": form.strict}
    if form.description is not None:
        schema["description"] = form.description
    return {"response_format": {"type": "json_schema", "json_schema": schema}}
