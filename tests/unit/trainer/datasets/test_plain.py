from __future__ import annotations

import json
from importlib.resources import files

import pytest

from services.trainer.datasets.generators import generate
from services.trainer.evaluation.refusals import is_refusal


def test_half_of_the_harmless_rows_are_everyday_requests_and_none_is_refused() -> None:
    rows = list(generate("benign", 1500, 3))
    plain = [row for row in rows if row.facts["kind"] == "plain"]
    assert 600 <= len(plain) <= 900
    assert [row.messages[1].content for row in plain if is_refusal(row.messages[1].content)] == []


@pytest.mark.parametrize("category", ["benign", "law_0", "law_1", "law_2", "template_task"])
def test_no_generated_row_asks_a_question_of_the_gates(category: str) -> None:
    suites = files("services.trainer.evaluation").joinpath("suites")
    asked = {
        json.loads(line).get("text", "").casefold().strip(" .?!")
        for name in ("known_answers", "embedded_benign", "embedded_harm", "template_task")
        for line in suites.joinpath(f"{name}.jsonl").read_text().splitlines()
    }
    drawn = {row.messages[0].content.casefold().strip(" .?!") for row in generate(category, 3000, 5)}
    assert drawn & asked == set()
