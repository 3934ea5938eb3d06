"""The judge that asks a guard model, and only about what the judges before it left open.

It raises when there is no verdict in time, whatever the cause, and so nothing is allowed. It keeps no text: verdicts
are remembered by the digest of what was asked, since a conversation is judged again with each turn.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from services.common.deadlines import bounded
from services.ethics.guard.client import Ask, GuardClient
from services.ethics.guard.formats import Found, GuardFormat, PromptKind, Question, Severity
from services.ethics.guard.prompt import Turn, conversation, render
from services.ethics.guard.verdict import Verdict, meant, read_verdict, together
from services.ethics.judge import Evidence, Material, Outcome, Part
from services.ethics.messages import LANGUAGE
from services.ethics.replay import GUARD_PREFIX

DEADLINE_SECONDS: Final = 8.0
"""A guard of 8 B parameters on a CPU answers a short request in some seconds; the gateway gives up on ethics after 10."""

CONCURRENCY: Final = 4
"""Model servers answer one or a few prompts at a time; more at once only makes each of them late."""

MAX_TEXTS: Final = 256
"""Texts in question in one judgement: a conversation of a hundred turns in another language. Its earlier turns are
remembered; a flood of new ones cannot be answered within the deadline anyway."""

REMEMBERED: Final = 4096
"""Verdicts of some 200 bytes each: below 1 MB, and room for some hundred conversations."""

LANGUAGE_RULE: Final = "language:"
"""Begins the rule of an open question that names the languages it is about, as ISO 639-1 codes with commas."""

PLAIN: Final = "plain"
PARTED: Final = "parted"
"""The view in which words run together are parted again; whoever reads the text with care sees them anyway."""


class TooManyTextsError(Exception):
    """More texts are in question than a guard is asked about in one judgement."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How long one judgement may wait, and how many prompts are put to the guard at once by all of them."""

    deadline_seconds: float = DEADLINE_SECONDS
    concurrency: int = CONCURRENCY
    remembered: int = REMEMBERED


@dataclass(frozen=True, slots=True)
class _Doubt:
    """One text in question, and the evidence that left it open."""

    part: Part
    text: str
    questions: tuple[Evidence, ...]


