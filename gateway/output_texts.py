"""What of an RPC's answer has to be checked before it leaves, and as whose words.  Pure.

What a run wrote comes in pieces of two streams, cut anywhere: each stream is put together before it is read, and both
as a terminal would show them, so that no cut hides a word.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from google.longrunning import operations_pb2

from gateway.answer import REASONING, REFUSAL, TEXT, AnswerBuffer
from gateway.release import Piece
from gateway.transcoding import texts_of
from kala.ethics.v1 import ethics_pb2
from kala.inference.v1 import inference_pb2
from kala.tools.v1 import execution_pb2, tools_pb2
from kala.trainer.v1 import trainer_pb2
from services.common.json_strings import strings_of

if TYPE_CHECKING:
    from google.protobuf.message import Message

DOCUMENTS: Final = (
    tools_pb2.ExecuteResponse,
    tools_pb2.WriteFileResponse,
    tools_pb2.ReadFileResponse,
    tools_pb2.GetArtifactResponse,
    tools_pb2.ListFilesResponse,
    tools_pb2.RepairCodeResponse,
)
"""Answers that hold what a run or a file says: untrusted, and read as documents are."""

TRAINING: Final = (operations_pb2.Operation, trainer_pb2.PromoteAdapterResponse)
"""Answers of the trainer. They hold numbers, digests and signatures, and the caller's own words, which were judged as the
action; no model wrote any of it. Only an error may quote what somebody else wrote."""

_UNREADABLE: Final = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\ufffd]{2,}")
"""Pictures and archives are mostly this; a judge would read for minutes and learn nothing."""

MAX_JSON_DEPTH: Final = 64
"""As deep as JSON may nest anywhere at this gateway."""


@dataclass(frozen=True, slots=True)
class OutputTexts:
    """Texts by where they stand, and the channel on which they are checked."""

    texts: dict[str, str]
    channel: ethics_pb2.OutputChannel.ValueType = ethics_pb2.OUTPUT_CHANNEL_TEXT
    tracks: tuple[Piece, ...] = ()
    """Fields of an answer, each as its reader joins it and for what it is: arguments by call, tokens by rank."""


def output_texts(responses: Sequence[Message]) -> OutputTexts:
    """Collect everything that an answer of one or many messages says."""
    if responses and isinstance(responses[0], TRAINING):
        return OutputTexts(
            {
                f"error[{index}].message": response.error.message
                for index, response in enumerate(responses)
                if isinstance(response, operations_pb2.Operation) and response.error.message
            }
        )
    if responses and isinstance(responses[0], inference_pb2.ChatResponse):
        return OutputTexts(texts_of(list(responses)), tracks=_answer_tracks(responses))
    if responses and isinstance(responses[0], tools_pb2.ListRunsResponse):
        return OutputTexts(_listed_texts(responses), ethics_pb2.OUTPUT_CHANNEL_TOOL_RESULT)
    if not responses or not isinstance(responses[0], DOCUMENTS):
        return OutputTexts(texts_of(list(responses)))
    texts = (
        _run_texts(responses)
        if isinstance(responses[0], tools_pb2.ExecuteResponse)
        else texts_of(list(responses))
    )
    return OutputTexts(texts, ethics_pb2.OUTPUT_CHANNEL_TOOL_RESULT)


def _answer_tracks(responses: Sequence[Message]) -> tuple[Piece, ...]:
    """Take a stream of deltas apart as a reader does: pieces of different calls may come in turns."""
    buffer = AnswerBuffer()
    for response in responses:
        if isinstance(response, inference_pb2.ChatResponse) and response.HasField("delta"):
            # A copy: the buffer keeps only what it can release, and here all of it leaves.
            buffer.take_in(inference_pb2.ChatDelta.FromString(response.delta.SerializeToString()))
    plain = {TEXT, REASONING, REFUSAL}
    return tuple(piece for piece in buffer.take_unsent() if piece.track not in plain)


def document_text(data: bytes) -> str:
    """Give what a document's bytes spell; a run of bytes that spell nothing becomes one character."""
    return _UNREADABLE.sub("\ufffd", data.decode("utf-8", "replace"))


def strings_in(source: str) -> str:
    """Give the strings of a JSON text, one per line, as a reader of the parsed text sees them; else the text itself."""
    try:
        return "\n".join(strings_of(json.loads(source), MAX_JSON_DEPTH))
    except (ValueError, RecursionError):
        return source


def _run_texts(responses: Sequence[Message]) -> dict[str, str]:
    streams: dict[int, list[bytes]] = {}
    both: list[bytes] = []
    rest: list[Message] = []
    for response in responses:
        if isinstance(response, tools_pb2.ExecuteResponse) and response.HasField("output"):
            streams.setdefault(response.output.stream, []).append(response.output.data)
            both.append(response.output.data)
        elif isinstance(response, tools_pb2.ExecuteResponse):
            rest.append(_strangers_words(response))
    texts = texts_of(rest)
    if result := texts.get("exit.result_json"):
        texts["exit.result_json#strings"] = strings_in(result)
    pieces = {execution_pb2.OutputStream.Name(stream): parts for stream, parts in streams.items()}  # type: ignore[arg-type]  # the contract's enum
    if len(pieces) > 1:
        pieces["both"] = both
    said = texts.get("exit.result_json#strings", "")
    for name, parts in pieces.items():
        text = b"".join(parts).decode("utf-8", "replace")
        # A result mostly holds the output once more: the same words are read once.
        if text not in said:
            texts[f"output.{name}"] = text
    return texts


def _listed_texts(responses: Sequence[Message]) -> dict[str, str]:
    """Give what runs wrote into a list of them, one per line: the paths of their files, and why they ended."""
    runs = [
        run
        for response in responses
        if isinstance(response, tools_pb2.ListRunsResponse)
        for run in response.runs
    ]
    lines = {
        "runs.artifacts.path": [artifact.path for run in runs for artifact in run.artifacts],
        "runs.artifacts.content.name": [artifact.content.name for run in runs for artifact in run.artifacts],
        "runs.reason": [run.reason for run in runs if run.reason],
    }
    if lines["runs.artifacts.content.name"] == lines["runs.artifacts.path"]:
        # The same words are read once.
        del lines["runs.artifacts.content.name"]
    return {field: "\n".join(said) for field, said in lines.items() if said}


def _strangers_words(response: tools_pb2.ExecuteResponse) -> tools_pb2.ExecuteResponse:
    """Give an event without what the service says of itself: where a run took place, and what it is called.

    Such names are no sentences, and a judge that reads them as some finds what nobody said.
    """
    said = tools_pb2.ExecuteResponse()
    if response.HasField("exit"):
        said.exit.CopyFrom(response.exit)
        for field in ("run", "approval", "isolation", "measurement"):
            said.exit.ClearField(field)
        for artifact in said.exit.artifacts:
            artifact.ClearField("name")
    elif response.HasField("artifact"):
        said.artifact.CopyFrom(response.artifact)
        said.artifact.artifact.ClearField("name")
    return said
