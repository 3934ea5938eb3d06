"""The generated training text: splits that do not leak, filled templates, right sums."""

from __future__ import annotations

import re
from random import Random

import pytest

from scripts.embedded.dialogue import Curriculum, Message
from scripts.embedded.intent import Intent
from scripts.embedded.knowledge import known_words
from scripts.embedded.wording import Split, expand, split_families

_UNFILLED = re.compile(r"\{\w+\}|\([^()]*\|")
_SUM = re.compile(r"^(\d+) ([-+*]) (\d+) = (-?\d+)\.$")


@pytest.fixture(scope="module")
def curriculum() -> Curriculum:
    return Curriculum()


def test_no_wording_family_is_both_trained_and_held_out(curriculum: Curriculum) -> None:
    def families(*splits: Split) -> set[str]:
        return {
            family for intent in curriculum.intents for split in splits for family in intent.by_split[split]
        }

    held_out = families(Split.DEV, Split.TEST)
    # Families of small sections stay in training; only they may repeat a held-out line elsewhere.
    assert len(held_out) > 250
    assert families(Split.DEV) & families(Split.TEST) == set()
    for intent in curriculum.intents:
        assert set(intent.by_split[Split.TRAIN]).isdisjoint(intent.by_split[Split.TEST])


def test_the_split_of_a_family_does_not_depend_on_its_neighbours() -> None:
    families = [f"wording {i} of {{t}}" for i in range(60)]
    whole, part = split_families(families), split_families(families[10:40])
    assert set(part[Split.TEST]) <= set(whole[Split.TEST])


def test_an_unseen_combination_is_never_drawn_for_training(curriculum: Curriculum) -> None:
    add = next(intent for intent in curriculum.intents if intent.name == "add")
    answers = {split: _answers(add, split) for split in (Split.TRAIN, Split.COMBINATION)}
    assert answers[Split.TRAIN].isdisjoint(answers[Split.COMBINATION])


def _answers(intent: Intent, split: Split) -> set[str]:
    rng = Random(7)
    drawn = [intent.draw(split, rng) for _ in range(2000)]
    return {example.answer for example in drawn if example is not None}


def test_conversations_are_filled_alternate_and_are_the_same_for_the_same_seed(
    curriculum: Curriculum,
) -> None:
    first, second = ([curriculum.conversation(rng) for _ in range(400)] for rng in (Random(3), Random(3)))
    assert first == second
    for conversation in first:
        roles = [message.role for message in conversation if message.role != "system"]
        assert roles == ["user", "assistant"] * (len(roles) // 2)
        assert not any(_UNFILLED.search(message.content) for message in conversation)
        assert all(message.content.strip() for message in conversation)


def test_every_sum_in_an_answer_is_right(curriculum: Curriculum) -> None:
    rng = Random(5)
    messages = [message for _ in range(3000) for message in curriculum.conversation(rng)]
    sums = [match for message in messages if (match := _sum_of(message))]
    assert len(sums) > 300
    for a, sign, b, result in (match.groups() for match in sums):
        expected = {"+": int(a) + int(b), "-": int(a) - int(b), "*": int(a) * int(b)}[sign]
        assert int(result) == expected


def _sum_of(message: Message) -> re.Match[str] | None:
    return _SUM.match(message.content) if message.learned else None


def test_what_is_taught_as_unknown_has_no_taught_answer(curriculum: Curriculum) -> None:
    unknown = next(intent for intent in curriculum.intents if intent.name == "unknown.thing")
    subjects = {case.slots["x"].lower() for case in unknown.cases}
    assert subjects.isdisjoint(known_words())


def test_alternatives_are_expanded_and_may_be_empty() -> None:
    drawn = {expand("(can|could) you (please |)go", Random(i)) for i in range(40)}
    assert drawn == {"can you go", "could you go", "can you please go", "could you please go"}