class GuardJudge:
    """Keeps the `Judge` protocol over one guard model in one format."""

    def __init__(
        self,
        guard: GuardFormat,
        client: GuardClient,
        *,
        prompt: PromptKind | None = None,
        limits: Limits | None = None,
    ) -> None:
        self._guard = guard
        self._client = client
        self._prompt = prompt or guard.prompts[0]
        self._limits = limits or Limits()
        self._slots = asyncio.Semaphore(self._limits.concurrency)
        self._remembered: OrderedDict[bytes, Verdict] = OrderedDict()

    @property
    def name(self) -> str:
        """`guard.` and the format's name."""
        return f"{GUARD_PREFIX}{self._guard.name}"

    async def judge(self, material: Material, so_far: Sequence[Evidence]) -> Sequence[Evidence]:
        """What the guard says of every text in question; it is not asked when there is none."""
        doubts = [doubt for doubt in _doubts(material, so_far) if doubt.part.stage in self._guard.stages]
        if not doubts:
            return ()
        if len(doubts) > MAX_TEXTS:
            raise TooManyTextsError(
                f"{len(doubts)} texts are in question, at most {MAX_TEXTS} are asked about"
            )
        # Ended before the call being served is, so that its caller hears of a fault instead of nothing.
        deadline_seconds = bounded(self._limits.deadline_seconds)
        async with asyncio.timeout(deadline_seconds), asyncio.TaskGroup() as group:
            asked = [group.create_task(self._verdict(material, doubt)) for doubt in doubts]
        return [
            item
            for doubt, task in zip(doubts, asked, strict=True)
            for item in self._evidence(doubt, task.result())
        ]

    async def _verdict(self, material: Material, doubt: _Doubt) -> Verdict:
        turns = conversation(material, doubt.part, doubt.text, self._guard.max_chars)
        stage = doubt.part.stage
        async with asyncio.TaskGroup() as group:
            asked = [
                group.create_task(self._answer(question, doubt.part, turns))
                for question in self._guard.questions
                if stage in question.definitions
            ]
        return together([task.result() for task in asked])

    async def _answer(self, question: Question, part: Part, turns: tuple[Turn, ...]) -> Verdict:
        messages = render(self._guard, self._prompt, question, part.stage, turns)
        key = _key(question, messages)
        async with self._slots:
            verdict = self._remembered.get(key)
            if verdict is None:
                reply = await self._client.ask(
                    Ask(messages, self._guard.max_output_tokens, self._guard.logprobs)
                )
                verdict = self._remembered[key] = read_verdict(reply, self._guard, question, part.stage)
            self._remembered.move_to_end(key)
            while len(self._remembered) > self._limits.remembered:
                self._remembered.popitem(last=False)
            return verdict

    def _evidence(self, doubt: _Doubt, verdict: Verdict) -> list[Evidence]:
        found: dict[tuple[str, int | None, str], Evidence] = {}
        for question in doubt.questions:
            for item in self._answers(question, verdict):
                # Two questions about one text need no finding twice; what settles them differs.
                found.setdefault((item.view, item.law, item.category), item)
        return list(found.values())

    def _answers(self, question: Evidence, verdict: Verdict) -> list[Evidence]:
        answer = replace(
            question,
            judge=self.name,
            rule=self._client.model,
            score=verdict.probability,
            is_open=False,
        )
        if verdict.severity is Severity.UNSURE:
            return [replace(answer, outcome=Outcome.ASK_CLARIFICATION)]
        if verdict.severity is Severity.SAFE:
            return [replace(answer, outcome=Outcome.ALLOW)] if self._settles(question) else []
        asked = None if question.law is None else Found(question.law, question.category)
        meanings = (meant(meaning, asked, self._guard.fallback) for meaning in verdict.meanings)
        return [
            replace(answer, law=found.law, category=found.category, outcome=_outcome(found))
            for found in dict.fromkeys(meanings)
        ]

    def _settles(self, question: Evidence) -> bool:
        """Whether this guard's "safe" answers that question at all."""
        if self._guard.only_raise:
            return False
        if question.law is not None:
            return question.law in self._guard.laws
        return question.category == LANGUAGE and self._reads(question.rule)

    def _reads(self, rule: str) -> bool:
        named = rule.removeprefix(LANGUAGE_RULE) if rule.startswith(LANGUAGE_RULE) else ""
        return all(map(self._guard.reads_language, named.split(",")))


def _doubts(material: Material, so_far: Sequence[Evidence]) -> list[_Doubt]:
    """The texts in question, in their order; KeyError for a field or a view that is not in the material."""
    # Turns joined in full are for rules; those who leave questions open read windows of them.
    parts = {part.field: part for part in material.parts if part.extent.is_for_readers}
    open_questions: dict[tuple[str, str], list[Evidence]] = {}
    for item in so_far:
        if item.is_open:
            text = _text_in_question(parts[item.field], item)
            open_questions.setdefault((item.field, text), []).append(item)
    return [
        _Doubt(parts[field], text, tuple(questions)) for (field, text), questions in open_questions.items()
    ]


def _text_in_question(part: Part, question: Evidence) -> str:
    """What the guard is to read: the text as it was written, or what a view showed that is not to be seen in it."""
    if question.category == LANGUAGE:
        # The question is about all of the text, and what is encoded in it may be what is in another language.
        payloads = [view.text for view in part.reading.views if view.name.endswith(f"/{PLAIN}")]
        return "\n\n".join([part.reading.text, *payloads])
    outer, slash, kind = question.view.rpartition("/")
    name = f"{outer}{slash}{PLAIN if kind == PARTED else kind}"
    if name == PLAIN:
        return part.reading.text
    return {view.name: view.text for view in part.reading.views}[name]


def _outcome(found: Found) -> Outcome:
    return Outcome.REDIRECT if found.category == "self_harm" else Outcome.REFUSE


def _key(question: Question, messages: Sequence[Turn]) -> bytes:
    digest = hashlib.sha256()
    for text in (question.name, *(piece for turn in messages for piece in (turn.role, turn.text))):
        data = text.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8) + data)
    return digest.digest()
