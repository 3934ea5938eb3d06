"""Options that several commands share, so that they are spelled and explained the same everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kala.target import KEY_VARIABLE, STATE_VARIABLE, URL_VARIABLE

StateOption = Annotated[
    Path | None,
    typer.Option(
        "--state",
        help="Directory of the suite. Default: ~/.local/state/kala.",
        envvar=STATE_VARIABLE,
        show_envvar=True,
        show_default=False,
    ),
]
UrlOption = Annotated[
    str | None,
    typer.Option(
        "--url", help="A gateway elsewhere, instead of --state.", envvar=URL_VARIABLE, show_default=False
    ),
]
KeyOption = Annotated[
    str | None,
    typer.Option("--key", help="API key for --url.", envvar=KEY_VARIABLE, show_default=False),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
