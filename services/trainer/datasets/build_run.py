"""Builds or checks a dataset in a process of its own; `main` is called by services.trainer.work."""

from __future__ import annotations

import errno
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Final

from google.protobuf import json_format

from kala.common.v1.reference_pb2 import ContentReference
from kala.errors import FailedPreconditionError
from kala.trainer.v1.dataset_pb2 import DatasetSpec
from kala.trainer.v1.trainer_pb2 import BuildDatasetAction
from services.common.file_set import file_set_digest
from services.trainer.datasets.build import Reading, Tools, build
from services.trainer.datasets.contamination import DEFAULT_WORDS, Contamination, strings_in
from services.trainer.datasets.files import HUB_URL, Access, read_through
from services.trainer.datasets.problems import EMPTY, RowError
from services.trainer.datasets.readers.json_rows import json_rows
from services.trainer.datasets.rows import Row
from services.trainer.work.events import EventWriter
from services.trainer.work.order import Order

OUTPUT: Final = "dataset"
"""Folder inside the work's folder that the service moves into place."""
MAX_EVALUATION_CHARACTERS: Final = 128 * 1024**2
"""All evaluation files together: their runs of words lie in memory, some 20 bytes for each character."""


def main(order: Order, events: EventWriter) -> dict[str, Any]:  # Any: what goes into result.json
    """Builds the dataset that was cleared, or checks one when the order carries no action."""
    settings = order.settings
    # Rows are spooled beside the work, which is private and swept, not where every user of the machine writes.
    tempfile.tempdir = str(order.folder)
    if settings.get("check"):
        spec = json_format.ParseDict(settings["spec"], DatasetSpec())
        return check(spec, _tools(spec, settings, events), int(settings["max_rows"]))
    spec = order.parse(BuildDatasetAction).spec
    tools = _tools(spec, settings, events)
    try:
        built = build(order.name, spec, tools, order.folder / OUTPUT)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise FailedPreconditionError(
            "the disk of the trainer's state directory is full; make room, or build fewer rows",
            reason="DISK_FULL",
        ) from error
    return {
        "report": json_format.MessageToDict(built.report, preserving_proto_field_name=True),
        "files": [_reference(each) for each in built.files],
        "digest": built.digest.hex(),
        "card": built.card,
        "subjects": dict(built.subjects),
    }


def check(
    spec: DatasetSpec, tools: Tools, max_rows: int
) -> dict[str, Any]:  # Any: what goes into result.json
    """Reads at most `max_rows` of each source; says what was found, the files as they are, and whether a build would do."""
    reading = Reading(spec, tools, lambda *_: None, limit=max_rows)
    reading.run()
    report = reading.report
    for source in spec.sources:
        for file in source.files.files:
            found = reading.resolved.get(file.name)
            if found is not None:
                file.CopyFrom(found)
        snapshot = reading.resolved.get(source.hub.dataset.name)
        if source.HasField("hub") and snapshot is not None:
            source.hub.dataset.CopyFrom(snapshot)
    kept = sum(count.kept for count in report.sources)
    report.validation_rows = round(kept * spec.validation_share)
    report.train_rows = kept - report.validation_rows
    return {
        "report": json_format.MessageToDict(report, preserving_proto_field_name=True),
        "spec": json_format.MessageToDict(spec, preserving_proto_field_name=True),
        "buildable": not reading.damaged and all(count.kept for count in report.sources),
    }


def _tools(
    spec: DatasetSpec,
    settings: Mapping[str, Any],  # Any: JSON
    events: EventWriter,
) -> Tools:
    data_dir, tokenizer = settings.get("data_dir"), settings.get("tokenizer")
    contamination, references = known_evaluations(
        [Path(path) for path in settings.get("evaluation_files", ())],
        spec.contamination_words or DEFAULT_WORDS,
        spec.evaluation_files,
    )
    for named, found in zip(spec.evaluation_files, references, strict=False):
        named.sha256, named.bytes = found.sha256, found.bytes
    return Tools(
        access=Access(
            Path(data_dir) if data_dir else None,
            frozenset(settings.get("schemes", ())),
            settings.get("hub_url") or HUB_URL,
        ),
        contamination=contamination,
        contamination_digest=file_set_digest(references) if references else b"",
        tokens=token_counter(Path(tokenizer)) if tokenizer else None,
        progress=events.write,
        total_bytes=_total_bytes(spec),
    )


def known_evaluations(
    paths: Sequence[Path], words: int, cleared: Sequence[ContentReference] = ()
) -> tuple[Contamination | None, list[ContentReference]]:
    """Returns what no row may hold, and the files that it was read from; nothing without files.

    Every string of an evaluation file counts, whatever its field is called. `cleared` are the same files as they were
    cleared, where they were named. Raises FailedPreconditionError for a file that cannot be read or is another one: a build
    that was not compared with it must not look as if it had been.
    """
    if not paths:
        return None, []
    contamination = Contamination(words)
    references: list[ContentReference] = []
    held = 0
    for path in paths:
        try:
            with path.open("rb") as file:
                stream, finish = read_through(ContentReference(name=path.name), file, lambda _: None)
                for text in _evaluation_texts(stream):
                    held += len(text)
                    if held > MAX_EVALUATION_CHARACTERS:
                        raise FailedPreconditionError(
                            f"the evaluation file {path.name} and those before it have more than "
                            f"{MAX_EVALUATION_CHARACTERS:,} characters; name fewer in evaluation_files",
                            reason="EVALUATION_FILES_TOO_LONG",
                        )
                    contamination.add(text)
                references.append(finish())
        except (OSError, RecursionError, RowError) as error:
            raise FailedPreconditionError(
                f"the evaluation file {path.name} cannot be read: {error}",
                reason="EVALUATION_FILE_UNREADABLE",
            ) from error
    for named, found in zip(cleared, references, strict=False):
        if named.sha256 and named.sha256 != found.sha256:
            raise FailedPreconditionError(
                f"the evaluation file {named.name} is not the one that was cleared; check the dataset anew",
                reason="EVALUATION_FILE_CHANGED",
            )
    return contamination, references


def _evaluation_texts(stream: BinaryIO) -> Iterator[str]:
    for _, value in json_rows(stream):
        if not isinstance(value, RowError):
            yield from strings_in(value)
        elif value.kind != EMPTY:
            # A line without anything holds nothing that a row could share; any other must be understood.
            raise value


def token_counter(tokenizer: Path) -> Callable[[Row], int]:
    """Returns a function that counts a row's tokens by this tokenizer.json, markers of turns left out."""
    from tokenizers import Tokenizer

    loaded = Tokenizer.from_file(str(tokenizer))

    def count(row: Row) -> int:
        return sum(len(each.ids) for each in loaded.encode_batch(row.texts(), add_special_tokens=False))

    return count


def _total_bytes(spec: DatasetSpec) -> int | None:
    files = [file for source in spec.sources for file in source.files.files]
    known = all(source.HasField("generator") or source.files.files for source in spec.sources)
    return sum(file.bytes for file in files) if files and known else None


def _reference(reference: ContentReference) -> dict[str, Any]:  # Any: JSON
    return {"name": reference.name, "sha256": reference.sha256.hex(), "bytes": reference.bytes}
