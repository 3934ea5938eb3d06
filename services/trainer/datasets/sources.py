"""A dataset's sources, one row after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from kala.common.v1.reference_pb2 import ContentReference
from kala.errors import NotFoundError, PermissionDeniedError
from kala.trainer.v1.dataset_pb2 import DatasetSource, FileSource, GeneratorCategory, GeneratorSource
from services.trainer.datasets.files import Access, opened
from services.trainer.datasets.generators import generate
from services.trainer.datasets.problems import FILE_MISSING, FileError, Found
from services.trainer.datasets.readers import READERS

Advance = Callable[[int], None]
_PREFIX: Final = "GENERATOR_CATEGORY_"


def category_of(generator: GeneratorSource) -> str:
    """Returns the category as it is counted, e.g. "law_0"."""
    return GeneratorCategory.Name(generator.category).removeprefix(_PREFIX).lower()


def rows_of(
    source: DatasetSource,
    access: Access,
    advance: Advance,
    resolve: Callable[[ContentReference], None],
    *,
    limit: int | None = None,
    cut: Callable[[], None] = lambda: None,
) -> Iterator[Found]:
    """Yields what is found in a source, at most `limit` rows of it; `resolve` gets each file as it was found.

    `cut` is called when rows were left out for the limit; files are read to their ends all the same, for their digests.

    A file whose digest or size is not the reference's ends with a problem of the whole file.
    """
    if source.HasField("generator"):
        if limit is not None and source.generator.rows > limit:
            cut()
        yield from _generated(source.generator, limit)
        return
    if source.HasField("hub"):
        raise PermissionDeniedError(
            f"source {source.name}: this release reads no dataset hub; put the snapshot's files into the data directory "
            "and name them under files"
        )
    yield from _filed(source.files, access, advance, resolve, limit, cut)


def _generated(generator: GeneratorSource, limit: int | None) -> Iterator[Found]:
    rows = generator.rows if limit is None else min(limit, generator.rows)
    for number, row in enumerate(generate(category_of(generator), rows, generator.seed), start=1):
        yield Found(number, row)


def _filed(
    source: FileSource,
    access: Access,
    advance: Advance,
    resolve: Callable[[ContentReference], None],
    limit: int | None,
    cut: Callable[[], None],
) -> Iterator[Found]:
    reader = READERS[source.format]
    left = limit
    for reference in source.files:
        try:
            with opened(reference, access, advance) as (stream, finish):
                for found in reader(stream, reference.name):
                    if left == 0:
                        cut()
                        break
                    left = None if left is None else left - 1
                    yield found
                resolve(finish())
        except NotFoundError as error:
            yield Found(0, problem=FileError(FILE_MISSING, error.message), file=reference.name)
        except FileError as problem:
            yield Found(0, problem=problem, file=reference.name)
        except OSError as error:
            unread = FileError(FILE_MISSING, f"it cannot be read: {error.strerror or error}")
            yield Found(0, problem=unread, file=reference.name)
