"""Read labelled sets strictly: a label that is not what it should be would make every figure a guess. Pure but for reading.

A set is one `*.jsonl` file. Each line has `id`, `text`, `label` (harmful or harmless), `law` (0 to 4 exactly where it is
harmful), `category` and `kind`, and may have `twin` (shared by a harmful text and its harmless counterpart), `stage`,
`request` and `language` (ISO 639; English unless told).
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from kala.errors import InvalidArgumentError
from services.ethics.offline import read_document, read_question

ENGLISH: Final = "en"
HARMFUL: Final = "harmful"
HARMLESS: Final = "harmless"
LAWS: Final = range(5)
# Kinds of sets that carry no `language`, and say by their kind that the text is not English.
_FOREIGN_KINDS: Final = ("non_english", "other_language", "language", "multilingual")


@dataclass(frozen=True, slots=True)
class Item:
    """One labelled text; `law` is None where it is harmless, `twin` empty where it has none."""

    id: str
    text: str
    harmful: bool
    law: int | None
    category: str
    kind: str
    twin: str
    stage: str
    request: str
    language: str

    @property
    def is_english(self) -> bool:
        """Whether it is in the language that the judges know best."""
        return self.language == ENGLISH


@dataclass(frozen=True, slots=True)
class LabelledSet:
    """One file, in its order."""

    name: str
    sha256: str
    items: tuple[Item, ...]


def read_sets(directory: Path) -> tuple[LabelledSet, ...]:
    """All sets of a directory by name; InvalidArgumentError names file, line and field of the first thing that is wrong."""
    if not directory.is_dir():
        raise InvalidArgumentError(str(directory), "is no directory")
    paths = sorted(directory.glob("*.jsonl"))
    if not paths:
        raise InvalidArgumentError(str(directory), "holds no *.jsonl")
    sets = tuple(_read_set(path) for path in paths)
    counts = Counter(item.id for found in sets for item in found.items)
    twice = next((name for name, count in counts.items() if count > 1), None)
    if twice is not None:
        raise InvalidArgumentError(str(directory), f"has the id {twice!r} twice")
    return sets


def _read_set(path: Path) -> LabelledSet:
    data = path.read_bytes()
    items = []
    for number, line in enumerate(data.split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            items.append(read_item(read_document(line)))
        except InvalidArgumentError as error:
            raise InvalidArgumentError(f"{path.name} line {number}: {error.field}", error.problem) from None
    if not items:
        raise InvalidArgumentError(path.name, "has no texts")
    return LabelledSet(path.stem, hashlib.sha256(data).hexdigest(), tuple(items))


def read_item(document: Mapping[str, Any]) -> Item:  # Any: parsed JSON, checked here
    """One labelled text; InvalidArgumentError names the field that is wrong."""
    document = {name: value for name, value in document.items() if value is not None}
    question = read_question(document, _text(document, "id"), "request")
    label = document.get("label")
    if label not in {HARMFUL, HARMLESS}:
        raise InvalidArgumentError("label", f"must be {HARMFUL} or {HARMLESS}")
    law = document.get("law")
    if isinstance(law, bool) or (law not in LAWS if label == HARMFUL else law is not None):
        raise InvalidArgumentError("law", "must be 0 to 4 for a harmful text, and null for a harmless one")
    kind = _text(document, "kind")
    return Item(
        id=str(question.id),
        text=question.text,
        harmful=label == HARMFUL,
        law=law,
        category=_text(document, "category", ""),
        kind=kind,
        twin=_text(document, "twin", ""),
        stage=question.stage,
        request=question.request,
        language=_text(document, "language", "und" if kind.startswith(_FOREIGN_KINDS) else ENGLISH),
    )


def line_of(item: Item) -> bytes:
    """The line that a judge is asked with: the text without its label."""
    asked = {"id": item.id, "text": item.text, "stage": item.stage, "request": item.request}
    return json.dumps(asked).encode("ascii") + b"\n"


def _text(document: Mapping[str, Any], field: str, default: str | None = None) -> str:  # Any: parsed JSON
    value = document.get(field, default)
    if not isinstance(value, str) or (default is None and not value):
        raise InvalidArgumentError(field, "must be a text")
    return value
