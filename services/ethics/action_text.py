"""Find every text of an action that a judge must read, each with its path and whose words it is.

A chat is read message by message; any other action by walking all its fields, so that an action added later is
judged in full without a change here. What no judge can read (images, audio, bytes that are no text) is named.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from kala.inference.v1 import inference_pb2
from services.ethics.judge import Stage

# System texts and the latest user turns are also judged as one text: a request may be spread over several of them.
JOINED_TURNS: Final = 8
MAX_JOINED_CHARS: Final = 16_384
CONVERSATION: Final = "conversation"
# Deeper JSON than this holds no arguments that a tool could use.
MAX_JSON_DEPTH: Final = 32
# Texts that are read as documents, not as requests: the task on them is judged, their subject is not.
DOCUMENT_FIELDS: Final = frozenset(
    {"kala.inference.v1.EmbedAction.inputs", "kala.inference.v1.RerankAction.documents"}
)
SHA256_BYTES: Final = 32
_STAGES: Final = {
    inference_pb2.ROLE_ASSISTANT: Stage.OUTPUT,
    inference_pb2.ROLE_TOOL: Stage.TOOL_RESULT,
}


@dataclass(frozen=True, slots=True)
class Text:
    """One text of an action."""

    field: str
    stage: Stage
    text: str


@dataclass(frozen=True, slots=True)
class Unreadable:
    """One part of an action that no judge can read."""

    field: str
    kind: str


Piece = Text | Unreadable


def pieces_of(action: Message) -> Iterator[Piece]:
    """Everything to judge in an action, in its order."""
    if isinstance(action, inference_pb2.ChatAction):
        yield from _chat(action)
    else:
        yield from _fields(action, "", Stage.REQUEST)


def _chat(action: inference_pb2.ChatAction) -> Iterator[Piece]:
    for index, message in enumerate(action.messages):
        yield from _message(message, f"messages[{index}]")
    yield from _joined_turns(action)
    rest = inference_pb2.ChatAction()
    rest.CopyFrom(action)
    rest.ClearField("messages")
    yield from _fields(rest, "", Stage.REQUEST)


def _message(message: inference_pb2.ChatMessage, path: str) -> Iterator[Piece]:
    stage = _STAGES.get(message.role, Stage.REQUEST)
    for index, part in enumerate(message.content):
        kind = part.WhichOneof("part")
        if kind == "text":
            yield Text(f"{path}.content[{index}].text", stage, part.text)
        elif kind is not None:
            yield Unreadable(f"{path}.content[{index}]", kind)
        yield from _named(part, f"{path}.content[{index}]", stage, "audio_format", "image_detail")
    yield from _named(message, path, stage, "name", "tool_call_id")
    for index, call in enumerate(message.tool_calls):
        yield from _named(call, f"{path}.tool_calls[{index}]", Stage.OUTPUT, "id")
        yield Text(f"{path}.tool_calls[{index}].name", Stage.OUTPUT, call.name)
        yield from json_texts(call.arguments, f"{path}.tool_calls[{index}].arguments", Stage.OUTPUT)


def _named(message: Message, path: str, stage: Stage, *names: str) -> Iterator[Text]:
    """Short texts beside the words; they reach the model too, for prompt templates may print them."""
    for name in names:
        text: str = getattr(message, name)
        if text:
            yield Text(f"{path}.{name}", stage, text)


def _joined_turns(action: inference_pb2.ChatAction) -> Iterator[Text]:
    turns = [
        *_texts_of(action, inference_pb2.ROLE_SYSTEM),
        *_texts_of(action, inference_pb2.ROLE_USER)[-JOINED_TURNS:],
    ]
    if len(turns) > 1:
        yield Text(CONVERSATION, Stage.REQUEST, "\n".join(turns)[-MAX_JOINED_CHARS:])


def _texts_of(action: inference_pb2.ChatAction, role: inference_pb2.Role.ValueType) -> list[str]:
    return [
        part.text
        for message in action.messages
        if message.role == role
        for part in message.content
        if part.WhichOneof("part") == "text"
    ]


def json_texts(source: str, path: str, stage: Stage) -> Iterator[Text]:
    """A JSON text as it stands and, where it parses, its strings joined: escapes and structure hide nothing."""
    if source:
        yield Text(path, stage, source)
    try:
        strings = list(_strings(json.loads(source), MAX_JSON_DEPTH))
    except (ValueError, RecursionError):
        return
    joined = "\n".join(strings)
    if joined:
        yield Text(f"{path}#strings", stage, joined)


def _strings(value: object, depth: int) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif depth and isinstance(value, list):
        for item in value:
            yield from _strings(item, depth - 1)
    elif depth and isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from _strings(item, depth - 1)


def _fields(message: Message, path: str, stage: Stage) -> Iterator[Piece]:
    """Every text below a message; protobuf lists set fields in the order of their numbers."""
    for field, value in message.ListFields():
        name = f"{path}.{field.name}" if path else field.name
        here = Stage.TOOL_RESULT if field.full_name in DOCUMENT_FIELDS else stage
        if field.is_repeated:
            for index, item in enumerate(value):
                yield from _value(field, item, f"{name}[{index}]", here)
        else:
            yield from _value(field, value, name, here)


def _value(field: FieldDescriptor, value: object, path: str, stage: Stage) -> Iterator[Piece]:
    if isinstance(value, Message):
        yield from _fields(value, path, stage)
    elif isinstance(value, str) and field.name.endswith(("_json", "json_schema")):
        yield from json_texts(value, path, stage)
    elif isinstance(value, str):
        yield Text(path, stage, value)
    elif isinstance(value, bytes) and not _is_digest(field, value):
        yield _bytes(value, path, stage)


def _is_digest(field: FieldDescriptor, value: bytes) -> bool:
    return len(value) == SHA256_BYTES and field.name.endswith(("sha256", "_digest"))


def _bytes(value: bytes, path: str, stage: Stage) -> Piece:
    try:
        return Text(path, stage, value.decode("utf-8"))
    except UnicodeDecodeError:
        return Unreadable(path, "bytes")
