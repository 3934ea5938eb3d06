"""Options that several commands share, so that they are spelled and explained the same everywhere."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from kala.suite.layout import StateLayout
from kala.target import KEY_VARIABLE, STATE_VARIABLE, URL_VARIABLE, state_from

# The environment is read by `find_target` and `layout_of`, not here: a flag must win over the variable of another one.
StateOption = Annotated[
    Path | None,
    typer.Option(
        "--state",
        help=f"Directory of the suite. Default: {STATE_VARIABLE}, else ~/.local/state/kala.",
        show_default=False,
    ),
]
UrlOption = Annotated[
    str | None,
    typer.Option("--url", help=f"A gateway elsewhere. Default: {URL_VARIABLE}.", show_default=False),
]
KeyOption = Annotated[
    str | None,
    typer.Option(
        "--key", help=f"API key. Default: {KEY_VARIABLE}, else the suite's own.", show_default=False
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]


def layout_of(state: Path | None) -> StateLayout:
    """The state directory that a command means."""
    return StateLayout.at(state or state_from(os.environ))
