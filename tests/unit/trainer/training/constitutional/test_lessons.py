from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from kala.errors import DataLossError
from services.trainer.training.constitutional.journal import Journal, Outcome
from services.trainer.training.constitutional.lessons import Shares, make_lessons, with_harmless, write_rows
from services.trainer.training.constitutional.prompts import Material, Meant, Prompt, prompt_id, read_material
from services.trainer.training.rows import read_rows


def prompts(count: int, category: str) -> list[Prompt]:
    found = []
    for number in range(count):
        turns = ({"role": "user", "content": f"{category} {number}"},)
        found.append(Prompt(prompt_id(turns), turns, category))
    return found


def revised(prompt: Prompt) -> Outcome:
    return Outcome(
        prompt.id, "revised", answer="No.", rejected=("Yes.",), fault="unheeded", law=1, critique="It breaks Law 1.",
        request_decision="ab" * 16, revision_decision="cd" * 16, constitution="ee" * 32,
    )  # fmt: skip


def lessons(harmful: int = 200, harmless: int = 400, **shares: float):
    bad, good = prompts(harmful, "law_1"), prompts(harmless, "benign")
    outcomes = [revised(each) for each in bad]
    outcomes += [Outcome(each.id, "passes", answer=f"Fine, {each.id}.") for each in good]
    made = make_lessons(
        Material((*bad, *good), ()),
        outcomes,
        Shares(**shares),
        seed=3,
        model_digest=b"m" * 32,
        reviser="template",
    )
    return with_harmless([made], shares.get("benign", 0.3), seed=3)[0]


def test_harmless_rows_of_another_dataset_count_as_those_of_the_same() -> None:
    bad, good = prompts(60, "law_1"), prompts(200, "benign")
    made = [
        make_lessons(Material(tuple(part), ()), outcomes, Shares(sft=1.0), seed=1, model_digest=b"", reviser="model")
        for part, outcomes in (
            (bad, [revised(each) for each in bad]),
            (good, [Outcome(each.id, "passes", answer=f"Fine, {each.id}.") for each in good]),
        )
    ]  # fmt: skip
    laws, everyday = with_harmless(made, 0.7, seed=1)
    assert (len(laws.learned), len(everyday.learned)) == (60, 140)


def test_no_answer_makes_up_more_than_its_share_of_the_harmless_rows() -> None:
    bad, good = prompts(60, "law_1"), prompts(400, "benign")
    answers = ["I do not know." if number % 2 else f"Fine, {number}." for number in range(len(good))]
    outcomes = [revised(each) for each in bad]
    outcomes += [
        Outcome(each.id, "passes", answer=answer) for each, answer in zip(good, answers, strict=True)
    ]
    made = make_lessons(
        Material((*bad, *good), ()), outcomes, Shares(sft=1.0), seed=1, model_digest=b"", reviser="model"
    )
    learned = with_harmless([made], 0.7, seed=1)[0].learned
    said = [row["messages"][-1]["content"] for row in learned if row["category"] == "benign"]
    assert (len(said), said.count("I do not know.")) == (140, 14)


def test_revisions_are_divided_between_answers_and_preferences() -> None:
    found = lessons(sft=0.25, benign=0.0)
    assert len(found.learned) + len(found.preferences) == 200
    assert 30 <= len(found.learned) <= 70


def test_harmless_rows_make_the_share_that_was_asked_for() -> None:
    found = lessons(sft=1.0, benign=0.4)
    harmless = sum(row["category"] == "benign" for row in found.learned)
    assert harmless / len(found.learned) == pytest.approx(0.4, abs=0.01)


def test_the_same_seed_gives_the_same_rows_in_the_same_order() -> None:
    assert lessons().learned == lessons().learned
    assert lessons().preferences == lessons().preferences


def test_every_row_says_which_decisions_constitution_and_model_it_comes_from() -> None:
    row = lessons(sft=1.0, benign=0.0).learned[0]
    assert row["facts"] == {
        "end": "revised", "request_decision": "ab" * 16, "revision_decision": "cd" * 16, "constitution": "ee" * 32,
        "fault": "unheeded", "law": "1", "model": (b"m" * 32).hex(), "reviser": "template",
    }  # fmt: skip


def test_some_violations_become_conversations_that_explain_them() -> None:
    bad = prompts(200, "law_1")
    outcomes = [replace(revised(each), fault="violation") for each in bad]
    found = make_lessons(
        Material(tuple(bad), ()), outcomes, Shares(sft=0.0), seed=1, model_digest=b"", reviser="model"
    )
    assert len(found.preferences) == 200
    assert 10 <= len(found.learned) <= 40
    question, answer = found.learned[0]["messages"]
    assert "An assistant answered: Yes." in question["content"]
    assert answer["content"] == "No. It breaks Law 1. A right answer is: No."


