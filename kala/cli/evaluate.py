"""`kala eval`: an adapter against a gate profile, and how an evaluation came out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final

import typer

from kala.cli.options import JsonOption, KeyOption, StateOption, UrlOption
from kala.cli.output import note, show, show_json, table
from kala.cli.trainer_words import bar_of, trainer_of, word

EXIT_FAILED: Final = 1
_MICROS: Final = 1_000_000
"""Gates count in millionths, so that every verifier comes to the same answer."""

# Any: JSON of the gateway.
Json = Mapping[str, Any]


def evaluate(
    adapter: Annotated[
        str, typer.Argument(metavar="ADAPTER", help="adapters/<name>@<version>, or <name>@<version>.")
    ],
    *,
    profile: Annotated[str, typer.Option(help="The gate profile, by name.")] = "standard",
    as_json: JsonOption = False,
    state: StateOption = None,
    url: UrlOption = None,
    key: KeyOption = None,
) -> None:
    """Run a gate profile against an adapter; exit 1 when it does not pass. The result is logged either way."""
    with trainer_of(url, key, state) as trainer:
        found = trainer.adapter(adapter)
        with bar_of(_evaluation_words, quiet=as_json) as show_metadata:
            evaluation = trainer.evaluate(found, profile, show_metadata)
    if as_json:
        show_json(evaluation)
    else:
        show_evaluation(evaluation)
    if evaluation.get("outcome") != "GATE_OUTCOME_PASSED":
        raise typer.Exit(EXIT_FAILED)


def show_evaluation(evaluation: Json) -> None:
    """Print an evaluation with each of its requirements."""
    outcome = word(evaluation.get("outcome"), "GATE_OUTCOME_") or "running"
    show(
        f"{evaluation.get('name')} {evaluation.get('profile')}: {outcome}, receipt {evaluation.get('receipt') or '-'}"
    )
    result: Json = evaluation.get("result") or {}
    if result.get("error"):
        note(f"the evaluation broke, which counts as failed: {result['error']}")
    rows = [_metric_row(each) for each in result.get("metrics") or ()]
    if rows:
        columns = ("metric", "slice", "suite", "adapter", "base", "must", "threshold", "holds")
        table(None, columns, rows)


def _metric_row(metric: Json) -> tuple[str, ...]:
    return (
        str(metric.get("metric") or ""),
        str(metric.get("slice") or ""),
        str(metric.get("suite") or ""),
        _value(metric, ""),
        _value(metric, "base_"),
        word(metric.get("comparison"), "GATE_COMPARISON_"),
        f"{int(metric.get('threshold_micros') or 0) / _MICROS:g}",
        "yes" if metric.get("passed") else "no",
    )


def _value(metric: Json, of: str) -> str:
    """Write a metric's number: counts as they are, anything else in its unit; nothing for a base that was not compared."""
    total = int(metric.get(f"{of}total") or 0)
    if total:
        return f"{metric.get(f'{of}hits')} of {total}"
    value = int(metric.get(f"{of}value_micros") or 0)
    return f"{value / _MICROS:g}" if value or not of else ""


def _evaluation_words(metadata: Json) -> tuple[str, int, int | None]:
    failed = ", ".join(map(str, metadata.get("failed") or ()))
    words = f"evaluating {metadata.get('suite') or ''}" + (f" (failed: {failed})" if failed else "")
    return words, int(metadata.get("items") or 0), int(metadata.get("total_items") or 0) or None
