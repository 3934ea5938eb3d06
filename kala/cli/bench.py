"""`kala bench`: how fast the providers of a suite answer, with reports for people and for programs."""

from __future__ import annotations

import itertools
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from kala.cli.options import KeyOption, StateOption, UrlOption
from kala.cli.output import console, note, table
from kala.errors import FailedPreconditionError

if TYPE_CHECKING:
    from kala.client import KalaClient
    from kala.provider_bench.measure import Measured, Provider
    from kala.provider_bench.prompts import Prompt
    from kala.provider_bench.report import Conditions

group = typer.Typer(help="Measure how fast the providers of a suite answer.", no_args_is_help=True)

LOGS: Final = Path("logs")


@group.callback()
def _bench() -> None:
    """Keep `providers` a command of its own."""


@group.command()
def providers(
    *,
    provider: Annotated[
        list[str] | None,
        typer.Option(help="Only this one, by name or kind; may be given several times. Default: all."),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Two questions instead of six.")] = False,
    out: Annotated[Path, typer.Option(help="Directory of the two reports.")] = LOGS,
    state: StateOption = None,
    url: UrlOption = None,
    key: KeyOption = None,
) -> int:
    """Ask every provider the same questions; exit code 0 when at least one answered. Reports go to logs/."""
    from kala.client import KalaClient
    from kala.provider_bench.measure import select
    from kala.provider_bench.prompts import prompts
    from kala.provider_bench.report import COLUMNS, Conditions, fastest, rows
    from kala.target import find_target

    questions = prompts(quick=quick)
    started = datetime.now(UTC)
    _make(out)
    with KalaClient(find_target(url=url, key=key, state=state)) as client:
        results = _measured(client, select(client.backends(), provider or []), questions)
        gateway = client.target.url
    conditions = Conditions(started, datetime.now(UTC), gateway, _machine(), quick, questions)
    table("Providers", COLUMNS, rows(results))
    for path in _write(out, results, conditions):
        note(f"wrote {path}")
    best = fastest(results)
    note(f"most tokens per second: {best}" if best else "no provider answered; `kala status` says why")
    return 0 if best else 1


def _measured(client: KalaClient, chosen: list[Provider], questions: tuple[Prompt, ...]) -> list[Measured]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from kala.provider_bench.measure import measure

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    steps = (len(questions) + 1) * sum(each.is_ready for each in chosen)
    results: list[Measured] = []
    with Progress(*columns, console=console(to_stderr=True), transient=True) as progress:
        bar = progress.add_task("asking", total=steps)
        for each in chosen:

            def step(question: str, name: str = each.name) -> None:
                progress.update(bar, description=f"{name}: {question}")

            results.append(
                measure(client, each, questions, on_step=step, on_done=lambda: progress.advance(bar))
            )
    return results


def _make(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FailedPreconditionError(
            f"{out} cannot be made ({error.strerror}); choose a writable directory with --out"
        ) from error


def _write(out: Path, results: list[Measured], conditions: Conditions) -> tuple[Path, Path]:
    from kala.provider_bench.report import as_json, as_markdown

    machine_readable, readable = _free_names(out, f"{conditions.started_at:%Y%m%d_%H%M%S}")
    machine_readable.write_text(json.dumps(as_json(results, conditions), indent=2) + "\n", encoding="utf-8")
    readable.write_text(as_markdown(results, conditions), encoding="utf-8")
    return machine_readable, readable


def _free_names(out: Path, stamp: str) -> tuple[Path, Path]:
    """Give names that hold no report yet: two runs may end within one second."""
    for number in itertools.count(1):
        name = stamp if number == 1 else f"{stamp}_{number}"
        machine_readable = out / f"llm_benchmark_results_{name}.json"
        if not machine_readable.exists():
            return machine_readable, out / f"LLM_BENCHMARK_REPORT_{name}.md"
    raise AssertionError  # pragma: no cover - there are more numbers than files


def _machine() -> str:
    import os
    import platform

    return f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
