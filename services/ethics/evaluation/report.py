"""What an evaluation reports: facts, tables of figures, and every miss; as JSON, and as tables for people. Pure."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from services.ethics.evaluation.figures import Figures, Judged, Rate, Row
from services.ethics.evaluation.sets import LabelledSet

FORMAT: Final = 1
# A harmful text is shown so far as it takes to see why it was missed; what people wrote in good faith is shown whole.
MAX_HARMFUL_CHARS: Final = 160
NONE: Final = "–"
_ROW_COLUMNS: Final = (
    "",
    "recall",
    "false positives",
    "precision",
    "F1",
    "AUPRC",
    "law accuracy among caught",
)


@dataclass(frozen=True, slots=True)
class About:
    """What was judged, by what, and when; `files` are the SHA-256 of the signed files of the classifier."""

    made_on: dt.date
    constitution: str
    digest: str
    is_development: bool
    files: Mapping[str, str]
    judges: tuple[str, ...]
    sets: tuple[LabelledSet, ...]


@dataclass(frozen=True, slots=True)
class Report:
    """All that is reported; `errors` are the texts that were not judged, by id."""

    about: About
    figures: Figures
    judged: tuple[Judged, ...]
    errors: Mapping[str, str]

    @property
    def missed(self) -> tuple[Judged, ...]:
        """Harmful texts that were not caught."""
        return tuple(item for item in self.judged if item.item.harmful and not item.right)

    @property
    def refused(self) -> tuple[Judged, ...]:
        """Harmless texts that were not allowed."""
        return tuple(item for item in self.judged if not item.item.harmful and not item.right)

    @property
    def under_another_law(self) -> tuple[Judged, ...]:
        """Harmful texts that were caught, but not under their law."""
        return tuple(
            item for item in self.judged if item.caught and item.item.harmful and item.law != item.item.law
        )


@dataclass(frozen=True, slots=True)
class Table:
    """One table for people; the first column heads its row, `note` says how to read it."""

    title: str
    note: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def as_json(report: Report) -> dict[str, Any]:  # Any: what JSON can hold
    """The whole report as one JSON object."""
    about, figures = report.about, report.figures
    return {
        "format": FORMAT,
        "made_on": about.made_on.isoformat(),
        "constitution": {
            "version": about.constitution,
            "digest": about.digest,
            "development": about.is_development,
        },
        "classifier_files": dict(about.files),
        "judges": list(about.judges),
        "sets": [{"name": one.name, "texts": len(one.items), "sha256": one.sha256} for one in about.sets],
        "overall": figures.overall.as_json(),
        "by_set": [row.as_json() for row in figures.sets],
        "by_kind": [row.as_json() for row in figures.kinds],
        "by_stage": [row.as_json() for row in figures.stages],
        "by_law": [
            {"law": law, "recall": recall.as_json(), "law_accuracy": accuracy.as_json()}
            for law, recall, accuracy in figures.laws
        ],
        "twins_both_right": figures.twins.as_json(),
        "confusion": {meant: dict(answered) for meant, answered in figures.confusion.items()},
        "not_english": {
            "harmless_refused": figures.foreign_harmless.as_json(),
            "harmful_caught": figures.foreign_harmful_caught.as_json(),
            "harmful_allowed": figures.foreign_harmful_allowed.as_json(),
        },
        "reliability": {
            "expected_calibration_error": figures.reliability.error,
            "bins": [
                {
                    "from": found.low,
                    "below": found.high,
                    "texts": found.count,
                    "mean_score": found.mean_score,
                    "share_harmful": found.share_harmful,
                }
                for found in figures.reliability.bins
            ],
        },
        "elapsed_ms": dict(figures.elapsed_ms),
        "misses": [_miss_json(item) for item in (*report.missed, *report.refused)],
        "under_another_law": [_miss_json(item) for item in report.under_another_law],
        "errors": dict(report.errors),
    }


def tables(report: Report) -> list[Table]:
    """Everything that people read, in its order; the misses at the end, all of them."""
    return [*_about_tables(report.about), *_figure_tables(report.figures), *_miss_tables(report)]


def shortened(text: str) -> str:
    """A harmful text, shortened."""
    return text if len(text) <= MAX_HARMFUL_CHARS else f"{text[: MAX_HARMFUL_CHARS - 1]}…"


def rate_words(rate: Rate) -> str:
    """A rate as people read it: the share, its interval, the counts."""
    if rate.value is None or rate.bounds is None:
        return NONE
    low, high = rate.bounds
    return f"{rate.value:.3f} ({low:.3f} to {high:.3f}), {rate.hits} of {rate.total}"


def _about_tables(about: About) -> list[Table]:
    trust = ", signed by the public development key" if about.is_development else ""
    facts = [
        ("constitution", f"{about.constitution}{trust}"),
        ("its digest", about.digest),
        *((f"SHA-256 of {name}", digest) for name, digest in sorted(about.files.items())),
        ("judges", ", ".join(about.judges)),
        ("judged on", about.made_on.isoformat()),
    ]
    sets = [
        (
            one.name,
            str(sum(item.harmful for item in one.items)),
            str(sum(not item.harmful for item in one.items)),
            one.sha256,
        )
        for one in about.sets
    ]
    return [
        Table("What was judged, and by what", "", ("", "value"), tuple(facts)),
        Table("Sets", "", ("set", "harmful", "harmless", "SHA-256"), tuple(sets)),
    ]


def _figure_tables(figures: Figures) -> list[Table]:
    note = (
        "Each rate with its 95 % Wilson interval and counts. Of harmful texts only REFUSE and REDIRECT are catches; of "
        "harmless ones every outcome but ALLOW counts as refused. Harmless texts in other languages than English are "
        "counted in their own table only."
    )
    return [
        Table("Overall", note, _ROW_COLUMNS, (_row(figures.overall),)),
        Table("By set", "", _ROW_COLUMNS, tuple(map(_row, figures.sets))),
        Table("By kind", "", _ROW_COLUMNS, tuple(map(_row, figures.kinds))),
        Table("By stage", "", _ROW_COLUMNS, tuple(map(_row, figures.stages))),
        Table(
            "By law",
            "Of the texts that a law forbids: how many are caught, and how many of those under that law.",
            ("law", "recall", "law accuracy among caught"),
            tuple(
                (f"law {law}", rate_words(recall), rate_words(right)) for law, recall, right in figures.laws
            ),
        ),
        Table(
            "Twins and other languages",
            "Twins are texts told apart by their purpose; they count when all of them are judged rightly.",
            ("", "rate"),
            (
                ("twins all right", rate_words(figures.twins)),
                ("harmless, not English: refused or asked", rate_words(figures.foreign_harmless)),
                ("harmful, not English: caught", rate_words(figures.foreign_harmful_caught)),
                ("harmful, not English: allowed in silence", rate_words(figures.foreign_harmful_allowed)),
            ),
        ),
        _confusion_table(figures),
        _reliability_table(figures),
        Table(
            "Time per text",
            "Several processes at once, on the machine that made this report; it compares nothing.",
            ("", "ms"),
            tuple((name, f"{value:.1f}") for name, value in figures.elapsed_ms.items()),
        ),
    ]


def _confusion_table(figures: Figures) -> Table:
    columns = tuple(next(iter(figures.confusion.values())))
    rows = tuple(
        (meant, *(str(counts[name]) for name in columns)) for meant, counts in figures.confusion.items()
    )
    note = "Rows: what the text is. Columns: under which law it was refused or redirected, or what happened instead."
    return Table("Confusion by law", note, ("", *columns), rows)


def _reliability_table(figures: Figures) -> Table:
    rows = tuple(
        (
            f"{one.low:.1f} to {one.high:.1f}",
            str(one.count),
            f"{one.mean_score:.3f}",
            f"{one.share_harmful:.3f}",
        )
        for one in figures.reliability.bins
    )
    note = f"Expected calibration error {figures.reliability.error:.3f}: the mean distance of the last two columns."
    return Table("Reliability of the score", note, ("score", "texts", "mean score", "share harmful"), rows)


def _miss_tables(report: Report) -> list[Table]:
    missed = [
        (
            item.item.id,
            item.item.kind,
            f"{item.item.law} {item.item.category}",
            item.outcome,
            f"{item.score:.3f}",
            shortened(item.item.text),
        )
        for item in report.missed
    ]
    refused = [
        (
            item.item.id,
            item.item.kind,
            item.outcome,
            f"{NONE if item.law is None else item.law} {item.category}",
            f"{item.score:.3f}",
            item.item.text,
        )
        for item in report.refused
    ]
    other = [
        (
            item.item.id,
            f"{item.item.law} {item.item.category}",
            f"{NONE if item.law is None else item.law} {item.category}",
            shortened(item.item.text),
        )
        for item in report.under_another_law
    ]
    found = [
        Table(
            f"Harmful and not caught: {len(missed)}",
            f"All of them, shortened to {MAX_HARMFUL_CHARS} characters.",
            ("id", "kind", "law", "outcome", "score", "text"),
            tuple(missed),
        ),
        Table(
            f"Harmless and not allowed: {len(refused)}",
            "All of them, whole.",
            ("id", "kind", "outcome", "refused under law", "score", "text"),
            tuple(refused),
        ),
        Table(f"Caught under another law: {len(other)}", "", ("id", "law", "answered", "text"), tuple(other)),
    ]
    if report.errors:
        note = "These are in no figure above."
        rows = tuple(sorted(report.errors.items()))
        found.append(Table(f"Not judged: {len(rows)}", note, ("id", "error"), rows))
    return found


def _row(row: Row) -> tuple[str, ...]:
    return (
        row.name,
        rate_words(row.recall),
        rate_words(row.false_positives),
        rate_words(row.precision),
        NONE if row.f1 is None else f"{row.f1:.3f}",
        NONE if row.auprc is None else f"{row.auprc:.3f}",
        rate_words(row.law_accuracy),
    )


def _miss_json(item: Judged) -> dict[str, Any]:  # Any: what JSON can hold
    labelled = item.item
    return {
        "id": labelled.id,
        "text": shortened(labelled.text) if labelled.harmful else labelled.text,
        "harmful": labelled.harmful,
        "law": labelled.law,
        "category": labelled.category,
        "kind": labelled.kind,
        "outcome": item.outcome,
        "answered_law": item.law,
        "answered_category": item.category,
        "score": item.score,
    }
