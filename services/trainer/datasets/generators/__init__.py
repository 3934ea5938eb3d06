"""Rows of this project's own templates, one category each; the same seed gives the same rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Final

from kala.errors import InvalidArgumentError
from services.trainer.datasets.draw import Draw
from services.trainer.datasets.generators.benign import benign_row
from services.trainer.datasets.generators.conflicts import conflict_row
from services.trainer.datasets.generators.conversations import conversation_row
from services.trainer.datasets.generators.derivations import derivation_row
from services.trainer.datasets.generators.held_apart import is_gates_question
from services.trainer.datasets.generators.laws import law_rows
from services.trainer.datasets.generators.research import (
    experiment_row,
    refactoring_row,
    trade_off_row,
    uncertainty_row,
)
from services.trainer.datasets.generators.tasks import task_row
from services.trainer.datasets.rows import Row

MAX_ROWS: Final = 1_000_000
# Draws in a row that may repeat earlier rows before the templates count as used up.
_REPEATS: Final = 2_000
_DIGEST_BYTES: Final = 16
# Named in the seed, so that another release's templates cannot pass for these.
RELEASE: Final = "kala-generators-v1"

GENERATORS: Final[Mapping[str, Callable[[Draw], Row]]] = {
    **{f"law_{law}": partial(law_rows, law) for law in range(5)},
    "conflict": conflict_row,
    "benign": benign_row,
    "multi_turn": conversation_row,
    "experiment_design": experiment_row,
    "refactoring": refactoring_row,
    "derivation": derivation_row,
    "trade_offs": trade_off_row,
    "uncertainty": uncertainty_row,
    "template_task": task_row,
}
"""By category, how one row is drawn."""


def generate(category: str, rows: int, seed: int) -> Iterator[Row]:
    """Yields this many different rows; raises InvalidArgumentError where the templates do not give as many.

    Fewer rows of the same seed are the beginning of more.
    """
    make = GENERATORS.get(category)
    if make is None:
        raise InvalidArgumentError("generator.category", f"must be one of {', '.join(GENERATORS)}")
    if not 1 <= rows <= MAX_ROWS:
        raise InvalidArgumentError("generator.rows", f"must be 1 to {MAX_ROWS:,}")
    draw = Draw(RELEASE, category, seed)
    seen: set[bytes] = set()
    repeats = 0
    while len(seen) < rows:
        row = make(draw)
        digest = row.digest()[:_DIGEST_BYTES]
        if digest in seen or is_gates_question(row):
            repeats += 1
            if repeats == _REPEATS:
                raise InvalidArgumentError(
                    "generator.rows",
                    f"must be at most about {len(seen):,}: {category} has no more different rows",
                )
            continue
        repeats = 0
        seen.add(digest)
        yield row
