"""A judge of drafts whose verdicts a test writes into the texts."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

from kala.errors import UnavailableError
from services.trainer.training.constitutional.verdicts import Law, Verdict

LAWS = {
    number: Law(number, name, f"KALA shall keep law {number}.")
    for number, name in enumerate(("Risk", "Safety", "Obedience", "Self", "Equality"))
}


@dataclass
class WordJudge:
    """`law-N` in a text breaks law N; `outlaw` breaks one that is not named."""

    asked_requests: list[str] = field(default_factory=list)
    asked_outputs: list[tuple[str, str]] = field(default_factory=list)
    is_down: bool = False

    async def laws(self) -> dict[int, Law]:
        return LAWS

    async def requests(self, texts: Sequence[str]) -> list[Verdict]:
        self.asked_requests += texts
        return [self._verdict(text) for text in texts]

    async def outputs(self, texts: Sequence[tuple[str, str]]) -> list[Verdict]:
        self.asked_outputs += texts
        return [self._verdict(text) for _, text in texts]

    def _verdict(self, text: str) -> Verdict:
        if self.is_down:
            raise UnavailableError("down")
        law = next((number for number in range(5) if f"law-{number}" in text), None)
        bad = law is not None or "outlaw" in text
        decision = hashlib.sha256(text.encode()).hexdigest()[:32]
        return Verdict(decision, not bad, law, "harm.test" if bad else "", "cc" * 32)
