"""Everyday requests with short answers, by which a model keeps what it knew while it learns something else."""

from __future__ import annotations

from functools import cache
from typing import Final

from services.trainer.datasets.draw import Draw, opened, templates

KIND: Final = "plain"
_SUM_SHARE: Final = 0.12
_QUESTION_SHARE: Final = 0.45


def plain_request(draw: Draw) -> tuple[str, str]:
    """Draws a request and its answer."""
    words = templates("plain")
    if draw.chance(_SUM_SHARE):
        asked, answer = _sum(draw)
    elif draw.chance(_QUESTION_SHARE):
        question = draw.choice(words["questions"])
        asked, answer = draw.text(draw.choice(question["asks"])), question["answer"]
    else:
        asks, written, key, value = draw.choice(_items())
        slots = {"k": key, "v": value}
        asked, answer = draw.text(draw.choice(asks), slots), draw.text(written, slots)
        answer = answer[:1].upper() + answer[1:]
    if asked[-1] not in "?.!":
        asked += draw.choice(("", "?", ".", "."))
    return opened(draw, draw.choice(words["openings"]), asked) + draw.choice(words["closings"]), answer


@cache
def _items() -> tuple[tuple[tuple[str, ...], str, str, str], ...]:
    """Every item of every table alike: a table of many is asked more often than one of few."""
    return tuple(
        (tuple(table["asks"]), table["answer"], key, value)
        for table in templates("plain")["tables"]
        for key, value in table["items"]
    )


def _sum(draw: Draw) -> tuple[str, str]:
    entry = draw.choice(templates("plain")["sums"])
    a, b = draw.between(1, entry["most"]), draw.between(1, entry["most"])
    if entry["kind"] == "difference":
        a, b = max(a, b), min(a, b)
    results = {"sum": a + b, "difference": a - b, "product": a * b}
    slots = {"a": str(a), "b": str(b), "c": str(results[entry["kind"]])}
    return draw.text(draw.choice(entry["asks"]), slots), draw.text(entry["answer"], slots)
