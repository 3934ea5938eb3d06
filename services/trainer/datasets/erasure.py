"""Writes a dataset again without the rows of one person."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from google.protobuf import json_format

from kala.common.v1.reference_pb2 import ContentReference
from kala.trainer.v1.dataset_pb2 import Dataset
from services.trainer.datasets import manifest
from services.trainer.datasets.build import count_categories

_NOTE: Final = "\n## Erasure\n\nRows of a person were erased from an earlier version; its counts of sources are those of the build.\n"


def without_subject(
    source: Path, target: Path, old: Dataset, name: str, subject: str
) -> tuple[Dataset, Mapping[str, int]] | None:
    """Writes the files again under a new name; returns the new dataset with the persons left in it.

    None when no row to train on would be left. Rows are copied as they stand, never parsed into something else.
    """
    target.mkdir(mode=0o700, parents=True)
    left: Counter[str] = Counter()
    categories: Counter[str] = Counter()
    rows = {
        file: _filtered(source / file, target / file, subject, left, categories)
        for file in (manifest.TRAIN, manifest.VALIDATION)
    }
    if not rows[manifest.TRAIN]:
        shutil.rmtree(target)
        return None
    new = Dataset()
    new.CopyFrom(old)
    new.name = name
    new.report.train_rows = rows[manifest.TRAIN]
    new.report.validation_rows = rows[manifest.VALIDATION]
    # Tokens are not counted again: a number that may be wrong is worse than none.
    new.report.ClearField("tokens")
    count_categories(new.report, categories)
    new.card = old.card.replace(old.name, name, 1) + _NOTE
    (target / manifest.CARD).write_text(new.card, encoding="utf-8")
    opened = json.loads((source / manifest.MANIFEST).read_bytes())
    files, new.digest = manifest.write_manifest(
        target,
        name,
        opened.get("spec", {}),
        json_format.MessageToDict(new.report, preserving_proto_field_name=True),
        opened.get("generators", ""),
    )
    del new.files[:]
    new.files.extend(files)
    written = next(each for each in files if each.name == manifest.MANIFEST)
    new.reference.CopyFrom(ContentReference(name=name, sha256=written.sha256, bytes=written.bytes))
    return new, left


def _filtered(source: Path, target: Path, subject: str, left: Counter[str], categories: Counter[str]) -> int:
    kept = 0
    with source.open("rb") as lines, target.open("wb") as file:
        for line in lines:
            row = json.loads(line)
            person = row.get("subject", "")
            if person == subject:
                continue
            kept += 1
            categories[row.get("category", "")] += 1
            if person:
                left[person] += 1
            file.write(line)
    return kept
