"""What the log says of one call of a backend or a tool in numbers: how long the prompt, how it was asked, what came.  Pure.

Content is not among them. They are attributes of the outcome's record, and the log's view `agent_run` reads them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from gateway.acts import Act, Ending
from kala.inference.v1 import inference_pb2
from kala.tools.v1 import tools_pb2
from services.common.sealing import TYPE_URL_PREFIX

if TYPE_CHECKING:
    from google.protobuf.any_pb2 import Any as AnyMessage
    from google.protobuf.message import Message

PROMPT_LENGTH: Final = "call.prompt_length"
"""Characters of what was asked; of a tool's call, of its arguments."""

TEMPERATURE: Final = "call.temperature"
MAX_TOKENS: Final = "call.max_tokens"
RESPONSE_LENGTH: Final = "call.response_length"
"""Characters of what came back, whether or not it was released; of a tool's call, of its result."""

LATENCY: Final = "call.latency_ms"
"""Whole milliseconds until the last word, one number per attempt, as a JSON array."""

_TOOLS: Final = frozenset({"code_execution", "filesystem", "shell"})
"""What the tools service runs; a client may ask it for anything."""

Action = (
    inference_pb2.ChatAction
    | inference_pb2.CompleteAction
    | inference_pb2.EmbedAction
    | inference_pb2.RerankAction
    | tools_pb2.ExecuteAction
    | tools_pb2.GenerateCodeAction
)
_ACTIONS: Final[dict[str, type[Action]]] = {
    str(kind.DESCRIPTOR.full_name): kind
    for kind in (
        inference_pb2.ChatAction,
        inference_pb2.CompleteAction,
        inference_pb2.EmbedAction,
        inference_pb2.RerankAction,
        tools_pb2.ExecuteAction,
        tools_pb2.GenerateCodeAction,
    )
}
_EXECUTE: Final = str(tools_pb2.ExecuteAction.DESCRIPTOR.full_name)
_OTHER_TOOLS: Final = {
    str(tools_pb2.WriteFileAction.DESCRIPTOR.full_name): "write_file",
    str(tools_pb2.GenerateCodeAction.DESCRIPTOR.full_name): "generate_code",
    str(tools_pb2.RepairCodeAction.DESCRIPTOR.full_name): "repair_code",
}
"""As the tools service itself names them in the log."""


def tool_of(action: AnyMessage) -> str:
    """Name the tool that an action runs; empty for every other action, and for a name that no tool has.

    A client chooses the name of what it executes. The log keeps no person's words, and its control plane counts runs by
    this name: no client may make one up, least of all a backend's.
    """
    name = _name_of(action)
    if name != _EXECUTE:
        return _OTHER_TOOLS.get(name, "")
    tool = tools_pb2.ExecuteAction.FromString(action.value).tool
    return tool if tool in _TOOLS else ""


def facts_of_call(act: Act, ending: Ending) -> dict[str, str]:
    """Give the attributes of an act's outcome; none for an act that calls neither backend nor tool."""
    action = _read(act.action)
    if action is None and not tool_of(act.action):
        return {}
    facts = {} if action is None else {PROMPT_LENGTH: str(_prompt_length(action))}
    if isinstance(action, inference_pb2.ChatAction | inference_pb2.CompleteAction):
        sampling = action.sampling
        if sampling.HasField("temperature"):
            facts[TEMPERATURE] = json.dumps(sampling.temperature)
        if sampling.HasField("max_output_tokens"):
            facts[MAX_TOKENS] = str(sampling.max_output_tokens)
    if ending.response_chars is not None:
        facts[RESPONSE_LENGTH] = str(ending.response_chars)
    if ending.elsewhere_seconds is not None:
        facts[LATENCY] = json.dumps(_latencies(ending), separators=(",", ":"))
    return facts


def response_chars(responses: Sequence[Message]) -> int | None:
    """Count the characters of a whole answer; None for an answer of numbers, and for none."""
    count: int | None = None
    for response in responses:
        if isinstance(response, inference_pb2.ChatResponse):
            count = (count or 0) + len(response.delta.text)
        elif isinstance(response, inference_pb2.CompleteResponse):
            count = (count or 0) + len(response.text)
        elif isinstance(response, tools_pb2.ExecuteResponse) and response.HasField("exit"):
            count = len(response.exit.result_json)
    return count


def _name_of(action: AnyMessage) -> str:
    return action.type_url.removeprefix(TYPE_URL_PREFIX)


def _read(action: AnyMessage) -> Action | None:
    kind = _ACTIONS.get(_name_of(action))
    return None if kind is None else kind.FromString(action.value)


def _prompt_length(action: Action) -> int:
    match action:
        case inference_pb2.ChatAction():
            return sum(len(part.text) for message in action.messages for part in message.content)
        case inference_pb2.CompleteAction():
            return len(action.prompt) + len(action.suffix)
        case inference_pb2.EmbedAction():
            return sum(map(len, action.inputs))
        case inference_pb2.RerankAction():
            return len(action.query) + sum(map(len, action.documents))
        case tools_pb2.ExecuteAction():
            return len(action.arguments_json)
        case tools_pb2.GenerateCodeAction():
            return len(action.task)


def _latencies(ending: Ending) -> list[int]:
    """Give the failed attempts their own time, and the last what is left of the whole."""
    total = round((ending.elsewhere_seconds or 0.0) * 1000)
    earlier = [max(0, attempt.elapsed.ToMilliseconds()) for attempt in ending.served.attempts[:-1]]
    return [*earlier, max(0, total - sum(earlier))]
