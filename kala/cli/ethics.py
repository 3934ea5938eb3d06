"""`kala ethics`: whether the laws are what was signed, and how they judge texts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

import typer

from kala.cli import amend, ethics_sets, ethics_text
from kala.cli.amend import show_verified
from kala.cli.options import (
    DevelopmentOption,
    ThresholdOption,
    TrustedKeysOption,
    trust_of,
)

group = typer.Typer(help="Verify the constitution; see how it judges texts.", no_args_is_help=True)
group.add_typer(amend.group, name="amend")

_ROOT: Final = Path(__file__).resolve().parents[2]
_PACKAGED: Final = _ROOT / "services" / "ethics" / "constitution"
DEFAULT_CONSTITUTION: Final = _PACKAGED if _PACKAGED.is_dir() else _ROOT / "constitution"
"""The one inside the installed package, or else the one at the root of the repository; as the ethics service chooses."""

group.command("check")(ethics_text.check)
group.command("explain")(ethics_text.explain)
group.command("score")(ethics_sets.score)
group.command("eval")(ethics_sets.evaluate)


@group.command()
def verify(
    *,
    directory: Annotated[
        Path, typer.Option("--dir", help="Directory of the constitution.", show_default=False)
    ] = DEFAULT_CONSTITUTION,
    trusted_key: TrustedKeysOption = None,
    threshold: ThresholdOption = None,
    development: DevelopmentOption = False,
) -> None:
    """Check that every byte of the constitution is what enough trusted keys signed; offline."""
    from kala.ethics.constitution import verify_constitution

    trust = trust_of(trusted_key, threshold, development=development)
    show_verified(verify_constitution(directory, trust))
