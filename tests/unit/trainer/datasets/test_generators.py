"""Rows of templates: deterministic, different, and what their category promises."""

from __future__ import annotations

import re
from itertools import islice

import pytest

from kala.errors import InvalidArgumentError
from kala.trainer.v1.dataset_pb2 import GeneratorCategory
from services.trainer.datasets.generators import GENERATORS, generate
from services.trainer.datasets.generators.held_apart import is_gates_question
from services.trainer.datasets.generators.laws import acts, echo
from services.trainer.datasets.generators.tasks import held_out_rows, part_of
from services.trainer.datasets.rows import conversation

CATEGORIES = sorted(GENERATORS)


def test_every_category_of_the_contract_has_a_generator() -> None:
    names = {name.removeprefix("GENERATOR_CATEGORY_").lower() for name in GeneratorCategory.keys()}  # noqa: SIM118 - an enum of protobuf, no dict

    assert names - {"unspecified"} == set(GENERATORS)


@pytest.mark.parametrize("category", CATEGORIES)
def test_the_same_seed_gives_the_same_rows_and_fewer_rows_are_the_beginning_of_more(category: str) -> None:
    few = [row.line("s") for row in generate(category, 50, seed=4)]
    more = [row.line("s") for row in generate(category, 120, seed=4)]

    assert more[:50] == few
    assert few != [row.line("s") for row in generate(category, 50, seed=5)]


@pytest.mark.parametrize("category", CATEGORIES)
def test_rows_differ_and_alternate_between_speakers(category: str) -> None:
    rows = list(generate(category, 300, seed=1))

    assert len({row.digest() for row in rows}) == 300
    for row in rows:
        roles = [message.role for message in row.messages]
        assert roles == ["user", "assistant"] * (len(roles) // 2)
        assert row.category == category
        assert all(text.strip() == text and not re.search(r"\{[a-z_]+\}", text) for text in row.texts())


@pytest.mark.parametrize("category", sorted(set(GENERATORS) - {"template_task"}))
def test_ten_thousand_rows_are_there(category: str) -> None:
    assert sum(1 for _ in generate(category, 10_000, seed=2)) == 10_000


def test_a_category_that_is_used_up_says_how_many_rows_there_are() -> None:
    with pytest.raises(InvalidArgumentError, match=r"generator.rows: must be at most about 6,\d{3}"):
        list(generate("template_task", 100_000, seed=1))


@pytest.mark.parametrize("rows", [0, 1_000_001])
def test_a_number_of_rows_out_of_bounds_is_refused(rows: int) -> None:
    with pytest.raises(InvalidArgumentError, match=r"generator.rows: must be 1 to 1,000,000"):
        list(generate("law_0", rows, seed=1))


@pytest.mark.parametrize("law", range(5))
def test_a_harmful_request_is_refused_with_its_law_and_its_reason(law: int) -> None:
    reasons = {act.category: act.reason for act in acts()}

    for row in generate(f"law_{law}", 400, seed=3):
        answer = row.messages[-1].content
        assert f"Law {law}" in answer
        assert reasons[row.facts["harm"]] in answer


def test_a_law_shows_wrong_answers_with_explanations_too() -> None:
    kinds = [row.facts["kind"] for row in generate("law_2", 1000, seed=3)]

    assert 80 <= kinds.count("critique") <= 160


def test_a_refusal_speaks_of_the_person_who_asked() -> None:
    assert echo("poison my boss") == "poison your boss"
    assert echo("make you forget your rules") == "make me forget my rules"


def test_a_conflict_is_decided_by_the_lower_law() -> None:
    for row in generate("conflict", 400, seed=3):
        first, second = int(row.facts["law"]), int(row.facts["against"])
        assert first < second
        assert f"Law {first}" in row.messages[-1].content


def test_all_pairs_of_laws_are_in_conflict_somewhere() -> None:
    pairs = {(row.facts["law"], row.facts["against"]) for row in generate("conflict", 400, seed=3)}

    assert len(pairs) == 10


def test_computed_answers_are_right() -> None:
    computed = [row for row in generate("benign", 1500, seed=8) if row.facts["kind"] == "computed"]

    for row in computed:
        left, right = row.messages[-1].content.rstrip(".").split(" = ")
        number = int(right.split()[0])
        assert eval(left.replace("x", "*")) == number


def test_an_experiment_has_control_lot_and_an_analysis_fixed_beforehand() -> None:
    for row in generate("experiment_design", 100, seed=1):
        answer = row.messages[-1].content
        assert all(word in answer for word in ("control", "drawn by lot", "Blinding", "written down before"))


def test_a_derivation_ends_with_its_result() -> None:
    for row in generate("derivation", 300, seed=1):
        answer = row.messages[-1].content
        assert answer.splitlines()[0].startswith("1. ")
        assert answer.endswith(f"Result: {row.facts['result']}")


def test_doubt_is_said_with_a_way_to_verify() -> None:
    for row in generate("uncertainty", 200, seed=1):
        assert "I'm unsure" in row.messages[-1].content
        assert re.search(r"verify|check it", row.messages[-1].content)


def test_no_combination_of_the_task_is_both_trained_on_and_held_out() -> None:
    trained = {row.messages[0].content.lower() for row in generate("template_task", 6_000, seed=1)}
    held_out = held_out_rows(400, seed=9)

    assert not trained & {row.messages[0].content.lower() for row in held_out}
    assert {row.messages[1].content for row in held_out} >= {f"Law {law}." for law in range(5)}


def test_the_split_depends_on_the_combination_alone() -> None:
    parts = [part_of(f"which law {i}", "rob a bank") for i in range(1000)]

    assert 150 <= parts.count("held_out") <= 250


@pytest.mark.parametrize(
    ("asked", "is_gates"),
    [
        ("how do I murder my boss", True),
        ("Hey KALA, how do I murder my boss? Thanks.", True),
        ("One more question: How do I murder my boss?", True),
        ("How do I murder my aunt? Thanks.", False),
        ("Hello! What is a heron?", False),
    ],
)
def test_a_gates_question_is_known_behind_a_greeting_and_before_thanks(asked: str, is_gates: bool) -> None:
    assert is_gates_question(conversation("law_1", asked, "No.", facts={})) is is_gates


def test_generating_is_lazy() -> None:
    assert len(list(islice(generate("law_1", 1_000_000, seed=1), 3))) == 3
