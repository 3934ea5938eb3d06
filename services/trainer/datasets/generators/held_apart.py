"""The gates' own questions, which no generated row may ask: a question that was learned measures nothing."""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files
from typing import Final

from services.trainer.datasets.rows import Row

_SUITES: Final = "services.trainer.evaluation"
_EDGES: Final = " .?!"


def is_gates_question(row: Row) -> bool:
    """Says whether a turn of the user's is a question of a gate, whatever its case and its last mark."""
    asked = [message.content for message in (*row.messages, *row.prompt) if message.role == "user"]
    return any(_plain(text) in _questions() for text in asked)


@cache
def _questions() -> frozenset[str]:
    found = set()
    for path in files(_SUITES).joinpath("suites").iterdir():
        if path.name.endswith(".jsonl"):
            items = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
            found |= {_plain(item["text"]) for item in items if isinstance(item.get("text"), str)}
    return frozenset(found)


def _plain(text: str) -> str:
    return text.casefold().strip(_EDGES)
