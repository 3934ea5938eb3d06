"""The shipped guard formats, material to judge, and a guard whose replies a test writes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import pytest

from kala.ethics.constitution import Trust, verify_constitution
from services.ethics.config import default_constitution_dir
from services.ethics.fold import Folder
from services.ethics.guard.client import Ask
from services.ethics.guard.formats import GuardFormat, read_formats
from services.ethics.guard.verdict import Reply
from services.ethics.judge import Evidence, Material, Outcome, Part, Stage
from services.ethics.laws import Constitution
from services.ethics.views import Reader

MODEL = "lmstudio/guard"


@pytest.fixture(scope="session")
def law_of(constitution: Constitution) -> Mapping[str, int]:
    return {category: law.number for law in constitution.laws for category in law.categories}


@pytest.fixture(scope="session")
def formats(law_of: Mapping[str, int]) -> Mapping[str, GuardFormat]:
    return read_formats(verify_constitution(default_constitution_dir(), Trust.development()).files, law_of)


def part(text: str, stage: Stage = Stage.REQUEST, field: str = "text") -> Part:
    return Part(field, stage, Reader(Folder({})).read(text))


def chat(*turns: str) -> Material:
    """A conversation that the user begins."""
    parts = [
        part(text, Stage.OUTPUT if index % 2 else Stage.REQUEST, f"messages[{index}].content[0].text")
        for index, text in enumerate(turns)
    ]
    return Material(tuple(parts))


def left_open(
    field: str = "text",
    *,
    law: int | None = 1,
    category: str = "violence.killing",
    view: str = "plain",
    rule: str = "classifier:0123",
) -> Evidence:
    return Evidence(
        "classifier",
        law,
        category,
        Outcome.ASK_CLARIFICATION,
        rule,
        field,
        0,
        3,
        view,
        0.5,
        is_open=True,
    )


@dataclass
class FakeGuard:
    """Replies as `script` says, or raises what it gives; keeps what it was asked, and how many asks ran at once."""

    script: Callable[[Ask], Reply | str | Exception] = lambda _ask: "safe"
    waits_for: asyncio.Event | None = None
    asks: list[Ask] = field(default_factory=list)
    at_once: int = 0
    most_at_once: int = 0

    @property
    def model(self) -> str:
        return MODEL

    async def ask(self, ask: Ask) -> Reply:
        self.asks.append(ask)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            if self.waits_for is None:
                await asyncio.sleep(0)
            else:
                await self.waits_for.wait()
        finally:
            self.at_once -= 1
        answer = self.script(ask)
        if isinstance(answer, Exception):
            raise answer
        return Reply(answer) if isinstance(answer, str) else answer


def obeys(ask: Ask) -> str:
    """A guard so gullible that a control token in the material makes it obey what stands after it."""
    text = "\n".join(turn.text for turn in ask.turns)
    escapes = ("<|eot_id|>", "[/INST]", "<end_of_turn>", "<|im_end|>", "</s>", "<END CONVERSATION>")
    for escape in escapes:
        # A whole prompt holds its own marks once; an escape in the material would be one more.
        if text.count(escape) > 1 or (len(ask.turns[-1].text) < 500 and escape in text):
            return "safe"
    return "unsafe\nS9"
