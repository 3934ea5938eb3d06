"""`kala ethics`: whether the laws are what was signed, and how they judge a text."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

import typer

from kala.cli import amend
from kala.cli.amend import show_verified
from kala.cli.options import (
    DevelopmentOption,
    JsonOption,
    KeyOption,
    StateOption,
    ThresholdOption,
    TrustedKeysOption,
    UrlOption,
    trust_of,
)
from kala.cli.output import show, show_json

group = typer.Typer(help="Verify the constitution; see how it judges a text.", no_args_is_help=True)
group.add_typer(amend.group, name="amend")

_ROOT: Final = Path(__file__).resolve().parents[2]
_PACKAGED: Final = _ROOT / "services" / "ethics" / "constitution"
DEFAULT_CONSTITUTION: Final = _PACKAGED if _PACKAGED.is_dir() else _ROOT / "constitution"
"""The one inside the installed package, or else the one at the root of the repository; as the ethics service chooses."""

_EXIT_NOT_ALLOWED: Final = 3


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


@group.command()
def check(
    text: Annotated[str, typer.Argument(help="The text to judge.")],
    *,
    as_json: JsonOption = False,
    state: StateOption = None,
    url: UrlOption = None,
    key: KeyOption = None,
) -> int:
    """Ask a running suite how the Five Laws judge a text; exit code 0 when it is allowed, 3 when it is not."""
    from kala.client import KalaClient
    from kala.target import find_target

    with KalaClient(find_target(url=url, key=key, state=state)) as client:
        reply = client.call("POST", "/kala/v1/ethics/score", body={"text": text})
    decision = reply["decision"]
    outcome = str(decision["outcome"]).removeprefix("OUTCOME_")
    if as_json:
        show_json(reply)
    else:
        law = decision.get("law")
        show(outcome if law is None else f"{outcome} by Law {law} ({decision.get('category', '')})")
        for step in decision.get("path") or ():
            show(f"  {step}")
        if decision.get("message"):
            show(str(decision["message"]))
    return 0 if outcome == "ALLOW" else _EXIT_NOT_ALLOWED
