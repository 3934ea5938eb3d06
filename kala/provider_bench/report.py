"""What a benchmark found, as a table, as JSON and as Markdown.  Pure."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from statistics import median
from typing import Any, Final

from kala.provider_bench.measure import Measured, Run
from kala.provider_bench.prompts import Prompt

COLUMNS: Final = ("provider", "model", "answers", "first text", "whole answer", "tokens/s", "of it KALA")

MEASURED: Final = (
    "Times are what a client of the gateway sees, so they hold the judging and logging of KALA; the last column is its part. "
    "The first question to each provider, which loads its model, is not counted. Questions are asked one at a time."
)


@dataclass(frozen=True, slots=True)
class Summary:
    """The middle of a provider's answered questions; times in milliseconds."""

    asked: int
    answered: int
    refused: int
    failed: int
    first_text_ms: float | None
    total_ms: float | None
    tokens_per_second: float | None
    overhead_ms: float | None


@dataclass(frozen=True, slots=True)
class Conditions:
    """Under which a benchmark ran."""

    started_at: datetime
    finished_at: datetime
    gateway: str
    machine: str
    quick: bool
    questions: tuple[Prompt, ...]


def summarise(runs: Sequence[Run]) -> Summary:
    """Sum up; a value is None where no question was answered."""
    answered = [run for run in runs if run.outcome == "ok"]
    seconds = sum(run.total_ms for run in answered) / 1000
    return Summary(
        asked=len(runs),
        answered=len(answered),
        refused=sum(run.outcome == "refused" for run in runs),
        failed=sum(run.outcome == "failed" for run in runs),
        first_text_ms=_middle([run.first_text_ms for run in answered]),
        total_ms=_middle([run.total_ms for run in answered]),
        tokens_per_second=round(sum(run.output_tokens for run in answered) / seconds, 1) if seconds else None,
        overhead_ms=_middle([run.overhead_ms for run in answered]),
    )


def rows(results: Sequence[Measured]) -> list[tuple[str, ...]]:
    """Write the summary table, by COLUMNS."""
    return [_row(result) for result in results]


def fastest(results: Sequence[Measured]) -> str | None:
    """Name the provider with the most tokens per second; None when none answered."""
    speeds = [(summarise(result.runs).tokens_per_second or 0.0, result.provider.name) for result in results]
    best = max(speeds, default=(0.0, ""))
    return best[1] if best[0] > 0 else None


def as_json(results: Sequence[Measured], conditions: Conditions) -> dict[str, Any]:  # Any: JSON
    """Write everything that was measured."""
    return {
        "benchmark": "kala bench providers",
        "version": 1,
        "started_at": conditions.started_at.isoformat(timespec="seconds"),
        "finished_at": conditions.finished_at.isoformat(timespec="seconds"),
        "gateway": conditions.gateway,
        "machine": conditions.machine,
        "quick": conditions.quick,
        "measured": MEASURED,
        "questions": [dataclasses.asdict(question) for question in conditions.questions],
        "fastest": fastest(results),
        "providers": [
            {
                **dataclasses.asdict(result.provider),
                "warm_up": None if result.warm_up is None else dataclasses.asdict(result.warm_up),
                "runs": [dataclasses.asdict(run) for run in result.runs],
                "summary": dataclasses.asdict(summarise(result.runs)),
            }
            for result in results
        ],
    }


def as_markdown(results: Sequence[Measured], conditions: Conditions) -> str:
    """Write the report for people."""
    lines = [
        "# LLM provider benchmark",
        "",
        f"{_when(conditions)}, gateway {conditions.gateway}, {conditions.machine}.",
        MEASURED,
        "",
        *_table(COLUMNS, rows(results)),
        "",
    ]
    best = fastest(results)
    lines += [f"Most tokens per second: **{best}**." if best else "No provider answered.", ""]
    for result in results:
        lines += [*_section(result), ""]
    return "\n".join(lines)


def _when(conditions: Conditions) -> str:
    return f"{conditions.started_at:%Y-%m-%d %H:%M:%S} UTC, {'quick' if conditions.quick else 'full'} run"


def _section(result: Measured) -> list[str]:
    provider = result.provider
    head = [f"## {provider.name}", "", f"{provider.kind}, {provider.url}: {provider.detail}"]
    if not result.runs:
        return head
    table = [
        (
            run.prompt,
            run.outcome,
            _ms(run.first_text_ms),
            _ms(run.total_ms),
            str(run.output_tokens),
            run.error,
        )
        for run in ((result.warm_up,) if result.warm_up else ()) + result.runs
    ]
    return [
        *head,
        "",
        *_table(("question", "outcome", "first text", "whole answer", "tokens", "error"), table),
    ]


def _row(result: Measured) -> tuple[str, ...]:
    name, summary = result.provider.name, summarise(result.runs)
    if not result.runs:
        return (name, "", f"not measured: {result.provider.detail}", "", "", "", "")
    model = next((run.model for run in result.runs if run.model), "")
    words = [f"{summary.answered}/{summary.asked}"]
    words += [f"{summary.refused} refused"] if summary.refused else []
    words += [f"{summary.failed} failed: {_first_error(result.runs)}"] if summary.failed else []
    speed = "" if summary.tokens_per_second is None else f"{summary.tokens_per_second:.1f}"
    times = (_ms(summary.first_text_ms), _ms(summary.total_ms), speed, _ms(summary.overhead_ms))
    return (name, model, ", ".join(words), *times)


def _first_error(runs: Sequence[Run]) -> str:
    return next(run.error for run in runs if run.outcome == "failed")


def _table(columns: Sequence[str], table: Sequence[Sequence[str]]) -> list[str]:
    lines = [f"| {' | '.join(columns)} |", f"|{' --- |' * len(columns)}"]
    return lines + [f"| {' | '.join(_cell(cell) for cell in row)} |" for row in table]


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


def _ms(value: float | None) -> str:
    return "" if value is None else f"{value:.0f} ms"


def _middle(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return round(median(known), 1) if known else None
