"""`kala control`: how backends and tools fared, from the log, as one JSON object for programs and words for people.

The exit code is 0 also when the log is away; the JSON then says `db_off`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kala.cli.options import KeyOption, StateOption, UrlOption
from kala.cli.output import note, show_json
from kala.control_plane import DEFAULT_WINDOW_HOURS, MAX_WINDOW_HOURS

if TYPE_CHECKING:
    from kala.client import KalaClient

group = typer.Typer(help="Show how backends and tools fared, from the log.", no_args_is_help=True)

WindowOption = Annotated[
    int,
    typer.Option("--window-hours", min=1, max=MAX_WINDOW_HOURS, help="How far back from now to count."),
]
JsonOnlyOption = Annotated[
    bool, typer.Option("--json-only", help="Print the JSON alone, without words on standard error.")
]
Json = dict[str, Any]  # Any: JSON


@group.command("pipeline-status")
def pipeline_status(
    *,
    window_hours: WindowOption = DEFAULT_WINDOW_HOURS,
    json_only: JsonOnlyOption = False,
    state: StateOption = None,
    url: UrlOption = None,
    key: KeyOption = None,
) -> None:
    """Count the runs of each backend and tool: how many ended well, how many failed, and how the last one ended."""
    from kala import control_plane

    status = _asked(
        lambda client: control_plane.pipeline_status(client, window_hours),
        lambda reason: control_plane.pipeline_status_off(reason, window_hours),
        (url, key, state),
    )
    show_json(status)
    if not json_only:
        note(control_plane.words_of(status))


@group.command()
def summary(
    *,
    window_hours: WindowOption = DEFAULT_WINDOW_HOURS,
    json_only: JsonOnlyOption = False,
    state: StateOption = None,
    url: UrlOption = None,
    key: KeyOption = None,
) -> None:
    """Show what the log counts, how the pipelines fared and LM Studio's state, as the suite last saw it."""
    from kala import control_plane

    told = _asked(
        lambda client: control_plane.summary(client, window_hours),
        lambda reason: control_plane.summary_off(reason, window_hours),
        (url, key, state),
    )
    show_json(told)
    if not json_only:
        note(control_plane.words_of(told["components"]["pipeline_status"]))
        lm = told["components"]["lm"]
        note(f"LM Studio: {lm['mode']}{f', {words}' if (words := lm['details']['message']) else ''}")


def _asked(
    ask: Callable[[KalaClient], Json],
    off: Callable[[str], Json],
    where: tuple[str | None, str | None, Path | None],
) -> Json:
    import kala.client
    from kala.control_plane import or_off
    from kala.target import find_target

    url, key, state = where

    def through() -> Json:
        with kala.client.KalaClient(find_target(url=url, key=key, state=state)) as client:
            return ask(client)

    return or_off(through, off)
