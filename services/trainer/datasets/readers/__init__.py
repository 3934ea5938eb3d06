"""Readers of every format: a stream of bytes in, rows with their numbers out; nothing is held but one row."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import BinaryIO, Final

from kala.trainer.v1 import dataset_pb2 as pb
from services.trainer.datasets.problems import Found, RowError
from services.trainer.datasets.readers import chat, exercises
from services.trainer.datasets.readers.code import is_archive, read_code, read_pairs
from services.trainer.datasets.readers.fields import Fields, object_of
from services.trainer.datasets.readers.json_rows import json_rows
from services.trainer.datasets.readers.stack_overflow import read_stack_overflow
from services.trainer.datasets.rows import Row

Reader = Callable[[BinaryIO, str], Iterator[Found]]
"""Takes the file's bytes, uncompressed, and its name; raises FileError for a file that cannot be read on."""


def of_json(convert: Callable[[Fields], Row]) -> Reader:
    """Returns a reader of JSON rows that this function makes rows of."""

    def read(stream: BinaryIO, name: str) -> Iterator[Found]:
        for number, value in json_rows(stream):
            try:
                if isinstance(value, RowError):
                    raise value
                yield Found(number, convert(object_of(value)), file=name)
            except RowError as problem:
                yield Found(number, problem=problem, file=name)

    return read


def read_bug_fixes(stream: BinaryIO, name: str) -> Iterator[Found]:
    """Reads pairs from an archive's folders or from JSON."""
    return read_pairs(stream, name) if is_archive(name) else of_json(exercises.read_bug_fix)(stream, name)


READERS: Final[Mapping[pb.SourceFormat.ValueType, Reader]] = {
    pb.SOURCE_FORMAT_MESSAGES: of_json(chat.read_messages),
    pb.SOURCE_FORMAT_PROMPT_COMPLETION: of_json(chat.read_prompt_completion),
    pb.SOURCE_FORMAT_PREFERENCE: of_json(chat.read_preference),
    pb.SOURCE_FORMAT_LABELLED: of_json(chat.read_labelled),
    pb.SOURCE_FORMAT_MBPP: of_json(exercises.read_mbpp),
    pb.SOURCE_FORMAT_GSM8K: of_json(exercises.read_gsm8k),
    pb.SOURCE_FORMAT_MATH: of_json(exercises.read_math),
    pb.SOURCE_FORMAT_STACK_OVERFLOW: read_stack_overflow,
    pb.SOURCE_FORMAT_CODE_WITH_DOCS: read_code,
    pb.SOURCE_FORMAT_BUG_FIX: read_bug_fixes,
    pb.SOURCE_FORMAT_SECURE_CODING: of_json(exercises.read_secure_coding),
    pb.SOURCE_FORMAT_TEXTBOOK: of_json(exercises.read_textbook),
    pb.SOURCE_FORMAT_CLAIMS: of_json(chat.read_claim),
}
"""By format; HumanEval has none, since it is for evaluation only."""
