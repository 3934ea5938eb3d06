"""What commands print: results on standard output, everything else on standard error."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TextIO

from kala.cli.tool_words import printable

if TYPE_CHECKING:
    from rich.console import Console


def show(text: str) -> None:
    """Print a result."""
    _print(text, sys.stdout)


def note(text: str) -> None:
    """Print what is not the result: progress, hints, warnings."""
    _print(text, sys.stderr)


def _print(text: str, stream: TextIO) -> None:
    """Print a line; a terminal gets no control characters out of a model's, a backend's or a file's words."""
    stream.write(f"{printable(text) if stream.isatty() else text}\n")
    stream.flush()


def show_json(value: Mapping[str, Any]) -> None:  # Any: whatever JSON holds
    """Print exactly one JSON object."""
    show(json.dumps(value, indent=2))


def table(
    title: str | None, columns: Sequence[str], rows: Iterable[Sequence[str]], *, to_stderr: bool = False
) -> None:
    """Print a table; cells are plain text, never markup and never what moves a terminal's cursor."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    built = Table(*columns, title=title, title_justify="left", box=SIMPLE_HEAD)
    for row in rows:
        built.add_row(*(Text(printable(cell)) for cell in row))
    console(to_stderr=to_stderr).print(built)


def console(*, to_stderr: bool = False) -> Console:
    """A Rich console; it writes plain text when its stream is no terminal."""
    from rich.console import Console

    stream = sys.stderr if to_stderr else sys.stdout
    # Piped output has no width of its own; narrow tables cut what a script or a log wants whole.
    return Console(stderr=to_stderr, highlight=False, width=None if stream.isatty() else 160)
