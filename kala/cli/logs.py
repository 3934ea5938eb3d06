"""`kala logs`: what the parts wrote."""

from __future__ import annotations

from typing import Annotated, Final

import typer

from kala.cli.options import StateOption, layout_of
from kala.cli.output import note, show
from kala.errors import NotFoundError

DEFAULT_LINES: Final = 20
MAX_LINES: Final = 100_000


def logs(
    part: Annotated[
        str | None, typer.Argument(help="gateway, ethics, inference, audit or supervisor. Default: all.")
    ] = None,
    *,
    lines: Annotated[
        int, typer.Option("--lines", "-n", min=1, max=MAX_LINES, help="How many of the last lines.")
    ] = DEFAULT_LINES,
    state: StateOption = None,
) -> None:
    """Show the last lines that the parts of the suite wrote; they hold no prompts, answers or keys."""
    from kala.suite.logfiles import last_lines

    folder = layout_of(state).logs
    names = sorted(path.stem for path in folder.glob("*.log"))
    if not names or (part is not None and part not in names):
        raise NotFoundError(
            f"no log of {part or 'any part'} in {folder}; there are: {', '.join(names) or 'none'}"
        )
    for name in names if part is None else [part]:
        path = folder / f"{name}.log"
        note(f"{path}:")
        for line in last_lines(path, count=lines, max_bytes=1024 * lines):
            show(line)
