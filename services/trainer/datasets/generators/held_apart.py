"""The gates' own questions, which no generated row may ask: a question that was learned measures nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from importlib.resources import files
from typing import Final

from services.trainer.datasets.rows import Row

_SUITES: Final = "services.trainer.evaluation"
_EDGES: Final = " .?!"
_STOPS: Final = (".", "?", "!", ":", ",")
# A shorter one ("Hello!") is part of too much else to count within a longer text.
_FEWEST_WORDS: Final = 4


def is_gates_question(row: Row) -> bool:
    """Says whether a turn of the user's asks a gate's question, whatever its case and marks, a greeting or a thank-you."""
    asked = [message.content for message in (*row.messages, *row.prompt) if message.role == "user"]
    return any(part in _questions() for text in asked for part in _parts(text))


def _parts(text: str) -> Iterator[str]:
    """Yields the text, and whatever long enough part of it stands between marks."""
    yield _plain(text)
    words = text.split()
    starts = [0, *(n for n, word in enumerate(words[:-1], start=1) if word.endswith(_STOPS))]
    ends = [*(n for n, word in enumerate(words, start=1) if word.endswith(_STOPS)), len(words)]
    for start in starts:
        yield from (_plain(" ".join(words[start:end])) for end in ends if end - start >= _FEWEST_WORDS)


@cache
def _questions() -> frozenset[str]:
    found = set()
    for path in files(_SUITES).joinpath("suites").iterdir():
        if path.name.endswith(".jsonl"):
            items = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
            asked = [item["text"] for item in items if isinstance(item.get("text"), str)]
            wrappers = ["{text}", *items[0].get("wrappers", ())]
            found |= {_plain(wrapper.replace("{text}", text)) for wrapper in wrappers for text in asked}
    return frozenset(found)


def _plain(text: str) -> str:
    return text.casefold().strip(_EDGES)
