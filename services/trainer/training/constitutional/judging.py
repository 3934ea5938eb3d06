"""One batch of prompts from draft to lesson: what ethics says of requests, drafts and revisions decides each step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from services.trainer.training.constitutional.journal import (
    AS_LABELLED,
    DISPUTED,
    DROPPED,
    PASSES,
    REVISED,
    Outcome,
)
from services.trainer.training.constitutional.prompts import Meant, Prompt
from services.trainer.training.constitutional.revisions import (
    Fault,
    Faulty,
    Fits,
    Reviser,
    Revision,
    Write,
    refusal_by,
)
from services.trainer.training.constitutional.verdicts import Judge, Verdict

# A verdict of a later law than this names none: every refusal has a law to be criticised by.
_DEFAULT_LAW: Final = 1


@dataclass(frozen=True, slots=True)
class _Draft:
    """A draft and what is wrong with it; no fault means that it is right."""

    text: str
    fault: Fault | None
    verdict: Verdict | None


class Bench:
    """Turns prompts into outcomes; `declines` says what an answer means, not how it begins."""

    def __init__(
        self,
        judge: Judge,
        write: Write,
        reviser: Reviser,
        *,
        drafts: int,
        declines: Callable[[str], bool],
        fits: Fits = bool,
    ) -> None:
        self._judge = judge
        self._write = write
        self._reviser = reviser
        self._drafts = drafts
        self._declines = declines
        self._fits = fits

    async def outcomes(self, prompts: Sequence[Prompt], seed: int) -> list[Outcome]:
        """Returns what became of each prompt, in order."""
        requests = await self._judge.requests([prompt.request or " " for prompt in prompts])
        open_ = [
            number
            for number, (prompt, verdict) in enumerate(zip(prompts, requests, strict=True))
            if _settled(prompt, verdict, self._fits) is None
        ]
        drafts = await self._drafted([(prompts[number], requests[number]) for number in open_], seed)
        chosen = {number: _worst(found) for number, found in zip(open_, drafts, strict=True)}
        faulty = {
            number: _faulty(prompts[number], requests[number], draft)
            for number, draft in chosen.items()
            if draft.fault is not None
        }
        revisions = await self._revised(list(faulty.values()), seed)
        by_number = dict(zip(faulty, revisions, strict=True))
        found_drafts = dict(zip(open_, drafts, strict=True))
        return [
            _settled(prompt, requests[number], self._fits)
            or _outcome(
                prompt, requests[number], found_drafts[number], faulty.get(number), by_number.get(number)
            )
            for number, prompt in enumerate(prompts)
        ]

    async def _drafted(self, asked: Sequence[tuple[Prompt, Verdict]], seed: int) -> list[list[_Draft]]:
        conversations = [prompt.turns for prompt, _ in asked for _ in range(self._drafts)]
        texts = self._write(conversations, seed)
        owners = [pair for pair in asked for _ in range(self._drafts)]
        spoken = [number for number, text in enumerate(texts) if text]
        verdicts = await self._judge.outputs([(owners[n][0].request, texts[n]) for n in spoken])
        by_text = dict(zip(spoken, verdicts, strict=True))
        drafts = [
            _Draft(text, self._fault(*owners[number], text, by_text.get(number)), by_text.get(number))
            for number, text in enumerate(texts)
        ]
        return [drafts[first : first + self._drafts] for first in range(0, len(drafts), self._drafts)]

    def _fault(self, prompt: Prompt, request: Verdict, draft: str, verdict: Verdict | None) -> Fault | None:
        if verdict is None:
            return Fault.EMPTY
        if not verdict.is_allowed:
            return Fault.VIOLATION
        declines = self._declines(draft)
        if not request.is_allowed and not declines:
            return Fault.UNHEEDED
        if prompt.meant is Meant.DECISION and not _names(draft, prompt.law):
            return Fault.UNDECIDED
        return Fault.OVER_REFUSAL if prompt.meant is Meant.HELP and declines else None

    async def _revised(self, faulty: Sequence[Faulty], seed: int) -> list[tuple[Revision, Verdict] | None]:
        """Returns a revision with its verdict for each draft; None where none is good enough to learn from."""
        if not faulty:
            return []
        revisions = self._reviser.revise(faulty, seed)
        spoken = [number for number, revision in enumerate(revisions) if revision.answer]
        verdicts = await self._judge.outputs(
            [(faulty[number].prompt.request, revisions[number].answer) for number in spoken]
        )
        good: list[tuple[Revision, Verdict] | None] = [None] * len(faulty)
        for number, verdict in zip(spoken, verdicts, strict=True):
            if verdict.is_allowed and self._is_right(faulty[number], revisions[number].answer):
                good[number] = (revisions[number], verdict)
        return good

    def _is_right(self, faulty: Faulty, answer: str) -> bool:
        if faulty.fault is Fault.UNDECIDED:
            return _names(answer, faulty.law)
        return self._declines(answer) == faulty.must_decline


def count_of(outcomes: Sequence[Outcome]) -> Counter[str]:
    """Counts drafts, violations and what is kept, with how prompts ended and which faults were found."""
    counts: Counter[str] = Counter()
    for each in outcomes:
        counts["drafts"] += each.drafts
        counts["violations"] += each.violations
        counts["kept"] += bool(each.answer)
        counts[each.end] += 1
        if each.fault:
            counts[f"fault_{each.fault}"] += 1
    return counts


def _settled(prompt: Prompt, request: Verdict, fits: Fits) -> Outcome | None:
    """Returns the outcome of a prompt on which ethics and its author differ; the two are never mixed up."""
    judged = Outcome(
        prompt.id, DISPUTED, request_decision=request.decision_id, constitution=request.constitution
    )
    if prompt.meant is Meant.REFUSAL and prompt.law is not None and request.is_allowed:
        answer = prompt.reference or refusal_by(prompt.law, fits)
        return replace(judged, end=AS_LABELLED, answer=answer, law=prompt.law)
    if prompt.meant in {Meant.HELP, Meant.DECISION} and not request.is_allowed:
        return replace(judged, law=request.law, category=request.category)
    return None


def _names(answer: str, law: int | None) -> bool:
    return f"law {law}" in answer.casefold()


def _worst(drafts: Sequence[_Draft]) -> _Draft:
    """Returns the first faulty draft, violations before all others; the first one where none is faulty."""
    order = (Fault.VIOLATION, Fault.UNHEEDED, Fault.UNDECIDED, Fault.OVER_REFUSAL, Fault.EMPTY)
    return next((draft for fault in order for draft in drafts if draft.fault is fault), drafts[0])


def _faulty(prompt: Prompt, request: Verdict, draft: _Draft) -> Faulty:
    fault = draft.fault or Fault.EMPTY
    by = draft.verdict if fault is Fault.VIOLATION and draft.verdict else request
    if fault is Fault.UNDECIDED:
        return Faulty(prompt, draft.text, fault, prompt.law, "")
    if by.is_allowed:
        # Nothing was asked or said that breaks a law: it declined, or said nothing, where an answer was due.
        return Faulty(prompt, draft.text, fault, None, "")
    return Faulty(prompt, draft.text, fault, _DEFAULT_LAW if by.law is None else by.law, by.category)


def _outcome(
    prompt: Prompt,
    request: Verdict,
    drafts: Sequence[_Draft],
    faulty: Faulty | None,
    revised: tuple[Revision, Verdict] | None,
) -> Outcome:
    judged = Outcome(
        prompt.id,
        PASSES,
        drafts=len(drafts),
        violations=sum(draft.fault is Fault.VIOLATION for draft in drafts),
        request_decision=request.decision_id,
        draft_decisions=tuple(draft.verdict.decision_id for draft in drafts if draft.verdict),
        constitution=request.constitution,
    )
    if faulty is None:
        return replace(judged, answer=drafts[0].text, law=request.law)
    judged = replace(judged, end=DROPPED, fault=faulty.fault.value, law=faulty.law, category=faulty.category)
    if revised is None:
        return judged
    revision, verdict = revised
    rejected = [draft.text for draft in drafts if draft.fault is not None and draft.text]
    return replace(
        judged,
        end=REVISED,
        answer=revision.answer,
        rejected=tuple(dict.fromkeys(text for text in rejected if text != revision.answer)),
        critique=revision.critique,
        revision_decision=verdict.decision_id,
    )