def test_an_explanation_that_is_too_long_is_not_learned() -> None:
    bad = prompts(200, "law_1")
    outcomes = [replace(revised(each), fault="violation") for each in bad]
    found = make_lessons(
        Material(tuple(bad), ()),
        outcomes,
        Shares(sft=0.0),
        seed=1,
        model_digest=b"",
        reviser="model",
        fits=lambda text: len(text) < 8,
    )
    assert len(found.preferences) == 200
    assert not found.learned


def test_what_is_written_is_what_training_reads(tmp_path: Path) -> None:
    found = lessons()
    write_rows(tmp_path / "learned", found.learned)
    write_rows(tmp_path / "preferences", found.preferences)
    assert len(list(read_rows(tmp_path / "learned/train.jsonl", "sft"))) == len(found.learned)
    assert len(list(read_rows(tmp_path / "preferences/train.jsonl", "dpo"))) == len(found.preferences)


def test_tasks_and_explanations_are_kept_as_they_are_and_prompts_come_once(tmp_path: Path) -> None:
    rows = [
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "category": "law_2",
         "facts": {"law": "2"}},
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "c"}], "category": "law_2"},
        {"messages": [{"role": "user", "content": "t"}, {"role": "assistant", "content": "d"}],
         "category": "template_task"},
        {"messages": [{"role": "user", "content": "k"}, {"role": "assistant", "content": "e"}], "category": "law_2",
         "facts": {"kind": "critique"}},
        {"prompt": "p", "completion": "q", "category": "conflict"},
    ]  # fmt: skip
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    material = read_material(tmp_path)
    assert [(each.request, each.reference, each.law) for each in material.prompts] == [
        ("a", "b", 2),
        ("p", "q", None),
    ]
    assert [row["messages"][0]["content"] for row in material.kept] == ["t", "k"]


def test_what_is_longer_than_the_longest_revision_is_not_learned_in_its_place(tmp_path: Path) -> None:
    def row(asked: str, answer: str, **more: object) -> str:
        messages = [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
        return json.dumps({"messages": messages, **more}) + "\n"

    (tmp_path / "train.jsonl").write_text(
        row("a", "long " * 9, category="law_1") + row("b", "long " * 9, category="template_task")
        + row("c", "short", category="template_task")
    )  # fmt: skip
    material = read_material(tmp_path, lambda text: len(text) < 10)
    assert [each.reference for each in material.prompts] == [""]
    assert (len(material.kept), material.too_long) == (1, 1)


@pytest.mark.parametrize(
    ("category", "facts", "answer", "meant"),
    [
        ("law_2", {}, "x", Meant.REFUSAL),
        ("benign", {}, "x", Meant.HELP),
        ("conflict", {"law": "1", "against": "2"}, "Law 1 decides.", Meant.DECISION),
        ("multi_turn", {"law": "1"}, "I will not help with that.", Meant.REFUSAL),
        ("multi_turn", {"law": "1"}, "Gladly: water boils at 100 degrees.", Meant.HELP),
        ("messages", {}, "x", Meant.UNSAID),
    ],
)
def test_what_an_author_expects_is_read_from_category_and_answer(
    tmp_path: Path, category: str, facts: dict[str, str], answer: str, meant: Meant
) -> None:
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": answer}]
    (tmp_path / "train.jsonl").write_text(
        json.dumps({"messages": messages, "category": category, "facts": facts})
    )
    (prompt,) = read_material(tmp_path).prompts
    assert prompt.meant is meant


@pytest.mark.parametrize(
    "line",
    ["{", "[]", '{"messages": []}', '{"messages": [{"role": "assistant", "content": "x"}]}', '{"text": "x"}'],
)
def test_a_row_that_is_no_conversation_is_named(tmp_path: Path, line: str) -> None:
    (tmp_path / "train.jsonl").write_text(line + "\n")
    with pytest.raises(DataLossError, match=r"train\.jsonl"):
        read_material(tmp_path)


def test_a_journal_goes_on_after_a_line_that_a_crash_cut_short(tmp_path: Path) -> None:
    path = tmp_path / "drafts-000.jsonl"
    first = Journal(path, key="k")
    first.add(0, [Outcome("a" * 32, "passes", answer="x", draft_decisions=("1",))])
    with path.open("a") as file:
        file.write('{"key": "k", "batch": 1, "outc')
    second = Journal(path, key="k")
    second.add(1, [Outcome("b" * 32, "dropped", rejected=("y",))])
    read = Journal(path, key="k").batches
    assert read == {
        0: [Outcome("a" * 32, "passes", answer="x", draft_decisions=("1",))],
        1: [Outcome("b" * 32, "dropped", rejected=("y",))],
    }


def test_a_journal_of_another_job_is_not_taken_over(tmp_path: Path) -> None:
    Journal(tmp_path / "d.jsonl", key="one").add(0, [])
    assert Journal(tmp_path / "d.jsonl", key="two").batches == {}
