"""Readers of every format: a stream of bytes in, rows with their numbers out; nothing is held but one row."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import BinaryIO, Final

from kala.trainer.v1 import dataset_pb2 as pb
from services.trainer.datasets.problems import FileError, Found, RowError
from services.trainer.datasets.readers import chat
from services.trainer.datasets.readers.fields import Fields, object_of
from services.trainer.datasets.readers.json_rows import json_rows
from services.trainer.datasets.rows import Row

Reader = Callable[[BinaryIO, str], Iterator[Found]]
"""Takes the file's bytes, uncompressed, and its name."""


def of_json(convert: Callable[[Fields], Row]) -> Reader:
    """Returns a reader of JSON rows that this function makes rows of."""

    def read(stream: BinaryIO, name: str) -> Iterator[Found]:
        try:
            for number, value in json_rows(stream):
                try:
                    if isinstance(value, RowError):
                        raise value
                    yield Found(number, convert(object_of(value)), file=name)
                except RowError as problem:
                    yield Found(number, problem=problem, file=name)
        except FileError as problem:
            yield Found(0, problem=problem, file=name)

    return read


READERS: Final[Mapping[pb.SourceFormat.ValueType, Reader]] = {
    pb.SOURCE_FORMAT_MESSAGES: of_json(chat.read_messages),
    pb.SOURCE_FORMAT_PROMPT_COMPLETION: of_json(chat.read_prompt_completion),
    pb.SOURCE_FORMAT_PREFERENCE: of_json(chat.read_preference),
    pb.SOURCE_FORMAT_LABELLED: of_json(chat.read_labelled),
    pb.SOURCE_FORMAT_CLAIMS: of_json(chat.read_claim),
}
"""By format; HumanEval has none, since it is for evaluation only."""
