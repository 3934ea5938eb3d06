from __future__ import annotations

import codecs
from functools import cache

import pytest

from services.ethics.classifier.encoding import room_for_text
from services.ethics.classifier.passes import MAX_PASSES, Plan, Planner
from services.ethics.judge import Stage
from tests.unit.ethics.classifier_files import classifier, part

PADDING = "The harbour is quiet in the morning and the boats come home before noon. "
HIDDEN = "several yellow tractors crossed wooden bridges"
ROOM = room_for_text(0, Stage.REQUEST)
BACKWARDS, SHIFTED = HIDDEN[::-1], codecs.encode("describe mountain weather patterns", "rot13")


@cache
def planner() -> Planner:
    return Planner(classifier().tokenizer)


def plan(text: str) -> Plan:
    return planner().plan(part(text))


def tokens(text: str) -> int:
    return len(classifier().tokenizer.encode(text, add_special_tokens=False).ids)


@pytest.mark.parametrize("count", [64, 65, 127, 190, 253, 254])
def test_an_ordinary_text_of_one_window_takes_at_most_four_passes(count: int) -> None:
    text = " ".join(["boats"] * count)
    assert tokens(text) == count
    assert len(plan(text).passes) <= MAX_PASSES


@pytest.mark.parametrize(
    "hidden", [BACKWARDS, SHIFTED, f"{BACKWARDS} {SHIFTED}"], ids=["backwards", "shifted", "both"]
)
@pytest.mark.parametrize("lines", [3, 8, 12])
def test_words_hidden_in_a_text_of_one_window_cost_one_pass_a_view(hidden: str, lines: int) -> None:
    text = f"{PADDING * lines}{hidden} {PADDING}"
    assert tokens(text) <= ROOM
    found = plan(text)
    assert len(found.passes) <= MAX_PASSES
    assert all(item.tokens <= ROOM for item in found.passes)


def test_hidden_words_are_read_with_their_neighbours_and_say_where_they_stood() -> None:
    text = f"{PADDING * 12}{BACKWARDS} {PADDING}"
    shown = next(item for item in plan(text).passes if item.view == "reversed")
    assert HIDDEN in shown.text
    assert shown.is_window
    assert BACKWARDS in text[shown.start : shown.end]


def test_words_hidden_all_over_a_text_are_all_read() -> None:
    words = HIDDEN.split()
    text = "".join(f"{PADDING * 2}{word[::-1]} " for word in words)
    assert tokens(text) <= ROOM
    found = plan(text)
    assert len(found.passes) <= MAX_PASSES
    shown = " ".join(item.text for item in found.passes if item.view != "plain").split()
    assert set(words) <= set(shown)
