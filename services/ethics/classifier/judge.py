"""The judge over the trained classifier: every text of the material, in its views and windows, and its language.

It refuses what is surely harmful, leaves open what is not sure either way, and says how sure it was of the rest.
Text in a language that it was not trained on is an open question: it is never allowed in silence.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from services.ethics.classifier.calibration import LAWS, Calibration
from services.ethics.classifier.classifier import Classifier, Question, Scores
from services.ethics.classifier.language import Languages
from services.ethics.classifier.passes import MAX_TOKENS, Pass, Plan, Planner
from services.ethics.fold import Folder
from services.ethics.judge import Evidence, Extent, Material, Outcome, Part, Ratings, Stage
from services.ethics.messages import LANGUAGE, TOO_LONG

NAME: Final = "classifier"
JAILBREAK: Final = "integrity.jailbreak"
INJECTION: Final = "integrity.prompt_injection"
UNREAD: Final = "integrity.encoded_instructions"
# The law of all three.
INTEGRITY: Final = 3
SELF_HARM: Final = "self_harm"
AMBIGUOUS: Final = 2
# Longer material is planned on a thread, so that other calls go on.
INLINE_CHARS: Final = 4_000


_UNPLANNED: Final = Plan((), (), (), is_cut=True)


@dataclass(frozen=True, slots=True)
class _Answer:
    """One pass with what the classifier says of it."""

    asked: Pass
    scores: Scores


@dataclass(frozen=True, slots=True)
class _Read:
    """One part with its plan, the spans in other languages, and the answers."""

    part: Part
    plan: Plan
    foreign: tuple[tuple[int, int], ...]
    answers: tuple[_Answer, ...] = ()


class ClassifierJudge:
    """Keeps the `Judge` protocol; one belongs to one verified constitution."""

    def __init__(self, classifier: Classifier, folder: Folder) -> None:
        self._classifier = classifier
        self._planner = Planner(classifier.tokenizer)
        self._languages = Languages(self._planner.vocabulary, folder)

    @property
    def name(self) -> str:
        """Always "classifier"."""
        return NAME

    async def judge(self, material: Material, so_far: Sequence[Evidence]) -> Sequence[Evidence]:
        """All evidence that is not ALLOW, or one ALLOW with the top score when there is none."""
        del so_far
        found: list[Evidence] = []
        quiet: list[Evidence] = []
        for read in await self._read(material):
            verdict = _Verdict(read, self._classifier.calibration)
            found += verdict.evidence()
            quiet += verdict.strongest()
        if found:
            return found
        return sorted(quiet, key=lambda item: -item.score)[:1]

    async def rate(self, material: Material) -> Ratings:
        """The highest probability of any pass for every law and category."""
        calibration = self._classifier.calibration
        laws = [0.0] * LAWS
        categories = dict.fromkeys(calibration.categories, 0.0)
        for read in await self._read(material):
            for answer in read.answers:
                rated = _ratings(answer.scores, read.part.stage, calibration)
                laws = [max(pair) for pair in zip(laws, rated.laws, strict=True)]
                for category, score in rated.categories.items():
                    categories[category] = max(categories.get(category, 0.0), score)
        return Ratings(tuple(laws), categories)

    async def _read(self, material: Material) -> list[_Read]:
        chars = sum(len(part.reading.text) for part in material.parts)
        if chars > INLINE_CHARS:
            planned = await asyncio.to_thread(self._plan, material)
        else:
            planned = self._plan(material)
        questions = [
            Question(asked.text, read.part.stage, read.part.context)
            for read in planned
            for asked in read.plan.passes
        ]
        answers = iter(await self._classifier.ask(questions))
        return [
            _Read(
                read.part,
                read.plan,
                read.foreign,
                tuple(_Answer(asked, next(answers)) for asked in read.plan.passes),
            )
            for read in planned
        ]

    def _plan(self, material: Material) -> list[_Read]:
        """What to read of every part; past the bound on tokens nothing is read, which its plan says."""
        planned: list[_Read] = []
        left = MAX_TOKENS
        for part in material.parts:
            # A join in full is for rules; the same turns come as windows too. So are names that no model reads.
            if not part.extent.is_for_readers:
                continue
            # What comes after too much is not even planned: it is refused already.
            plan = self._planner.plan(part) if left >= 0 else _UNPLANNED
            left -= plan.tokens
            if left < 0 and plan is not _UNPLANNED:
                plan = Plan((), plan.views, plan.unread, is_cut=True)
            # What stands in a window stands in its turns, which are parts of their own.
            is_whole = part.extent is Extent.WHOLE and plan is not _UNPLANNED
            foreign = self._languages.foreign(part.reading, plan.views) if is_whole else ()
            planned.append(_Read(part, plan, foreign))
        return planned


class _Verdict:
    """What one part comes to."""

    def __init__(self, read: _Read, calibration: Calibration) -> None:
        self._read = read
        self._part = read.part
        self._calibration = calibration
        self._limits = calibration.thresholds

    def evidence(self) -> list[Evidence]:
        """Everything that is not plainly harmless, the strongest of each kind."""
        found: dict[tuple[int | None, str, Outcome, str], Evidence] = {}
        for item in (*self._unread(), *self._foreign(), *self._said()):
            # What is left open in one view is not settled by an answer about another.
            kind = (item.law, item.category, item.outcome, item.view if item.is_open else "")
            if kind not in found or item.score > found[kind].score:
                found[kind] = item
        refused = any(item.outcome in {Outcome.REFUSE, Outcome.REDIRECT} for item in found.values())
        # Where a part is refused, what was left open in it does not matter any more.
        return [item for item in found.values() if not (refused and item.is_open and item.law is not None)]

    def strongest(self) -> list[Evidence]:
        """ALLOW with the highest score; nothing for a part without passes."""
        answers = self._read.answers
        if not answers:
            return []
        if self._part.stage is Stage.TOOL_RESULT:
            top = max(answers, key=lambda answer: answer.scores.injection)
            return [self._evidence(top, INTEGRITY, INJECTION, Outcome.ALLOW, top.scores.injection)]
        top = max(answers, key=lambda answer: answer.scores.unsafe)
        law, category = self._law_of(top.scores)
        return [self._evidence(top, law, category, Outcome.ALLOW, top.scores.unsafe)]

    def _said(self) -> list[Evidence]:
        found: list[Evidence] = []
        for answer in self._read.answers:
            scores = answer.scores
            if self._part.stage is Stage.TOOL_RESULT:
                # A document may be about anything; only what it says to the assistant counts.
                if scores.injection >= self._limits.injection:
                    found.append(
                        self._evidence(answer, INTEGRITY, INJECTION, Outcome.REFUSE, scores.injection)
                    )
                continue
            if self._part.stage is Stage.REQUEST and scores.jailbreak >= self._jailbreak(answer.asked):
                found.append(self._attack(answer))
            found += self._content(answer)
        return found

    def _attack(self, answer: _Answer) -> Evidence:
        """An attempt to switch rules off; beside a payload that nobody can read the question is what that says."""
        is_unread = bool(self._part.reading.opaque)
        outcome = Outcome.ASK_CLARIFICATION if is_unread else Outcome.REFUSE
        category = UNREAD if is_unread else JAILBREAK
        return self._evidence(answer, INTEGRITY, category, outcome, answer.scores.jailbreak)

    def _content(self, answer: _Answer) -> list[Evidence]:
        scores = answer.scores
        law, category = self._law_of(scores)
        refuse, uncertain = self._band(answer.asked, law)
        if scores.unsafe >= refuse:
            outcome = Outcome.REDIRECT if category == SELF_HARM else Outcome.REFUSE
            return [self._evidence(answer, law, category, outcome, scores.unsafe)]
        if scores.unsafe >= uncertain:
            is_ambiguous = scores.intents[AMBIGUOUS] >= self._limits.ambiguous
            outcome = Outcome.ASK_CLARIFICATION if is_ambiguous else Outcome.ALLOW
            return [self._evidence(answer, law, category, outcome, scores.unsafe, is_open=True)]
        return []

    def _band(self, asked: Pass, law: int) -> tuple[float, float]:
        """From which probability on this pass is refused, and from which on it is a question."""
        if self._part.stage is Stage.OUTPUT:
            return self._limits.output_refuse, self._limits.output_uncertain
        limit = self._limits.window_refuse if self._is_window(asked) else self._limits.refuse[law]
        return limit, self._limits.uncertain

    def _jailbreak(self, asked: Pass) -> float:
        """From which probability on this pass is an attempt to switch rules off."""
        limits = self._limits
        return max(limits.jailbreak, limits.window_refuse) if self._is_window(asked) else limits.jailbreak

    def _is_window(self, asked: Pass) -> bool:
        return asked.is_window or self._part.extent is Extent.WINDOW

    def _law_of(self, scores: Scores) -> tuple[int, str]:
        """The likeliest law, and the likeliest category of that law."""
        law = max(range(LAWS), key=scores.laws.__getitem__)
        category = max(
            (number for number, of in enumerate(self._calibration.category_laws) if of == law),
            key=scores.categories.__getitem__,
        )
        return law, self._calibration.categories[category]

    def _unread(self) -> list[Evidence]:
        """What was left unread, for there was too much of it."""
        length = len(self._part.reading.text)
        found = []
        if self._read.plan.is_cut:
            found.append(self._whole(None, TOO_LONG, Outcome.REFUSE, "plain", length))
        if self._read.plan.unread and self._part.stage is Stage.REQUEST:
            view = self._read.plan.unread[0].name
            found.append(self._whole(INTEGRITY, UNREAD, Outcome.ASK_CLARIFICATION, view, length))
        return found

    def _foreign(self) -> list[Evidence]:
        if not self._read.foreign:
            return []
        # Documents and answers are not what is asked for: their language is noted, and a guard model may read them.
        is_request = self._part.stage is Stage.REQUEST
        outcome = Outcome.ASK_CLARIFICATION if is_request else Outcome.ALLOW
        start, end = self._read.foreign[0]
        rule = self._calibration.rule
        return [
            Evidence(NAME, None, LANGUAGE, outcome, rule, self._part.field, start, end, "plain", is_open=True)
        ]

    def _whole(self, law: int | None, category: str, outcome: Outcome, view: str, length: int) -> Evidence:
        rule = self._calibration.rule
        return Evidence(NAME, law, category, outcome, rule, self._part.field, 0, length, view)

    def _evidence(
        self,
        answer: _Answer,
        law: int,
        category: str,
        outcome: Outcome,
        score: float,
        *,
        is_open: bool = False,
    ) -> Evidence:
        asked = answer.asked
        return Evidence(
            NAME,
            law,
            category,
            outcome,
            self._calibration.rule,
            self._part.field,
            asked.start,
            asked.end,
            asked.view,
            score,
            is_open,
        )


def _ratings(scores: Scores, stage: Stage, calibration: Calibration) -> Ratings:
    """Unsafe, of that law, of that category; and how surely it is an attack on the rules."""
    if stage is Stage.TOOL_RESULT:
        laws = [0.0] * LAWS
        laws[INTEGRITY] = scores.injection
        return Ratings(tuple(laws), {INJECTION: scores.injection})
    shares = [0.0] * LAWS
    for law, share in zip(calibration.category_laws, scores.categories, strict=True):
        shares[law] += share
    laws = [scores.unsafe * law for law in scores.laws]
    categories = {
        category: laws[law] * share / shares[law] if shares[law] else 0.0
        for category, law, share in zip(
            calibration.categories, calibration.category_laws, scores.categories, strict=True
        )
    }
    if stage is Stage.REQUEST:
        laws[INTEGRITY] = max(laws[INTEGRITY], scores.jailbreak)
        categories[JAILBREAK] = max(categories.get(JAILBREAK, 0.0), scores.jailbreak)
    return Ratings(tuple(laws), categories)
