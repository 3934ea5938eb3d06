"""Who judges when a recorded decision is repeated: the same judges, but for guards, whose recorded words stand in for them.

A guard is a model on some backend; it need not answer the same twice, and it may be gone. What it said is in the record.
Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from kala.errors import FailedPreconditionError
from services.ethics.judge import Evidence, Judge, Material
from services.ethics.judgement import failed_line

GUARD_PREFIX: Final = "guard."


@dataclass(frozen=True, slots=True)
class Recorded:
    """What a replay needs of a recorded decision: who was asked, what the path says, and what the guards saw."""

    judges: tuple[str, ...]
    path: tuple[str, ...]
    guard_evidence: tuple[Evidence, ...]


class RecordedGuardError(Exception):
    """A guard failed when the decision was made, and so it fails again."""


class RecordedGuard:
    """Says what a guard said then."""

    def __init__(self, name: str, recorded: Recorded) -> None:
        self._name = name
        self._failed = failed_line(name) in recorded.path
        self._evidence = tuple(item for item in recorded.guard_evidence if item.judge == name)

    @property
    def name(self) -> str:
        """The guard's own name."""
        return self._name

    async def judge(self, material: Material, so_far: Sequence[Evidence]) -> Sequence[Evidence]:
        """The recorded evidence, whatever the material."""
        del material, so_far
        if self._failed:
            raise RecordedGuardError(self._name)
        return self._evidence


def judges_of(seated: Sequence[Judge], recorded: Recorded | None) -> list[Judge]:
    """The judges that repeat a decision, in the recorded order; FailedPreconditionError names one that is not at hand.

    Without a record, or in one that names no judge, it is all that are seated but the guards.
    """
    at_hand = {judge.name: judge for judge in seated if not is_guard(judge.name)}
    if recorded is None or not recorded.judges:
        return list(at_hand.values())
    chosen: list[Judge] = []
    for name in recorded.judges:
        if is_guard(name):
            chosen.append(RecordedGuard(name, recorded))
        elif name in at_hand:
            chosen.append(at_hand[name])
        else:
            raise FailedPreconditionError(f"judge {name} is not at hand")
    return chosen


def left_out(seated: Sequence[Judge], recorded: Recorded | None) -> list[str]:
    """The judges of the constitution that a record does not name: nobody vouches for what they would have said."""
    if recorded is None or not recorded.judges:
        return []
    return [judge.name for judge in seated if not is_guard(judge.name) and judge.name not in recorded.judges]


def is_guard(name: str) -> bool:
    """Whether a judge of this name is a model elsewhere."""
    return name.startswith(GUARD_PREFIX)
