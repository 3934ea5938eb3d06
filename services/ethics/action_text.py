"""Find every text of an action that a judge must read, each with its path and whose words it is.

A chat is read message by message and joined (`conversation.py`); any other action by walking all its fields, so that
an action added later is judged in full without a change here. A tool call is also read as the one thing that it does.
What no judge can read (images, audio, bytes that are no text) is named.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from kala.inference.v1 import inference_pb2
from kala.tools.v1 import tools_pb2
from services.common.json_strings import strings_of
from services.ethics.conversation import MAX_PHRASE_CHARS, Track, Turn, joined
from services.ethics.judge import Extent, Stage

MESSAGES: Final = "messages"
CONVERSATION: Final = "conversation"
# The end of an answer, which the next turn replies to. A client can put a question there and then ask for its answer.
ASKED_CHARS: Final = 400
_ASKED: Final = re.compile(r"[^.!?\n]+\?")
# What a tool call does, said in one sentence; its arguments are read in full besides.
MAX_SENTENCE_CHARS: Final = 1_024
# Deeper JSON than this holds no arguments that a tool could use.
MAX_JSON_DEPTH: Final = 32
# Texts that are read as documents, not as requests: the task on them is judged, their subject is not.
DOCUMENT_FIELDS: Final = frozenset(
    {"kala.inference.v1.EmbedAction.inputs", "kala.inference.v1.RerankAction.documents"}
)
_TRAINER_ACTIONS: Final = ("CreateTrainingJob", "BuildDataset", "EvaluateAdapter", "PromoteAdapter")
# What chooses who answers, which tool runs or what is trained on what: the actor looks it up in its own lists, and no
# model reads it. Of a message that stands here everything below is such a name.
ROUTING_FIELDS: Final = frozenset(
    {
        f"kala.inference.v1.{action}.{field}"
        for action in ("ChatAction", "CompleteAction", "EmbedAction", "RerankAction")
        for field in ("model", "provider")
    }
    | {"kala.inference.v1.ChatAction.role", "kala.inference.v1.ChatAction.adapters"}
    | {f"kala.inference.v1.LoadModelAction.{field}" for field in ("backend", "model")}
    | {f"kala.inference.v1.LoadAdapterAction.{field}" for field in ("adapter", "backend", "location")}
    | {f"kala.tools.v1.ExecuteAction.{field}" for field in ("tool", "workspace", "approval", "call_id")}
    | {f"kala.tools.v1.WriteFileAction.{field}" for field in ("workspace", "approval")}
    | {f"kala.trainer.v1.{action}Action.request_id" for action in _TRAINER_ACTIONS}
    | {
        f"kala.trainer.v1.TrainingSpec.{field}"
        for field in ("adapter", "base", "parents", "datasets", "lora", "gate_profile")
    }
    | {
        f"kala.trainer.v1.DatasetSpec.{field}"
        for field in ("name", "evaluation_files", "licences", "tokenizer")
    }
    | {
        f"kala.trainer.v1.{source}.{field}"
        for source, fields in (
            ("DatasetSource", ("name",)),
            ("FileSource", ("files", "licence")),
            ("HubSource", ("dataset", "revision", "split", "licence")),
        )
        for field in fields
    }
    | {f"kala.trainer.v1.EvaluateAdapterAction.{field}" for field in ("adapter", "base", "profile")}
    | {f"kala.trainer.v1.PromoteAdapterAction.{field}" for field in ("adapter", "evaluation")}
)
# Names of tools. One that is a single word says nothing by itself: what it is called for stands in its description and
# its arguments, and all names are read together with them.
TOOL_NAMES: Final = frozenset(
    {
        "kala.inference.v1.ToolDefinition.name",
        "kala.inference.v1.ToolChoice.function_name",
        # What a classifier answers: a word out of a set, whose task stands in the job's summary.
        "kala.trainer.v1.TrainingSpec.labels",
    }
)
_ONE_WORD: Final = re.compile(r"[a-z]{1,16}")
# Signed elsewhere and verified by the actor against pinned keys before anything in it counts: there is nothing to judge,
# and its bytes are no text that anybody reads.
VERIFIED_MESSAGES: Final = frozenset(
    {
        "kala.common.v1.SignedAdapterManifest",
        # Judged as an act of its own, whose clearance the actor verifies.
        "kala.common.v1.SealedAction",
    }
)
SHA256_BYTES: Final = 32
# Fewer words than these with a full stop may be half of a request.
SENTENCE_WORDS: Final = 6
_STAGES: Final = {
    inference_pb2.ROLE_ASSISTANT: Stage.OUTPUT,
    inference_pb2.ROLE_TOOL: Stage.TOOL_RESULT,
}


@dataclass(frozen=True, slots=True)
class Text:
    """One text of an action, or several of them joined."""

    field: str
    stage: Stage
    text: str
    extent: Extent = Extent.WHOLE
    borders: tuple[int, ...] = ()
    context: str = ""


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
    if isinstance(action, inference_pb2.CompleteAction) and action.suffix:
        # The model reads both around the gap that it fills, so what they say together counts too.
        yield Text("prompt#suffix", Stage.REQUEST, f"{action.prompt}\n{action.suffix}")
    if isinstance(action, tools_pb2.ExecuteAction):
        yield from _sentence(action.tool, action.arguments_json, "action", Stage.REQUEST)


def _chat(action: inference_pb2.ChatAction) -> Iterator[Piece]:
    for index, message in enumerate(action.messages):
        yield from _message(message, f"messages[{index}]")
    yield from _asked(action)
    for join in joined(list(_tracks(action))):
        yield Text(join.field, join.stage, join.text, join.extent, join.borders)
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
        yield Text(f"{path}.tool_calls[{index}].name", Stage.OUTPUT, call.name, _extent_of_name(call.name))
        yield from json_texts(call.arguments, f"{path}.tool_calls[{index}].arguments", Stage.OUTPUT)
        yield from _sentence(call.name, call.arguments, f"{path}.tool_calls[{index}]#action", Stage.OUTPUT)


def _named(message: Message, path: str, stage: Stage, *names: str) -> Iterator[Text]:
    """Short texts beside the words; they reach the model too, for prompt templates may print them."""
    for name in names:
        text: str = getattr(message, name)
        if text:
            yield Text(f"{path}.{name}", stage, text)


def _asked(action: inference_pb2.ChatAction) -> Iterator[Text]:
    """Questions at the end of an answer that somebody goes on from: whoever sends the conversation may have put them."""
    messages = action.messages
    replied = [index for index, message in enumerate(messages) if message.role == inference_pb2.ROLE_USER]
    for index, message in enumerate(messages[: replied[-1]] if replied else ()):
        if message.role == inference_pb2.ROLE_ASSISTANT:
            end = "\n".join(_texts_of(message))[-ASKED_CHARS:]
            if questions := [found.strip() for found in _ASKED.findall(end)]:
                yield Text(f"messages[{index}]#asked", Stage.REQUEST, "\n".join(questions))


def _tracks(action: inference_pb2.ChatAction) -> Iterator[Track]:
    """What is read one after the other: all that people and the operator said; all turns; documents; names; tools."""
    users = [
        Turn(index, text)
        for index, message in enumerate(action.messages)
        if _STAGES.get(message.role, Stage.REQUEST) is Stage.REQUEST
        for text in _texts_of(message)
    ]
    everything = [
        Turn(index, text, message.role == inference_pb2.ROLE_TOOL and _is_sentence(text))
        for index, message in enumerate(action.messages)
        for text in (message.name, *_texts_of(message), *map(_call_sentence, message.tool_calls))
        if message.role != inference_pb2.ROLE_TOOL or len(text) <= MAX_PHRASE_CHARS
    ]
    documents = [
        Turn(index, text)
        for index, message in enumerate(action.messages)
        if message.role == inference_pb2.ROLE_TOOL
        for text in _texts_of(message)
    ]
    names = [
        Turn(index, name)
        for index, message in enumerate(action.messages)
        for name in (message.name, *(call.name for call in message.tool_calls))
    ]
    tools = [
        Turn(index, text)
        for index, tool in enumerate(action.tools)
        for text in (tool.name, tool.description, _said_in(tool.parameters_json))
    ]
    yield Track(f"{CONVERSATION}.user", Stage.REQUEST, tuple(users))
    yield Track(CONVERSATION, Stage.REQUEST, tuple(everything))
    yield Track(f"{CONVERSATION}.documents", Stage.TOOL_RESULT, tuple(documents))
    yield Track(f"{CONVERSATION}.names", Stage.REQUEST, tuple(names))
    if tools:
        # A template may print the tools before or after what is asked.
        latest = [Turn(0, turn.text) for turn in users[-1:]]
        yield Track(
            "tools", Stage.REQUEST, (*latest, *tools, *(Turn(tools[-1].number, t.text) for t in latest))
        )


def _is_sentence(text: str) -> bool:
    """Whether a tool's text says something by itself: such a text is a document, however short."""
    return text.rstrip().endswith((".", "!", "?")) and len(text.split()) >= SENTENCE_WORDS


