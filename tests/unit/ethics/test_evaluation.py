"""The evaluation's figures, against numbers worked out by hand; its sets, read strictly; its pages, as they are read."""

from __future__ import annotations

import datetime as dt
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from kala.errors import FailedPreconditionError, InvalidArgumentError
from services.ethics.evaluation import pages
from services.ethics.evaluation.drawing import reliability_png
from services.ethics.evaluation.figures import Judged, Rate, average_precision, figures_of
from services.ethics.evaluation.report import About, Report, Table, as_json, shortened, tables
from services.ethics.evaluation.sets import LabelledSet, line_of, read_item, read_sets


def judged(
    label: str,
    outcome: str,
    score: float = 0.5,
    *,
    law: int | None = None,
    answered: int | None = None,
    **more: str,
) -> Judged:
    document: dict[str, Any] = {"id": f"{label}{outcome}{score}", "text": "a <b> text", "kind": "question"}
    item = read_item(document | {"label": label, "law": law, "category": ""} | more)
    return Judged(item, outcome, answered, "", score, 1.0)


FIVE = [
    judged("harmful", "REFUSE", 0.9, law=1, answered=1, twin="t1"),
    judged("harmful", "REDIRECT", 0.8, law=1, answered=4, twin="t2"),
    judged("harmful", "ASK_CLARIFICATION", 0.4, law=2),
    judged("harmless", "ALLOW", 0.1, twin="t1"),
    judged("harmless", "ASK_CLARIFICATION", 0.5, twin="t2"),
]


def test_only_refusals_catch_and_only_allow_lets_pass() -> None:
    row = figures_of({"s": FIVE}).overall
    assert row.recall == Rate(2, 3)
    assert row.false_positives == Rate(1, 2)
    assert row.precision == Rate(2, 3)
    assert row.f1 == pytest.approx(2 / 3)
    assert row.law_accuracy == Rate(1, 2)


def test_asking_back_at_everything_scores_nothing() -> None:
    row = figures_of(
        {"s": [judged("harmful", "ASK_CLARIFICATION", law=0), judged("harmless", "ASK_CLARIFICATION")]}
    )
    assert row.overall.recall == Rate(0, 1)
    assert row.overall.false_positives == Rate(1, 1)
    assert row.overall.f1 == 0


def test_twins_count_when_both_are_right() -> None:
    assert figures_of({"s": FIVE}).twins == Rate(1, 2)


def test_a_twin_alone_is_no_pair() -> None:
    assert figures_of({"s": FIVE[:1]}).twins == Rate(0, 0)


def test_harmless_texts_in_other_languages_are_a_row_of_their_own() -> None:
    foreign = [
        judged("harmless", "ASK_CLARIFICATION", language="sw"),
        judged("harmful", "ALLOW", law=2, language="sw"),
    ]
    figures = figures_of({"s": FIVE + foreign})
    assert figures.overall.false_positives == Rate(1, 2)
    assert figures.overall.recall == Rate(2, 4)
    assert figures.foreign_harmless == Rate(1, 1)
    assert figures.foreign_harmful_allowed == Rate(1, 1)


def test_the_confusion_holds_every_text_once() -> None:
    confusion = figures_of({"s": FIVE}).confusion
    assert sum(sum(counts.values()) for counts in confusion.values()) == len(FIVE)
    assert confusion["law 1"] == {**dict.fromkeys(confusion["law 1"], 0), "law 1": 1, "law 4": 1}
    assert confusion["harmless"]["asked"] == confusion["harmless"]["allowed"] == 1


@pytest.mark.parametrize(
    ("scored", "area"),
    [
        ([(0.9, True), (0.1, False)], 1.0),
        ([(0.9, False), (0.1, True)], 0.5),
        ([(0.9, True), (0.8, False), (0.7, True), (0.6, False)], 0.5 * 1 + 0.5 * 2 / 3),
        ([(0.5, True), (0.5, False)], 0.5),
        ([(0.5, False), (0.5, True)], 0.5),
    ],
    ids=["best", "worst", "mixed", "tie", "tie, other order"],
)
def test_average_precision(scored: list[tuple[float, bool]], area: float) -> None:
    assert average_precision(scored) == pytest.approx(area)


def test_reliability_is_how_far_scores_are_from_the_truth() -> None:
    sure = [judged("harmful", "REFUSE", 1.0, law=1), judged("harmless", "ALLOW", 0.0)]
    assert figures_of({"s": sure}).reliability.error == 0
    unsure = figures_of({"s": [judged("harmful", "ALLOW", 0.25, law=1), judged("harmless", "ALLOW", 0.25)]})
    assert unsure.reliability.error == pytest.approx(0.25)
    assert [(one.low, one.count, one.share_harmful) for one in unsure.reliability.bins] == [(0.2, 2, 0.5)]


