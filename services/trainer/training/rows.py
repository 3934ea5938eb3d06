"""The rows of a dataset on disk, read back strictly: what was built is well-formed, so anything else is damage."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from kala.errors import DataLossError, FailedPreconditionError

TRAIN_FILE: Final = "train.jsonl"
VALIDATION_FILE: Final = "validation.jsonl"
MAX_LINE_BYTES: Final = 16 << 20

Messages = tuple[tuple[str, str], ...]
"""Role and content of each message."""


@dataclass(frozen=True, slots=True)
class Dialogue:
    """A conversation whose assistant's turns are learned."""

    messages: Messages


@dataclass(frozen=True, slots=True)
class Preference:
    """Two answers to one conversation."""

    prompt: Messages
    chosen: str
    rejected: str


@dataclass(frozen=True, slots=True)
class Labelled:
    """A text and its label."""

    text: str
    label: str


Row = Dialogue | Preference | Labelled
KINDS: Final[dict[str, type[Row]]] = {"sft": Dialogue, "dpo": Preference, "classification": Labelled}
_NEEDED: Final = {
    "sft": "`messages` or `prompt` and `completion`",
    "dpo": "`prompt`, `chosen` and `rejected`",
    "classification": "`text` and `label`",
}


def read_rows(path: Path, objective: str) -> Iterator[Row]:
    """Give every row; raises DataLossError naming file and row, and FailedPreconditionError for rows of another kind."""
    try:
        with path.open("rb") as file:
            for number, line in enumerate(iter(lambda: file.readline(MAX_LINE_BYTES + 1), b""), start=1):
                if len(line) > MAX_LINE_BYTES:
                    raise DataLossError(f"{path.name} row {number}: is longer than {MAX_LINE_BYTES} bytes")
                row = _row(f"{path.name} row {number}", line)
                if not isinstance(row, KINDS[objective]):
                    raise FailedPreconditionError(
                        f"{path.name} row {number}: {objective} needs rows with {_NEEDED[objective]}; "
                        "build a dataset of that format or choose another objective",
                        reason="WRONG_ROWS",
                    )
                yield row
    except OSError as error:
        raise DataLossError(f"{path}: cannot be read; build the dataset again") from error


def _row(where: str, line: bytes) -> Row:
    try:
        value = json.loads(line)
        if "messages" in value:
            return Dialogue(_messages(value["messages"]))
        if "completion" in value:
            return Dialogue((*_prompt(value["prompt"]), ("assistant", _answer(value["completion"]))))
        if "chosen" in value:
            return Preference(_prompt(value["prompt"]), _answer(value["chosen"]), _answer(value["rejected"]))
        return Labelled(_text(value["text"]), str(value["label"]))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataLossError(
            f"{where}: is not a row of a built dataset; build the dataset again", reason="DATASET_DAMAGED"
        ) from error


def _messages(value: Any) -> Messages:  # parsed JSON of any kind
    messages = tuple((_text(item["role"]), _text(item["content"])) for item in value)
    if not any(role == "assistant" for role, _ in messages):
        raise ValueError("no assistant's turn")
    return messages


def _prompt(value: Any) -> Messages:  # parsed JSON of any kind
    if isinstance(value, str):
        return (("user", value),)
    return tuple((_text(item["role"]), _text(item["content"])) for item in value)


def _answer(value: Any) -> str:  # parsed JSON of any kind
    """A plain text, or the one message of a list as TRL writes answers."""
    if isinstance(value, list):
        (message,) = value
        return _text(message["content"])
    return _text(value)


def _text(value: Any) -> str:  # parsed JSON of any kind
    if not isinstance(value, str):
        raise TypeError("not a text")
    return value