def _texts_of(message: inference_pb2.ChatMessage) -> list[str]:
    return [part.text for part in message.content if part.WhichOneof("part") == "text"]


def _call_sentence(call: inference_pb2.ToolCall) -> str:
    return action_sentence(call.name, call.arguments)


def _sentence(name: str, arguments: str, path: str, stage: Stage) -> Iterator[Text]:
    sentence = action_sentence(name, arguments)
    if sentence:
        yield Text(path, stage, sentence)


def action_sentence(name: str, arguments: str) -> str:
    """What a tool call does, as one sentence: "shell: rm -rf /data"; empty where the arguments are no JSON object.

    One value stands by itself, several stand after their names; at most MAX_SENTENCE_CHARS.
    """
    try:
        values = json.loads(arguments)
    except (ValueError, RecursionError):
        return ""
    if not isinstance(values, dict) or not values:
        return ""
    said = {key: " ".join(_scalars(value, MAX_JSON_DEPTH)) for key, value in values.items()}
    words = list(said.values()) if len(said) == 1 else [f"{key} {value}" for key, value in said.items()]
    return f"{name}: {', '.join(words)}"[:MAX_SENTENCE_CHARS]


def values_said(arguments: str) -> str:
    """The values of a tool call's arguments one after the other; empty where they are no JSON."""
    try:
        values = json.loads(arguments)
    except (ValueError, RecursionError):
        return ""
    fields = values.values() if isinstance(values, dict) else [values]
    return " ".join(word for value in fields for word in _scalars(value, MAX_JSON_DEPTH))


