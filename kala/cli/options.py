"""Options that several commands share, so that they are spelled and explained the same everywhere."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kala.errors import InvalidArgumentError
from kala.suite.layout import StateLayout
from kala.target import KEY_VARIABLE, STATE_VARIABLE, URL_VARIABLE, state_from

if TYPE_CHECKING:
    from kala.ethics.constitution import Trust
    from kala.ethics.workers import Offline

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
        "--key",
        "--api-key",
        help=f"API key. Default: {KEY_VARIABLE}, else the suite's own.",
        show_default=False,
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
TrustedKeysOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--trusted-key",
        "--trusted-keys",
        help="Public key (PEM) that may sign; from outside the directory. May be given several times.",
        show_default=False,
    ),
]
ThresholdOption = Annotated[
    int | None,
    typer.Option(
        help="How many different trusted keys must have signed. Default: a majority of them.",
        min=1,
        show_default=False,
    ),
]
ConstitutionOption = Annotated[
    Path | None,
    typer.Option(
        "--constitution",
        help="Judge by the signed constitution in this directory. Default: the one that KALA ships.",
        show_default=False,
    ),
]
WorkersOption = Annotated[
    int | None,
    typer.Option(help="Processes that judge at once. Default: one for each core.", min=1, show_default=False),
]
DevelopmentOption = Annotated[
    bool,
    typer.Option("--development", help="Trust the public development key instead. Never for production."),
]


def trust_of(keys: list[Path] | None, threshold: int | None, *, development: bool) -> Trust:
    """Whose signatures on a constitution a command is told to trust."""
    from kala.ethics.constitution import Trust

    if development == bool(keys):
        raise InvalidArgumentError(
            "--trusted-key", "give at least one trusted key, or --development, but not both"
        )
    if development and threshold is not None:
        raise InvalidArgumentError("--threshold", "goes with --trusted-key; --development trusts one key")
    return Trust.development() if development else Trust.pinned(*(keys or ()), threshold=threshold)


def offline_of(
    constitution: Path | None, keys: list[Path] | None, threshold: int | None, *, development: bool
) -> Offline:
    """By which constitution a command is told to judge, and whose signatures on it it is told to trust."""
    from kala.ethics.workers import Offline

    if development and keys:
        raise InvalidArgumentError("--trusted-key", "give trusted keys or --development, not both")
    trust = "development" if development else "pinned" if keys else None
    if threshold is not None and not keys:
        raise InvalidArgumentError("--threshold", "goes with --trusted-key")
    if constitution is not None and trust is None:
        raise InvalidArgumentError("--constitution", "name the --trusted-key files, or say --development")
    return Offline(constitution, trust, tuple(keys or ()), threshold)


def layout_of(state: Path | None) -> StateLayout:
    """The state directory that a command means."""
    return StateLayout.at(state or state_from(os.environ))
