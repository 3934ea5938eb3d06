"""What no spec may hold, whoever wrote it: words that the contract does not have, and lists without end."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from kala.errors import InvalidArgumentError
from kala.trainer.v1 import job_pb2 as pb
from services.trainer.planning.limits import MAX_DATASETS, MAX_LABELS, MAX_PARENTS, MAX_TARGETS, MAX_TRACKERS

MAX_ENTRIES: Final[Mapping[str, int]] = {
    "datasets": MAX_DATASETS,
    "labels": MAX_LABELS,
    "parents": MAX_PARENTS,
    "trackers": MAX_TRACKERS,
    "lora.target_modules": MAX_TARGETS,
}
"""By list. Checked before anything is looked up: each entry would be a query."""


def require_bounded(spec: pb.TrainingSpec) -> None:
    """Raises InvalidArgumentError for a list that is too long to be planned at all."""
    for path, most in MAX_ENTRIES.items():
        section, _, name = path.rpartition(".")
        entries = getattr(getattr(spec, section) if section else spec, name)
        if len(entries) > most:
            raise InvalidArgumentError(path, f"names {len(entries)}; at most {most} are taken")


def unknown_words(spec: pb.TrainingSpec) -> Iterator[str]:
    """Problems: whoever judged the action read nothing in such a number, so nothing may be done by it."""
    for path, number in _unknown(spec, ""):
        yield f"{path}: is {number}, which this release does not know; plan again with its names"


def _unknown(message: Message, prefix: str) -> Iterator[tuple[str, int]]:
    for field, value in message.ListFields():
        path = f"{prefix}{field.name}"
        values = value if field.is_repeated else (value,)
        for each in values:
            if field.type == FieldDescriptor.TYPE_MESSAGE:
                yield from _unknown(each, f"{path}.")
            elif field.enum_type is not None and each not in field.enum_type.values_by_number:
                yield path, each
