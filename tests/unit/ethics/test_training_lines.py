"""The authored training lines parse, are balanced, and every section names a law and category that exist."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from scripts.classifier.authored import (
    CONVERSATIONS,
    DATA,
    FRAMES,
    authored_conversations,
    authored_examples,
    authored_frames,
    variants,
)
from scripts.classifier.examples import UNKNOWN, Example
from scripts.classifier.ordinary import ordinary_requests
from scripts.classifier.wording import Rewording
from services.ethics.judge import Stage

LAWS = Path(__file__).parents[3] / "constitution" / "laws.yaml"
LINE_STARTS = ("- ", "+ ", "? ", "> ", "@ ", "#")


@pytest.fixture(scope="module")
def authored() -> list[Example]:
    return list(authored_examples(seed=1))


def test_every_line_of_every_file_is_of_the_format() -> None:
    for path in sorted(DATA.glob("*.txt")):
        if path.name not in {FRAMES, CONVERSATIONS}:
            for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
                assert not line.strip() or line.startswith(LINE_STARTS), f"{path.name}:{number}: {line[:60]}"


def test_laws_and_categories_are_those_of_the_constitution(authored: list[Example]) -> None:
    laws = {law["number"]: set(law["categories"]) for law in yaml.safe_load(LAWS.read_text())["laws"]}
    wrong = {
        (example.source, example.law, example.category)
        for example in authored
        if example.category and example.category not in laws[example.law]
    }
    assert not wrong


def test_harmful_and_harmless_requests_are_of_like_number_and_length(authored: list[Example]) -> None:
    """A classifier that could tell them by length would learn the length."""
    requests = [e for e in authored if e.stage is Stage.REQUEST and not e.source.startswith("ordinary")]
    lengths = {label: sorted(len(e.text.split()) for e in requests if e.unsafe == label) for label in (0, 1)}
    assert 0.6 < len(lengths[1]) / len(lengths[0]) < 1.4
    medians = [found[len(found) // 2] for found in lengths.values()]
    assert abs(medians[0] - medians[1]) <= 3


def test_no_text_is_both_harmful_and_harmless(authored: list[Example]) -> None:
    texts = {
        label: {(e.stage, e.context, e.text.casefold()) for e in authored if e.unsafe == label}
        for label in (0, 1)
    }
    assert not texts[0] & texts[1]


def test_frames_hold_their_goal_once_and_both_kinds_are_many() -> None:
    frames = authored_frames(seed=1)
    assert all(frame.text.count("{GOAL}") == 1 for frame in frames)
    assert sum(frame.is_jailbreak for frame in frames) >= 90
    assert sum(not frame.is_jailbreak for frame in frames) >= 140


def test_a_goal_in_a_jailbreak_frame_stays_what_it_is_and_the_frame_is_told(authored: list[Example]) -> None:
    frames = authored_frames(seed=1)
    jailbreak = next(frame for frame in frames if frame.is_jailbreak)
    rewording = Rewording(frames, ["A long and harmless text."], seed=1)
    goal = next(e for e in authored if e.unsafe == 0)
    framed = rewording.in_frame(goal, jailbreak)
    assert (framed.unsafe, framed.jailbreak) == (0, 1)
    assert goal.text in framed.text


def test_alternatives_give_different_texts_and_leave_other_braces_alone() -> None:
    import random

    assert set(variants("{a|b} {x}", random.Random(1))) <= {"a {x}", "b {x}"}
    assert variants('{"k": 1}', random.Random(1)) == ['{"k": 1}']


def test_conversations_and_ordinary_requests_are_there_and_repeatable() -> None:
    conversations = list(authored_conversations())
    assert {example.unsafe for example in conversations} == {0, 1}
    first = list(ordinary_requests(1))
    assert first == list(ordinary_requests(1))
    assert len(set(first)) > 3000


def test_an_injection_is_an_attack_and_not_harmful_content(authored: list[Example]) -> None:
    attacks = [e for e in authored if e.stage is Stage.TOOL_RESULT and e.injection]
    assert len(attacks) > 150
    assert {e.unsafe for e in attacks} == {UNKNOWN}
