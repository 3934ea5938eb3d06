"""A judge that reads like the classifier: it finds words anywhere in a text, waits when told to, and fails on demand."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

from services.ethics.judge import Evidence, Material, Outcome, Part

FORBIDDEN = "zebra"
DOUBTFUL = "maybe"
BROKEN = "kaboom"


@dataclass
class ReadingJudge:
    """Refuses FORBIDDEN, leaves DOUBTFUL open, raises on BROKEN; joins in full and names are not for it."""

    name: str = "reading"
    gate: asyncio.Event | None = None
    """Waited for before each answer."""
    read: list[Part] = field(default_factory=list)
    waiting: int = 0
    asked: int = 0
    """How often, whatever the number of parts."""

    async def judge(self, material: Material, so_far: Sequence[Evidence]) -> Sequence[Evidence]:
        del so_far
        parts = [part for part in material.parts if part.extent.is_for_readers]
        self.read += parts
        self.asked += 1
        if self.gate is not None:
            self.waiting += 1
            try:
                await self.gate.wait()
            finally:
                self.waiting -= 1
        if any(BROKEN in part.reading.text for part in parts):
            raise RuntimeError(BROKEN)
        return [self._evidence(part) for part in parts]

    def _evidence(self, part: Part) -> Evidence:
        plain = part.reading.views[0]
        text = plain.text
        if FORBIDDEN in text:
            start = text.index(FORBIDDEN)
            return self._said(part, Outcome.REFUSE, *plain.locate(start, start + len(FORBIDDEN)), 0.9)
        if DOUBTFUL in text:
            return self._said(part, Outcome.ASK_CLARIFICATION, 0, len(text), 0.5, is_open=True)
        return self._said(part, Outcome.ALLOW, 0, len(text), 0.1)

    def _said(
        self, part: Part, outcome: Outcome, start: int, end: int, score: float, *, is_open: bool = False
    ) -> Evidence:
        return Evidence(
            self.name, 2, "crime.theft", outcome, "rule", part.field, start, end, "plain", score, is_open
        )


@dataclass
class SettlingJudge:
    """A guard: settles what another judge left open, as harmless or not."""

    outcome: Outcome
    name: str = "guard.settling"
    asked: int = 0

    async def judge(self, material: Material, so_far: Sequence[Evidence]) -> Sequence[Evidence]:
        del material
        questions = [item for item in so_far if item.is_open]
        self.asked += len(questions)
        return [
            Evidence(self.name, item.law, item.category, self.outcome, "rule", item.field, item.start, item.end,
                     item.view, 0.8)
            for item in questions
        ]  # fmt: skip