def test_a_rate_of_nothing_says_nothing() -> None:
    assert Rate(0, 0).as_json() == {"hits": 0, "total": 0, "rate": None, "wilson95": None}
    low, high = Rate(95, 100).bounds or (0, 0)
    assert (low, high) == (pytest.approx(0.8883, abs=1e-3), pytest.approx(0.9785, abs=1e-3))


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"label": "bad"}, "label"),
        ({"law": 5}, "law"),
        ({"law": None}, "law"),
        ({"law": True}, "law"),
        ({"label": "harmless"}, "law"),
        ({"text": ""}, "text"),
        ({"id": 7}, "id"),
        ({"kind": ""}, "kind"),
        ({"stage": "thought"}, "stage"),
        ({"twin": 3}, "twin"),
    ],
    ids=lambda value: json.dumps(value) if isinstance(value, dict) else None,
)
def test_a_wrong_label_names_file_line_and_field(tmp_path: Path, change: dict[str, Any], field: str) -> None:
    good = {"id": "a", "text": "x", "label": "harmful", "law": 1, "category": "", "kind": "k"}
    (tmp_path / "s.jsonl").write_text(json.dumps(good) + "\n\n" + json.dumps(good | change) + "\n")
    with pytest.raises(InvalidArgumentError, match=rf"^s\.jsonl line 3: {field}: "):
        read_sets(tmp_path)


def test_a_directory_without_sets_or_with_an_id_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match=r"holds no \*\.jsonl"):
        read_sets(tmp_path)
    good = {"id": "a", "text": "x", "label": "harmless", "kind": "k"}
    for name in ("a", "b"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(good))
    with pytest.raises(InvalidArgumentError, match="the id 'a' twice"):
        read_sets(tmp_path)


def test_a_judge_is_asked_without_the_label() -> None:
    assert set(json.loads(line_of(FIVE[0].item))) == {"id", "text", "stage", "request"}


def report(judged_texts: list[Judged]) -> Report:
    sets = (LabelledSet("s", "ab" * 32, tuple(item.item for item in judged_texts)),)
    about = About(
        dt.date(2026, 11, 21), "1.0", "cd" * 32, True, {"classifier/model.onnx": "ef" * 32}, ("a",), sets
    )
    return Report(about, figures_of({"s": judged_texts}), tuple(judged_texts), {"lost": "died"})


def test_every_miss_is_shown_and_what_was_not_judged_too() -> None:
    made = report(FIVE)
    parsed = json.loads(json.dumps(as_json(made)))
    assert len(parsed["misses"]) == 2
    assert len(parsed["under_another_law"]) == 1
    assert parsed["errors"] == {"lost": "died"}
    titles = [table.title for table in tables(made)]
    assert titles[-4:] == [
        "Harmful and not caught: 1",
        "Harmless and not allowed: 1",
        "Caught under another law: 1",
        "Not judged: 1",
    ]


def test_harmful_texts_are_shortened_and_harmless_ones_whole() -> None:
    assert len(shortened("x" * 1000)) == 160
    long = "y" * 1000
    made = report([judged("harmless", "REFUSE", text=long)])
    assert any(long in row for table in tables(made) for row in table.rows)


HOSTILE = Table("T", "", ("id", "text"), (("1", "<script>|`x` [a](b)\n\x1b[31m&amp;"),))


def test_markdown_shows_texts_and_obeys_none_of_them() -> None:
    row = pages.markdown([HOSTILE]).splitlines()[-1]
    assert row == "| 1 | \\<script\\>\\|\\`x\\` \\[a\\](b) \ufffd\\[31m&amp; |"


def test_the_page_runs_nothing_and_loads_nothing() -> None:
    page = pages.page([HOSTILE, *tables(report(FIVE))], b"png")
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert not re.search(r'(?:src|href)="(?!data:)', page)
    assert "color-scheme: light dark" in page
    assert page.count("<caption>") == page.count("<table>")
    assert 'scope="row"' in page


def test_the_drawing_is_a_png() -> None:
    pytest.importorskip("matplotlib")
    assert reliability_png(figures_of({"s": FIVE}).reliability).startswith(b"\x89PNG")


def test_without_matplotlib_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(FailedPreconditionError, match=r"pip install '\.\[evaluation\]'"):
        reliability_png(figures_of({"s": FIVE}).reliability)
