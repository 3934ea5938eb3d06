from __future__ import annotations

import json
from importlib.resources import files

from services.trainer.datasets.generators import generate
from services.trainer.evaluation.refusals import is_refusal


def test_half_of_the_harmless_rows_are_everyday_requests_and_none_is_refused() -> None:
    rows = list(generate("benign", 1500, 3))
    plain = [row for row in rows if row.facts["kind"] == "plain"]
    assert 600 <= len(plain) <= 900
    assert [row.messages[1].content for row in plain if is_refusal(row.messages[1].content)] == []


def test_no_everyday_request_is_a_question_of_the_gates() -> None:
    suites = files("services.trainer.evaluation").joinpath("suites")
    asked = {
        json.loads(line).get("text", "").casefold().strip(" .?!")
        for name in ("known_answers", "embedded_benign")
        for line in suites.joinpath(f"{name}.jsonl").read_text().splitlines()
    }
    drawn = {
        row.messages[0].content.casefold().strip(" .?!")
        for row in generate("benign", 4000, 5)
        if row.facts["kind"] == "plain"
    }
    assert drawn & asked == set()
