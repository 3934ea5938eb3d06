"""The deterministic judge: RE2 patterns of the signed constitution over every view of the text, in linear time.

A `re2.Set` per stage and spelling is the prefilter; only rules that it names are searched for their spans.
Views are encoded once and matched as bytes; offsets are mapped back only for what was found.
"""

from __future__ import annotations

import asyncio
import bisect
import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import re2

from kala.errors import ConstitutionError, InternalError
from services.ethics.judge import Evidence, Extent, Material, Stage
from services.ethics.laws import HardBlock
from services.ethics.patterns import Pattern
from services.ethics.views import View

NAME: Final = "hard_blocks"
# RE2's automata grow with many rules; when this is used up RE2 starts over, which costs time, not correctness.
MAX_AUTOMATON_BYTES: Final = 64 * 1024 * 1024
# One automaton over all rules costs least on ordinary text, but hostile text makes it build a new state for nearly
# every byte (8 microseconds each, measured). Longer texts therefore go through several smaller automata.
SHORT_TEXT_BYTES: Final = 2048
LONG_TEXT_SHARES: Final = 8
# `unless` is looked for this far before and after a match: exceptions are local, so no word elsewhere switches a rule off.
UNLESS_REACH_BYTES: Final = 64
UNLESS_AHEAD_BYTES: Final = 32
# A frame ("how do I …") is looked for in this much text before the deed; the longest frames are shorter.
FRAME_REACH_BYTES: Final = 200
# An exception counts when it overlaps the match or stands next to it, one gap away.
ADJACENT_BYTES: Final = 3
MAX_SPANS_PER_RULE: Final = 4
# Matches without frame or with an exception are passed over at most this often; then the judge gives up, closed.
MAX_EXCUSED: Final = 100_000
# Longer texts are judged on a thread, so that other calls go on.
INLINE_CHARS: Final = 20_000
# Words run together: shorter runs of letters cannot hold a whole forbidden phrase, and shorter matches within
# one are pieces of ordinary words ("get" + "her" in "together").
_JOINED: Final = re.compile("[a-z]{10,}")
MIN_JOINED_BYTES: Final = 9
# Matches every text: a set that does not report it has failed, and silence must not pass for innocence.
_CANARY: Final = b""


@dataclass(frozen=True, slots=True)
class Finding:
    """One rule found in one view; the span is in characters of the original text."""

    block: HardBlock
    start: int
    end: int
    view: str


@dataclass(frozen=True, slots=True)
class _Rule:
    block: HardBlock
    frame: Any  # Any: re2 has no type stubs; None where there is no frame
    pattern: Any
    unless: tuple[Any, ...]


class _Prefilter:
    """Says which of its rules may match a text, by one automaton over all of them."""

    def __init__(self, rules: Sequence[_Rule], options: Any) -> None:  # Any: re2 has no type stubs
        self._set = re2.Set.SearchSet(options)
        for rule in rules:
            self._set.Add(rule.pattern.pattern)
        self._canary = self._set.Add(_CANARY)
        self._set.Compile()
        self._rules = rules

    def candidates(self, data: bytes) -> Iterable[_Rule]:
        """The rules to search for; all of them when RE2 ran out of memory on this text."""
        hits = self._set.Match(data) or ()
        if self._canary not in hits:
            return self._rules
        return [self._rules[index] for index in sorted(hits) if index != self._canary]


class RuleSet:
    """The rules of one stage in one spelling, compiled."""

    def __init__(self, blocks: Iterable[HardBlock], *, joined: bool) -> None:
        options = re2.Options()
        options.max_mem = MAX_AUTOMATON_BYTES
        options.log_errors = False
        self._min_bytes = MIN_JOINED_BYTES if joined else 0
        rules = [_compile(block, options, joined=joined) for block in blocks]
        self._whole = _Prefilter(rules, options)
        self._shares = [_Prefilter(rules[i::LONG_TEXT_SHARES], options) for i in range(LONG_TEXT_SHARES)]

    def find(self, data: bytes, *, opaque: bool) -> Iterator[tuple[HardBlock, Iterator[tuple[int, int]]]]:
        """Every rule that may speak against this text in UTF-8, with the spans in bytes where it does."""
        prefilters = [self._whole] if len(data) <= SHORT_TEXT_BYTES else self._shares
        for prefilter in prefilters:
            for rule in prefilter.candidates(data):
                if opaque or not rule.block.needs_opaque:
                    yield (
                        rule.block,
                        (span for span in _counting(rule, data) if span[1] - span[0] >= self._min_bytes),
                    )


