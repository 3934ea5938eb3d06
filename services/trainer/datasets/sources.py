"""A dataset's sources, one row after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import BinaryIO, Final

from kala.common.v1.reference_pb2 import ContentReference
from kala.errors import NotFoundError
from kala.trainer.v1.dataset_pb2 import (
    DatasetSource,
    FileSource,
    GeneratorCategory,
    GeneratorSource,
    HubSource,
    SourceFormat,
)
from services.trainer.datasets.files import Access, opened
from services.trainer.datasets.generators import generate
from services.trainer.datasets.problems import FILE_CHANGED, FILE_MISSING, FileError, Found
from services.trainer.datasets.readers import READERS

Opened = AbstractContextManager[tuple[BinaryIO, Callable[[], ContentReference]]]
_PREFIX: Final = "GENERATOR_CATEGORY_"


@dataclass(frozen=True, slots=True)
class Taking:
    """How a source is read."""

    access: Access
    advance: Callable[[int], None] = lambda _: None
    """Gets the number of bytes of each piece that was read."""
    resolve: Callable[[ContentReference], None] = lambda _: None
    """Gets each file, and each hub's snapshot, as it was found."""
    limit: int | None = None
    """Rows read at most; files are read to their ends all the same, for their digests."""
    cut: Callable[[], None] = lambda: None
    """Is called when rows were left out for the limit."""


def category_of(generator: GeneratorSource) -> str:
    """Returns the category as it is counted, e.g. "law_0"."""
    return GeneratorCategory.Name(generator.category).removeprefix(_PREFIX).lower()


def rows_of(source: DatasetSource, taking: Taking) -> Iterator[Found]:
    """Yields what is found in a source.

    A file that cannot be read, or is not the one that was cleared, gives a problem of the file as a whole.
    """
    if source.HasField("generator"):
        yield from _generated(source.generator, taking)
    elif source.HasField("hub"):
        yield from _Files(taking, source.hub.format).of_hub(source.hub)
    else:
        yield from _Files(taking, source.files.format).of(source.files)


def _generated(generator: GeneratorSource, taking: Taking) -> Iterator[Found]:
    rows = generator.rows
    if taking.limit is not None and rows > taking.limit:
        taking.cut()
        rows = taking.limit
    for number, row in enumerate(generate(category_of(generator), rows, generator.seed), start=1):
        yield Found(number, row)


class _Files:
    """Reads the files of one source, one after the other."""

    def __init__(self, taking: Taking, form: SourceFormat.ValueType) -> None:
        self._taking = taking
        self._reader = READERS[form]
        self._left = taking.limit

    def of(self, source: FileSource) -> Iterator[Found]:
        taking = self._taking
        for reference in source.files:
            file = opened(reference, taking.access, taking.advance)
            yield from self._one(reference.name, file, taking.resolve)

    def of_hub(self, source: HubSource) -> Iterator[Found]:
        from services.trainer.datasets import hub

        snapshot = hub.find(source, self._taking.access)
        read: list[ContentReference] = []
        for name in snapshot.files:
            file = hub.opened(snapshot, name, self._taking.advance)
            for found in self._one(name, file, read.append):
                yield found if found.file else replace(found, file=name)
        reference = hub.reference_of(snapshot, read)
        self._taking.resolve(reference)
        if source.dataset.sha256 and source.dataset != reference:
            changed = FileError(
                FILE_CHANGED, "the snapshot is not the one that was cleared; check the dataset anew"
            )
            yield Found(0, problem=changed, file=source.dataset.name)

    def _one(self, name: str, file: Opened, resolve: Callable[[ContentReference], None]) -> Iterator[Found]:
        try:
            with file as (stream, finish):
                for found in self._reader(stream, name):
                    if self._left == 0:
                        self._taking.cut()
                        break
                    self._left = None if self._left is None else self._left - 1
                    yield found
                resolve(finish())
        except NotFoundError as error:
            yield Found(0, problem=FileError(FILE_MISSING, error.message), file=name)
        except FileError as problem:
            yield Found(0, problem=problem, file=name)
        except OSError as error:
            unread = FileError(FILE_MISSING, f"it cannot be read: {error.strerror or error}")
            yield Found(0, problem=unread, file=name)
