"""Read what a guard model replied. A reply that is not exactly what its format promises is no verdict. Pure."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from services.ethics.guard.formats import Found, GuardFormat, Meaning, Question, ReplyKind, Severity, Special
from services.ethics.judge import Stage

# Longer than any verdict with all its categories.
MAX_REPLY_CHARS: Final = 4096
_THOUGHTS: Final = re.compile(r"\A\s*<think>.*?</think>", re.DOTALL)
_SCORE: Final = re.compile(r"\A<score>\s*(\S+)\s*</score>\Z")
_CONFIDENCE: Final = re.compile(r"\s*<confidence>[^<>]*</confidence>\s*\Z")
_MARKS: Final = " \t*_\"'.,!"


@dataclass(frozen=True, slots=True)
class Token:
    """A piece of a reply and the natural logarithm of its probability."""

    text: str
    logprob: float


@dataclass(frozen=True, slots=True)
class Reply:
    """What the model said; no tokens where the server gives no probabilities."""

    text: str
    tokens: tuple[Token, ...] = ()


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a guard found; `probability` is that of the words it was said in, 1 where none is known.

    `meanings` says what an UNSAFE speaks to; it is empty otherwise.
    """

    severity: Severity
    meanings: tuple[Meaning, ...] = ()
    probability: float = 1.0


class SenselessReplyError(Exception):
    """The reply is no verdict. The message holds its digest, never its text."""

    def __init__(self, reply: Reply) -> None:
        digest = hashlib.sha256(reply.text.encode("utf-8", "replace")).hexdigest()
        super().__init__(f"a reply of {len(reply.text)} characters (SHA-256 {digest[:16]}) is no verdict")


def read_verdict(reply: Reply, guard: GuardFormat, question: Question, stage: Stage) -> Verdict:
    """The verdict in this reply to this question; SenselessReplyError when it is not what the format promises."""
    if len(reply.text) > MAX_REPLY_CHARS:
        raise SenselessReplyError(reply)
    word, codes = _READERS[guard.reply.kind](reply, guard, stage)
    severity = guard.reply.values.get(word)
    if severity is None:
        raise SenselessReplyError(reply)
    probability = _probability(reply, word)
    if severity is not Severity.UNSAFE:
        if severity is Severity.SAFE and codes:
            # "safe", and yet it names what is wrong.
            raise SenselessReplyError(reply)
        return Verdict(severity, probability=probability)
    meanings = tuple(dict.fromkeys(guard.codes.get(code, guard.fallback) for code in codes))
    meanings = meanings or (question.means,)
    if set(meanings) == {Special.OPEN}:
        return Verdict(Severity.UNSURE, probability=probability)
    return Verdict(Severity.UNSAFE, tuple(item for item in meanings if item is not Special.OPEN), probability)


def together(verdicts: Sequence[Verdict]) -> Verdict:
    """The verdict over all questions about one text: the worst, and harmless only when every one is."""
    unsafe = [verdict for verdict in verdicts if verdict.severity is Severity.UNSAFE]
    if unsafe:
        meanings = dict.fromkeys(meaning for verdict in unsafe for meaning in verdict.meanings)
        return Verdict(Severity.UNSAFE, tuple(meanings), max(verdict.probability for verdict in unsafe))
    if not verdicts or any(verdict.severity is Severity.UNSURE for verdict in verdicts):
        return Verdict(Severity.UNSURE)
    return Verdict(Severity.SAFE, probability=min(verdict.probability for verdict in verdicts))


def meant(meaning: Meaning, asked: Found | None, fallback: Found) -> Found:
    """The law and category that a meaning stands for, when the question was about `asked`."""
    return meaning if isinstance(meaning, Found) else asked or fallback


def _first_line(reply: Reply, _guard: GuardFormat, _stage: Stage) -> tuple[str, list[str]]:
    lines = [line.strip() for line in reply.text.strip().splitlines()]
    if not 1 <= len(lines) <= 2:  # noqa: PLR2004 - the verdict and its codes
        raise SenselessReplyError(reply)
    return lines[0].casefold(), _codes(lines[1]) if len(lines) > 1 else []


def _first_word(reply: Reply, _guard: GuardFormat, _stage: Stage) -> tuple[str, list[str]]:
    text = _CONFIDENCE.sub("", _THOUGHTS.sub("", reply.text)).strip()
    score = _SCORE.match(text)
    return (score[1] if score else text).strip(_MARKS).casefold(), []


def _labelled(reply: Reply, guard: GuardFormat, stage: Stage) -> tuple[str, list[str]]:
    found: dict[str, str] = {}
    for line in reply.text.strip().splitlines():
        label, colon, value = line.partition(":")
        key = label.strip().casefold()
        if colon and key in found:
            raise SenselessReplyError(reply)
        found[key] = value.strip()
    rule = guard.reply
    if rule.verdict_labels[stage] not in found:
        raise SenselessReplyError(reply)
    codes = _codes(found.get(rule.categories_label, "")) if rule.categories_label else []
    return found[rule.verdict_labels[stage]].casefold(), [code for code in codes if code != rule.none]


_READERS: Final = {
    ReplyKind.FIRST_LINE: _first_line,
    ReplyKind.FIRST_WORD: _first_word,
    ReplyKind.LABELLED: _labelled,
}


def _codes(text: str) -> list[str]:
    return [code for code in (piece.strip().casefold() for piece in text.split(",")) if code]


def _probability(reply: Reply, word: str) -> float:
    """The probability of the tokens that spell the verdict; 1 when there are none or they do not spell it."""
    spelled = "".join(token.text for token in reply.tokens).casefold()
    found = re.search(rf"(?<!\w){re.escape(word)}(?!\w)", spelled)
    if found is None:
        return 1.0
    return min(1.0, math.exp(sum(_logprobs_of(reply.tokens, *found.span()))))


def _logprobs_of(tokens: Iterable[Token], start: int, end: int) -> Iterable[float]:
    place = 0
    for token in tokens:
        before, place = place, place + len(token.text.casefold())
        if before < end and place > start:
            yield min(0.0, token.logprob)
