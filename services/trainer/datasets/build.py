"""Builds a dataset: reads every source, drops what may not enter, and writes rows, card and manifest once."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Final, cast

from google.protobuf import json_format

from kala.common.v1.reference_pb2 import ContentReference
from kala.errors import FailedPreconditionError
from kala.trainer.v1.dataset_pb2 import (
    BuildDatasetMetadata,
    DatasetReport,
    DatasetSource,
    DatasetSpec,
    SourceCount,
)
from services.trainer.datasets import manifest
from services.trainer.datasets.card import card_of
from services.trainer.datasets.contamination import DEFAULT_WORDS, Contamination
from services.trainer.datasets.draw import Draw
from services.trainer.datasets.duplicates import DEFAULT_SIMILARITY, Duplicates
from services.trainer.datasets.files import Access
from services.trainer.datasets.generators import RELEASE
from services.trainer.datasets.problems import CONTAMINATED, TOO_LONG, FileError, Found, RowError
from services.trainer.datasets.rows import Row
from services.trainer.datasets.sources import Taking, rows_of
from services.trainer.datasets.spec_checks import licence_of

MAX_PROBLEMS: Final = 1_000
MAX_CATEGORIES: Final = 1_000
"""A file whose every row has a category of its own would make a report that no manifest and no message holds."""
OTHER: Final = "other"
_PROGRESS_ROWS: Final = 2_000


TokenCounter = Callable[[Row], int]
"""Returns how many tokens the texts of a row have."""


@dataclass(frozen=True, slots=True)
class Kept:
    """Where a kept row lies in the spool."""

    offset: int
    length: int
    category: str
    subject: str
    tokens: int


@dataclass(slots=True)
class Tools:
    """What a build works with; a check uses the same, so that both find the same."""

    access: Access
    contamination: Contamination | None = None
    contamination_digest: bytes = b""
    tokens: TokenCounter | None = None
    progress: Callable[[BuildDatasetMetadata], None] = lambda _: None
    total_bytes: int | None = None


@dataclass(slots=True)
class Built:
    """What came of a build."""

    report: DatasetReport
    files: Sequence[ContentReference]
    digest: bytes
    card: str
    subjects: Mapping[str, int]


@dataclass(slots=True)
class Reading:
    """Reads the sources of a spec, drops rows and counts; what is kept goes to `keep`."""

    spec: DatasetSpec
    tools: Tools
    keep: Callable[[DatasetSource, Row, int], None]
    limit: int | None = None
    report: DatasetReport = field(default_factory=DatasetReport)
    resolved: dict[str, ContentReference] = field(default_factory=dict)
    damaged: list[str] = field(default_factory=list)
    _read: int = 0
    _bytes: int = 0

    def run(self) -> None:
        """Reads everything, or `limit` rows of each source."""
        spec = self.spec
        similarity = (
            spec.duplicate_similarity if spec.HasField("duplicate_similarity") else DEFAULT_SIMILARITY
        )
        duplicates = Duplicates(similarity)
        compares = any(not source.HasField("generator") for source in spec.sources)
        self.report.contamination_digest = self.tools.contamination_digest
        for source in spec.sources:
            self._one(source, duplicates, compares)
        self._tell("")

    def _one(self, source: DatasetSource, duplicates: Duplicates, compares: bool) -> None:  # noqa: FBT001 - private
        count = self.report.sources.add(source=source.name, licence=licence_of(source))
        self._tell(source.name)
        taking = Taking(self.tools.access, self._advance, self._resolve, self.limit, self._cut)
        for found in rows_of(source, taking):
            count.read += 1 if found.number else 0
            self._read += 1
            if self._read % _PROGRESS_ROWS == 0:
                self._tell(source.name)
            self._judge(source, count, found, duplicates, compares)

    def _judge(
        self,
        source: DatasetSource,
        count: SourceCount,
        found: Found,
        duplicates: Duplicates,
        compares: bool,  # noqa: FBT001 - private
    ) -> None:
        row = found.row
        if row is None:
            count.wrong += 1
            if isinstance(found.problem, FileError):
                self.damaged.append(f"{found.file}: {found.problem.message}")
            self._problem(source, found, found.problem)
            return
        generated = source.HasField("generator")
        tokens = 0
        if duplicates.seen(row, near=compares and not generated):
            count.duplicates += 1
        elif self.tools.contamination is not None and self.tools.contamination.finds(row):
            count.contaminated += 1
            self._problem(source, found, RowError(CONTAMINATED, "it shares text with an evaluation file"))
        elif self.tools.tokens is not None and (tokens := self.tools.tokens(row)) > (
            self.spec.max_tokens or tokens
        ):
            count.too_long += 1
            message = f"it has {tokens:,} tokens; at most {self.spec.max_tokens:,} are taken"
            self._problem(source, found, RowError(TOO_LONG, message))
        else:
            count.kept += 1
            self.keep(source, row, tokens)

    def _problem(self, source: DatasetSource, found: Found, problem: RowError | None) -> None:
        self.report.problem_count += 1
        if problem is not None and len(self.report.problems) < MAX_PROBLEMS:
            self.report.problems.add(
                source=source.name,
                file=found.file,
                row=found.number,
                kind=problem.kind,
                message=problem.message,
            )

    def _advance(self, count: int) -> None:
        self._bytes += count

    def _resolve(self, reference: ContentReference) -> None:
        self.resolved[reference.name] = reference

    def _cut(self) -> None:
        self.report.partial = True

    def _tell(self, source: str) -> None:
        kept = sum(count.kept for count in self.report.sources)
        metadata = BuildDatasetMetadata(
            dataset=self.spec.name, source=source, read=self._read, kept=kept, read_bytes=self._bytes
        )
        if self.tools.total_bytes is not None:
            metadata.total_bytes = self.tools.total_bytes
        self.tools.progress(metadata)


def build(name: str, spec: DatasetSpec, tools: Tools, folder: Path) -> Built:
    """Writes train.jsonl, validation.jsonl, CARD.md and manifest.json into the folder; the same input gives the same bytes.

    Raises FailedPreconditionError for a damaged or changed file and for a source without one right row.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    kept: dict[str, list[Kept]] = {source.name: [] for source in spec.sources}
    with tempfile.TemporaryFile(dir=folder) as file:
        spool = cast("BinaryIO", file)
        offset = 0

        def keep(source: DatasetSource, row: Row, tokens: int) -> None:
            nonlocal offset
            data = (row.line(source.name) + "\n").encode()
            spool.write(data)
            kept[source.name].append(Kept(offset, len(data), row.category, row.subject, tokens))
            offset += len(data)

        reading = Reading(spec, tools, keep)
        reading.run()
        _require_rows(reading)
        _take(spec, kept, reading.report)
        train, validation = _parts(spec, [each for source in spec.sources for each in kept[source.name]])
        _write(spool, train, folder / manifest.TRAIN)
        _write(spool, validation, folder / manifest.VALIDATION)
    report = reading.report
    _count(report, train, validation, tokens=tools.tokens is not None)
    similarity = spec.duplicate_similarity if spec.HasField("duplicate_similarity") else DEFAULT_SIMILARITY
    words = spec.contamination_words or DEFAULT_WORDS
    card = card_of(name, spec, report, similarity=similarity, words=words)
    (folder / manifest.CARD).write_text(card, encoding="utf-8")
    files, digest = manifest.write_manifest(
        folder,
        name,
        json_format.MessageToDict(spec, preserving_proto_field_name=True),
        json_format.MessageToDict(report, preserving_proto_field_name=True),
        RELEASE,
    )
    subjects = Counter(each.subject for each in [*train, *validation] if each.subject)
    return Built(report, files, digest, card, subjects)


