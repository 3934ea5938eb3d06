"""The hold-back is at least as long as the longest match of any rule, computed from the rules' own patterns."""

from __future__ import annotations

import re
import string
from dataclasses import replace
from re import _parser as standard  # type: ignore[attr-defined]  # a second opinion, of the standard library
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given

from gateway.answer import MAX_BEFORE_CHARS
from gateway.readings import OVERLAP_BYTES
from kala.errors import ConstitutionError
from services.ethics.fold import Folder
from services.ethics.hard_blocks import HardBlocks
from services.ethics.judge import Outcome, Stage
from services.ethics.laws import Constitution, HardBlock, _check_block
from services.ethics.output_check import (
    AHEAD_CHARS,
    UNSETTLED_CHARS,
    Channel,
    OutputCheck,
    hold_back_chars,
)
from services.ethics.pattern_width import longest_match
from services.ethics.patterns import expand
from services.ethics.views import Reader

UTF8_BYTES = 4


def test_no_rule_can_match_more_than_it_says_and_the_hold_back_covers_all_of_them(
    constitution: Constitution,
) -> None:
    judged = [block for block in constitution.blocks if block.max_chars is not None]
    assert judged
    for block in judged:
        longest = max(
            _capped(longest_match(source)) for source in (block.pattern.spaced, block.pattern.joined)
        )
        assert block.max_chars is not None
        assert longest <= block.max_chars, block.id
        for stage in block.stages - {Stage.REQUEST}:
            held = hold_back_chars(constitution.blocks, stage)
            assert held >= longest + AHEAD_CHARS + UNSETTLED_CHARS, block.id


def test_what_is_read_again_of_a_file_covers_every_rule_for_files(constitution: Constitution) -> None:
    assert UTF8_BYTES * hold_back_chars(constitution.blocks, Stage.TOOL_RESULT) <= OVERLAP_BYTES


def test_what_is_read_again_of_an_earlier_turn_covers_every_rule_for_answers(
    constitution: Constitution,
) -> None:
    assert hold_back_chars(constitution.blocks, Stage.OUTPUT) <= MAX_BEFORE_CHARS


def test_a_longer_rule_lengthens_the_hold_back_or_does_not_load(constitution: Constitution) -> None:
    longer = _block("here is <gap9> how to <gap9> poison a well", max_chars=400)
    before = hold_back_chars(constitution.blocks, Stage.OUTPUT)
    assert hold_back_chars((*constitution.blocks, longer), Stage.OUTPUT) > before
    _check_block(longer)
    with pytest.raises(ValueError, match="max_chars must be at least"):
        _check_block(replace(longer, max_chars=300))


def test_every_bounded_pattern_has_the_length_that_the_standard_library_finds(
    constitution: Constitution,
) -> None:
    for block in constitution.blocks:
        if block.max_chars is not None:
            for source in (block.pattern.spaced, block.pattern.joined):
                assert longest_match(source) == _standard(source), (block.id, source)


def test_the_longest_match_of_every_rule_is_held_back_to_its_first_character(
    constitution: Constitution,
) -> None:
    rules, folder = HardBlocks(constitution.blocks), Folder(constitution.look_alikes)
    held = {stage: hold_back_chars(constitution.blocks, stage) for stage in Stage}
    reader, excused = Reader(folder), list[str]()
    lead = "Plants turn light into sugar. " * 20
    for block in constitution.blocks:
        for stage in block.stages - {Stage.REQUEST}:
            channel = Channel.TEXT if stage is Stage.OUTPUT else Channel.TOOL_RESULT
            check, released = OutputCheck(rules, folder, held), 0
            longest = _longest(standard.parse(block.pattern.spaced))
            assert len(longest) == block.max_chars, block.id
            if not rules.find(reader.read(f"{longest}. {lead}").views, stage):
                excused.append(block.id)
                continue
            for piece in (lead, *longest, f". {lead}"):
                progress = check.feed(channel, 0, piece)
                released = max(released, progress.released_chars)
            assert check.refused is not None, (block.id, longest)
            assert len(lead) - held[stage] <= released <= len(lead), (block.id, longest)
    # "… nothing more than …" says the opposite, so its longest match is one that an exception excuses.
    assert excused == ["law4.hate.degrade"]


_LEAVES = st.sampled_from(
    ["a", "bc", "[a-z0-9']", "[^a-z]", r"[\]x]", r"\b", r"\x22", "(?m:^|[.!])", ".", r"\.", "$", r"[]a]"]
)
_PATTERNS = st.recursive(
    _LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=3).map("".join),
        st.lists(inner, min_size=1, max_size=3).map(lambda parts: f"(?:{'|'.join(parts)})"),
        st.tuples(inner, st.sampled_from(["?", "{2}", "{1,3}", "{0,15}", "??", "*", "+", "{2,}"])).map(
            lambda pair: f"(?:{pair[0]}){pair[1]}"
        ),
    ),
    max_leaves=8,
)


@given(_PATTERNS)
def test_the_length_of_any_pattern_is_the_standard_librarys(source: str) -> None:
    assert _capped(longest_match(source)) == _standard(source)


@pytest.mark.parametrize("source", ["a)", "(a", "[a", r"\Qa\E", r"\1", "{", "*a", r"\C"])
def test_what_is_not_understood_is_refused(source: str) -> None:
    with pytest.raises(ConstitutionError):
        longest_match(source)


def _block(source: str, *, max_chars: int) -> HardBlock:
    return HardBlock(
        id="test.longer",
        law=1,
        category="weapons.explosives",
        stages=frozenset({Stage.OUTPUT}),
        outcome=Outcome.REFUSE,
        frame=None,
        pattern=expand(source, {}, bounded=True),
        unless=(),
        max_chars=max_chars,
        needs_opaque=False,
    )


def _longest(parsed: Any) -> str:  # Any: the standard library's own tree
    """Spell one of the longest matches."""
    return "".join(_spelled(str(kind), value) for kind, value in parsed)


def _spelled(kind: str, value: Any) -> str:
    match kind:
        case "LITERAL":
            return chr(value)
        case "IN":
            allowed = re.compile(f"[{'^' if str(value[0][0]) == 'NEGATE' else ''}{_members(value)}]")
            return next(char for char in f"a-{string.printable}" if allowed.fullmatch(char))
        case "BRANCH":
            return max(map(_longest, value[1]), key=len)
        case "SUBPATTERN":
            return _longest(value[-1])
        case "MAX_REPEAT" | "MIN_REPEAT":
            return _longest(value[2]) * int(value[1])
        case "AT":
            return ""
    raise AssertionError(kind)


def _members(value: Any) -> str:
    spelled = {"LITERAL": lambda it: re.escape(chr(it)), "RANGE": lambda it: f"{chr(it[0])}-{chr(it[1])}"}
    return "".join(spelled[str(kind)](it) for kind, it in value if str(kind) != "NEGATE")


def _standard(source: str) -> int:
    return min(int(standard.parse(source).getwidth()[1]), 2**31)


def _capped(width: int | None) -> int:
    return 2**31 if width is None else min(width, 2**31)
