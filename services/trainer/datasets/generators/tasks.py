"""A new task from templates with answers that can be checked: what the demonstration's adapter learns."""

from __future__ import annotations

import hashlib
from functools import cache
from typing import Final, Literal

from services.trainer.datasets.draw import Draw, capitalised, templates
from services.trainer.datasets.rows import Row, conversation

CATEGORY: Final = "template_task"
Part = Literal["train", "held_out"]
# One combination of wording and item in so many is never trained on.
HELD_OUT_SHARE: Final = 5
_SPLIT_DOMAIN: Final = "kala-template-task-v1"


@cache
def _combinations(part: Part) -> tuple[tuple[str, str, str, str], ...]:
    return tuple(
        (task, wording, item, entry["answer"].replace("{label}", label))
        for task, entry in templates("tasks")["tasks"].items()
        for wording in entry["wordings"]
        for label, items in entry["items"].items()
        for item in items
        if part_of(wording, item) == part
    )


def part_of(wording: str, item: str) -> Part:
    """Says whether a combination may be trained on; its digest alone decides, so no seed can move it."""
    digest = hashlib.sha256(f"{_SPLIT_DOMAIN}\0{wording}\0{item}".encode()).digest()
    return "held_out" if digest[0] % HELD_OUT_SHARE == 0 else "train"


def task_row(draw: Draw, part: Part = "train") -> Row:
    """Draws one question of this part with its answer."""
    task, wording, item, answer = draw.choice(_combinations(part))
    asked = draw.choice(templates("tasks")["openings"]) + wording.replace("{item}", item)
    if draw.chance(0.5):
        asked = capitalised(asked)
    return conversation(CATEGORY, asked, answer, facts={"task": task, "item": item})


def held_out_rows(rows: int, seed: int) -> list[Row]:
    """Returns this many different questions of the held-out part; raises ValueError where there are not so many."""
    draw = Draw("kala-held-out-v1", seed)
    found: dict[bytes, Row] = {}
    for _ in range(rows * 100):
        row = task_row(draw, "held_out")
        found.setdefault(row.digest(), row)
        if len(found) == rows:
            return list(found.values())
    raise ValueError(f"the held-out part has no {rows} different questions")