class HardBlocks:
    """All hard blocks of a constitution, compiled for every stage."""

    def __init__(self, blocks: Sequence[HardBlock]) -> None:
        by_stage = {stage: [block for block in blocks if stage in block.stages] for stage in Stage}
        self._spaced = {stage: RuleSet(chosen, joined=False) for stage, chosen in by_stage.items()}
        self._joined = {stage: RuleSet(chosen, joined=True) for stage, chosen in by_stage.items()}

    def find(
        self,
        views: Iterable[View],
        stage: Stage,
        *,
        opaque: bool = False,
        within: tuple[int, int] | None = None,
        borders: Sequence[int] = (),
    ) -> list[Finding]:
        """What the rules of a stage find in these views; a rule counts once, in the first view that shows it.

        `within` leaves out what begins before or ends after these characters of the original text; `borders`, when
        there are any, what crosses none of them.
        """
        found: dict[str, list[Finding]] = {}
        for view in views:
            fresh: dict[str, list[Finding]] = {}
            for block, findings in self._find_in(view, stage, opaque=opaque):
                counted = (
                    f
                    for f in findings
                    if (within is None or (within[0] <= f.start and f.end <= within[1]))
                    and (not borders or _crosses(f, borders))
                )
                fresh.setdefault(block.id, []).extend(itertools.islice(counted, MAX_SPANS_PER_RULE))
            found = {rule: findings for rule, findings in fresh.items() if findings} | found
        return [finding for findings in found.values() for finding in findings]

    def _find_in(
        self, view: View, stage: Stage, *, opaque: bool
    ) -> Iterator[tuple[HardBlock, Iterator[Finding]]]:
        data = view.text.encode("utf-8", "replace")
        for block, spans in self._spaced[stage].find(data, opaque=opaque):
            chars = spans if len(data) == len(view.text) else (_char_span(data, *span) for span in spans)
            yield block, _findings(block, view, chars)
        for run in _JOINED.finditer(view.text):
            for block, spans in self._joined[stage].find(run.group().encode(), opaque=opaque):
                yield block, _findings(block, view, spans, offset=run.start())


class HardBlockJudge:
    """The judge over the hard blocks; it keeps the `Judge` protocol."""

    def __init__(self, blocks: HardBlocks) -> None:
        self._blocks = blocks

    @property
    def name(self) -> str:
        """Always "hard_blocks"."""
        return NAME

    async def judge(self, material: Material, so_far: Sequence[Evidence]) -> Sequence[Evidence]:
        """Evidence of every rule that speaks against any part, whatever others saw."""
        del so_far
        if sum(len(part.reading.text) for part in material.parts) > INLINE_CHARS:
            return await asyncio.to_thread(self.judge_now, material)
        return self.judge_now(material)

    def judge_now(self, material: Material) -> list[Evidence]:
        """As `judge`, on this thread."""
        opaque = any(part.reading.opaque for part in material.parts)
        return [
            evidence_of(finding, part.field)
            for part in material.parts
            if part.extent is not Extent.WINDOW
            for finding in self._blocks.find(
                part.reading.views, part.stage, opaque=opaque, borders=part.borders
            )
        ]


def _crosses(finding: Finding, borders: Sequence[int]) -> bool:
    """Whether a finding lies on both sides of a border; what lies within one turn was judged with that turn."""
    following = bisect.bisect_right(borders, finding.start)
    return following < len(borders) and borders[following] < finding.end


def _findings(
    block: HardBlock, view: View, spans: Iterable[tuple[int, int]], offset: int = 0
) -> Iterator[Finding]:
    for start, end in spans:
        yield Finding(block, *view.locate(offset + start, offset + end), view.name)


def evidence_of(finding: Finding, field: str, *, begin: int = 0) -> Evidence:
    """Say what was found where in a field whose text at hand starts at character `begin`."""
    block = finding.block
    return Evidence(
        NAME,
        block.law,
        block.category,
        block.outcome,
        block.id,
        field,
        begin + finding.start,
        begin + finding.end,
        finding.view,
    )


def _compile(block: HardBlock, options: Any, *, joined: bool) -> _Rule:  # Any: re2 has no type stubs
    def compiled(pattern: Pattern, before: str = "", after: str = "") -> Any:  # Any: re2 has no type stubs
        return re2.compile(f"{before}{pattern.joined if joined else pattern.spaced}{after}".encode(), options)

    try:
        unless = tuple(compiled(pattern) for pattern in block.unless)
        if block.frame is None or joined:
            # Words run together are short: frame and deed are matched as one.
            return _Rule(
                block, None, compiled(block.pattern, block.frame.joined if block.frame else ""), unless
            )
        return _Rule(block, compiled(block.frame, after="$"), compiled(block.pattern), unless)
    except re2.error as error:
        problem = str(error).partition(":")[0].strip("b'\"")
        raise ConstitutionError(f"hard block {block.id}: not an RE2 pattern: {problem}") from None


def _counting(rule: _Rule, data: bytes) -> Iterator[tuple[int, int]]:
    """The spans of a rule that no exception excuses."""
    for seen, match in enumerate(rule.pattern.finditer(data)):
        if seen == MAX_EXCUSED:
            raise InternalError(f"hard block {rule.block.id}: too many matches that do not count")
        start, end = match.span()
        if rule.frame is not None:
            start = _frame_start(rule, data, start)
        if start is not None and not any(_overlaps(exception, data, start, end) for exception in rule.unless):
            yield start, end


def _frame_start(rule: _Rule, data: bytes, deed: int) -> int | None:
    """Where the frame that leads to the deed begins, or None if none does."""
    begin = max(0, deed - FRAME_REACH_BYTES)
    frame = rule.frame.search(data[begin:deed])
    return None if frame is None else begin + int(frame.start())


def _overlaps(exception: Any, data: bytes, start: int, end: int) -> bool:  # Any: re2 has no type stubs
    window = data[max(0, start - UNLESS_REACH_BYTES) : end + UNLESS_AHEAD_BYTES]
    begin = min(start, UNLESS_REACH_BYTES)
    stop = begin + end - start
    return any(
        m.start() <= stop + ADJACENT_BYTES and m.end() >= begin - ADJACENT_BYTES
        for m in exception.finditer(window)
    )


def _char_span(data: bytes, start: int, end: int) -> tuple[int, int]:
    first = len(data[:start].decode("utf-8", "replace"))
    return first, first + len(data[start:end].decode("utf-8", "replace"))
