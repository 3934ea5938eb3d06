"""What semgrep said once, recorded, becomes findings, problems and places of this product."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from services.tools.code.catalogue import owasp_of
from services.tools.code.engines.semgrep_answer import SemgrepAnswerError, read_answer, rule_texts, rules_of
from services.tools.code.model import CodeLanguage, EngineResult, Source
from services.tools.semgrep import command, environment

FOLDER = Path(__file__).resolve().parents[3] / "fixtures" / "code_semgrep"
RECORDED = (FOLDER / "answer.json").read_bytes()
RULES = rules_of(rule_texts())
SOURCES = {
    "code/0.py": Source("views.py", (FOLDER / "views.py.txt").read_text("utf-8"), CodeLanguage.PYTHON),
    "code/1.js": Source("server.js", (FOLDER / "server.js").read_text("utf-8"), CodeLanguage.JAVASCRIPT),
    "code/2.py": Source("broken.py", (FOLDER / "broken.py.txt").read_text("utf-8"), CodeLanguage.PYTHON),
}


@pytest.fixture(scope="module")
def results() -> dict[str, EngineResult]:
    return read_answer(RECORDED, SOURCES, RULES)[1]


def test_every_rule_finds_its_weakness_and_the_safe_lines_are_left_alone(
    results: dict[str, EngineResult],
) -> None:
    hits = [hit for name in ("code/0.py", "code/1.js") for hit in results[name].hits]
    assert {hit.rule.id for hit in hits} == {rule.id for rule in RULES.values()}
    assert len(hits) == len(RULES)


def test_places_count_characters_not_bytes(results: dict[str, EngineResult]) -> None:
    (hit,) = (hit for hit in results["code/0.py"].hits if hit.rule.cwe == (89,))
    line = SOURCES["code/0.py"].lines.line(hit.region.start_line)
    seen = line[hit.region.start_column - 1 : hit.region.end_column - 1]
    assert seen == '"SELECT * FROM t WHERE é=\'" + name + "\'"'


def test_what_could_not_be_parsed_is_a_problem_with_its_line(results: dict[str, EngineResult]) -> None:
    assert results["code/2.py"].problems == ("semgrep could not read or check it completely at line 2",)
    assert results["code/0.py"].problems == ()


def test_a_file_that_was_left_out_is_a_problem() -> None:
    answer = json.loads(RECORDED)
    answer["paths"]["scanned"].remove("code/1.js")
    _, results = read_answer(json.dumps(answer).encode(), SOURCES, RULES)
    assert results["code/1.js"].problems == ("semgrep did not scan this .js file",)


def test_an_error_of_no_file_is_a_problem_of_every_file() -> None:
    answer = json.loads(RECORDED) | {"errors": [{"message": "no", "level": "error"}]}
    _, results = read_answer(json.dumps(answer).encode(), SOURCES, RULES)
    assert all("error of its own" in result.problems[0] for result in results.values())


@pytest.mark.parametrize("change", [{"check_id": "rules.foreign"}, {"path": "/etc/passwd"}, {"start": {}}])
def test_what_is_no_answer_to_the_question_is_refused(change: dict[str, object]) -> None:
    answer = json.loads(RECORDED)
    answer["results"][0].update(change)
    with pytest.raises(SemgrepAnswerError):
        read_answer(json.dumps(answer).encode(), SOURCES, RULES)


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", RECORDED[:-9]])
def test_a_broken_answer_is_refused(data: bytes) -> None:
    with pytest.raises(SemgrepAnswerError):
        read_answer(data, SOURCES, RULES)


def test_every_rule_has_an_owasp_category() -> None:
    assert [rule.id for rule in RULES.values() if not owasp_of(rule.cwe)] == []


def test_the_program_is_told_to_stay_offline_and_to_obey_no_comments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.example")
    monkeypatch.setenv("SEMGREP_APP_TOKEN", "x")
    program = Path("/opt/semgrep/bin/semgrep")
    assert {"--metrics=off", "--disable-version-check", "--disable-nosem", "--no-git-ignore"} <= set(
        command(program, cpu_seconds=1)
    )
    found = environment(program, tmp_path)
    assert not {"HTTPS_PROXY", "SEMGREP_APP_TOKEN"} & set(found)
    assert found["HOME"].startswith(str(tmp_path))