def _scalars(value: object, depth: int) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, int | float):
        yield str(value)
    elif depth and isinstance(value, list):
        for item in value:
            yield from _scalars(item, depth - 1)
    elif depth and isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from _scalars(item, depth - 1)


def _said_in(source: str) -> str:
    """The strings of a JSON text joined; empty where it does not parse."""
    try:
        return "\n".join(strings_of(json.loads(source), MAX_JSON_DEPTH)) if source else ""
    except (ValueError, RecursionError):
        return ""


def json_texts(source: str, path: str, stage: Stage) -> Iterator[Text]:
    """A JSON text as it stands and, where it parses, its strings joined: escapes and structure hide nothing."""
    if source:
        yield Text(path, stage, source)
    if said := _said_in(source):
        yield Text(f"{path}#strings", stage, said)


def _fields(message: Message, path: str, stage: Stage, *, are_names: bool = False) -> Iterator[Piece]:
    """Every text below a message; protobuf lists set fields in the order of their numbers."""
    for field, value in message.ListFields():
        name = f"{path}.{field.name}" if path else field.name
        here = Stage.TOOL_RESULT if field.full_name in DOCUMENT_FIELDS else stage
        if field.is_repeated:
            for index, item in enumerate(value):
                yield from _value(field, item, f"{name}[{index}]", here, is_name=are_names)
        else:
            yield from _value(field, value, name, here, is_name=are_names)


def _value(
    field: FieldDescriptor, value: object, path: str, stage: Stage, *, is_name: bool = False
) -> Iterator[Piece]:
    is_name = is_name or field.full_name in ROUTING_FIELDS
    if isinstance(value, Message):
        if value.DESCRIPTOR.full_name not in VERIFIED_MESSAGES:
            yield from _fields(value, path, stage, are_names=is_name)
    elif isinstance(value, str) and field.name.endswith(("_json", "json_schema")):
        yield from json_texts(value, path, stage)
    elif isinstance(value, str):
        yield Text(path, stage, value, Extent.NAME if is_name else _extent(field, value))
    elif isinstance(value, bytes) and not _is_digest(field, value):
        yield _bytes(value, path, stage)


def _extent(field: FieldDescriptor, value: str) -> Extent:
    if field.full_name in TOOL_NAMES:
        return _extent_of_name(value)
    return Extent.WHOLE


def _extent_of_name(name: str) -> Extent:
    return Extent.NAME if _ONE_WORD.fullmatch(name) else Extent.WHOLE


def _is_digest(field: FieldDescriptor, value: bytes) -> bool:
    return len(value) == SHA256_BYTES and field.name.endswith(("sha256", "_digest"))


def _bytes(value: bytes, path: str, stage: Stage) -> Piece:
    try:
        return Text(path, stage, value.decode("utf-8"))
    except UnicodeDecodeError:
        return Unreadable(path, "bytes")