def _require_rows(reading: Reading) -> None:
    if reading.damaged:
        raise FailedPreconditionError(f"a file cannot be used: {reading.damaged[0]}", reason="FILE_DAMAGED")
    for count in reading.report.sources:
        if not count.kept:
            first = next((p for p in reading.report.problems if p.source == count.source), None)
            why = "" if first is None else f"; first problem, row {first.row}: {first.message}"
            raise FailedPreconditionError(
                f"source {count.source} gave no row: {count.read} read, {count.wrong} wrong, {count.duplicates} "
                f"duplicates, {count.contaminated} contaminated, {count.too_long} too long{why}",
                reason="SOURCE_WITHOUT_ROWS",
            )


def _take(spec: DatasetSpec, kept: dict[str, list[Kept]], report: DatasetReport) -> None:
    """Keeps at most `max_rows` of each source, chosen by the seed."""
    for source, count in zip(spec.sources, report.sources, strict=True):
        rows = kept[source.name]
        if source.max_rows and len(rows) > source.max_rows:
            order = _shuffled(len(rows), Draw("kala-dataset-take", spec.seed, source.name))
            kept[source.name] = [rows[i] for i in sorted(order[: source.max_rows])]
            count.kept = source.max_rows


def _parts(spec: DatasetSpec, rows: list[Kept]) -> tuple[list[Kept], list[Kept]]:
    order = _shuffled(len(rows), Draw("kala-dataset-order", spec.seed))
    validation = round(len(rows) * spec.validation_share)
    # Rounding must leave both parts a row where there are two.
    if spec.validation_share > 0 and len(rows) > 1:
        validation = min(max(validation, 1), len(rows) - 1)
    return [rows[i] for i in order[validation:]], [rows[i] for i in order[:validation]]


def _shuffled(count: int, draw: Draw) -> list[int]:
    order = list(range(count))
    for last in range(count - 1, 0, -1):
        other = draw.below(last + 1)
        order[last], order[other] = order[other], order[last]
    return order


def _write(spool: BinaryIO, rows: Sequence[Kept], path: Path) -> None:
    with path.open("wb") as file:
        for row in rows:
            spool.seek(row.offset)
            file.write(spool.read(row.length))


def count_categories(report: DatasetReport, rows: Counter[str]) -> None:
    """Writes the rows by category, by name; the smallest of too many are counted together as "other"."""
    del report.categories[:]
    if len(rows) > MAX_CATEGORIES:
        rows = rows.copy()
        # By name among equals, so that the same rows give the same report.
        by_size = sorted(rows, key=lambda category: (-rows[category], category))
        small = [category for category in by_size if category != OTHER][MAX_CATEGORIES - 1 :]
        rows[OTHER] += sum(rows.pop(category) for category in small)
    for category in sorted(rows):
        report.categories.add(category=category, rows=rows[category])


def _count(report: DatasetReport, train: Sequence[Kept], validation: Sequence[Kept], *, tokens: bool) -> None:
    report.train_rows, report.validation_rows = len(train), len(validation)
    count_categories(report, Counter(row.category for row in [*train, *validation]))
    if tokens:
        report.tokens = sum(row.tokens for row in [*train, *validation])
