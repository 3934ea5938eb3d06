"""`kala health`: whether a model server can be used, as one JSON object for programs and words for people."""

from __future__ import annotations

import typer

from kala.cli.options import KeyOption, StateOption, UrlOption
from kala.cli.output import note, show_json

group = typer.Typer(help="Say whether a model server can be used now.", no_args_is_help=True)


@group.callback()
def _health() -> None:
    """Keep `lm` a command of its own."""


@group.command()
def lm(*, state: StateOption = None, url: UrlOption = None, key: KeyOption = None) -> None:
    """Print LM Studio's state, lm_ready, lm_off or error, as JSON; in words on standard error. Exit code 0 in all three."""
    from kala.adapters.lm_studio import lm_studio_health
    from kala.errors import KalaError
    from kala.target import find_target

    try:
        at = find_target(url=url, key=key, state=state) if url or key or state else None
        health = lm_studio_health(at=at)
    except KalaError as error:
        from kala.adapters.lm_studio_state import ERROR, Health

        health = Health(ERROR, error.reason, error.message).as_dict()
    details = health["details"]
    show_json(health)
    where = f"LM Studio at {details['base_url']}: " if details["backend"] else ""
    spent = f" ({details['latency_ms']} ms)" if health["ok"] and details["latency_ms"] is not None else ""
    note(f"{health['mode']}: {where}{details['message']}{spent}")
    if details["cure"]:
        note(f"cure: {details['cure']}")
