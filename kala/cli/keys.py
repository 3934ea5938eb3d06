"""`kala keys`: API keys of a running suite, and the key files of a new one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Final

import typer

from kala.cli.options import JsonOption, KeyOption, StateOption, UrlOption
from kala.cli.output import note, show, show_json, table
from kala.errors import InvalidArgumentError

group = typer.Typer(
    help="Make, list and revoke API keys; make the key files of a suite.", no_args_is_help=True
)

KEYS_PATH: Final = "/kala/v1/gateway/keys"
SCOPES: Final = ("chat", "tools", "train", "audit.read", "audit.erase", "admin")
_PAGE_SIZE: Final = "1000"


@group.command()
def create(
    name: Annotated[str, typer.Argument(help="What the key is for.")],
    *,
    scope: Annotated[
        list[str] | None,
        typer.Option(help=f"May be given several times: {', '.join(SCOPES)}. Default: chat."),
    ] = None,
    tenant: Annotated[str, typer.Option(help="Whose data it reaches.")] = "default",
    ttl: Annotated[
        int | None, typer.Option(help="Seconds until it ends. Default: never.", min=1, show_default=False)
    ] = None,
    as_json: JsonOption = False,
    state: StateOption = None,
    url: UrlOption = None,
    key: KeyOption = None,
) -> None:
    """Make a key; its secret is shown this once."""
    from kala.client import KalaClient
    from kala.target import find_target

    body: dict[str, Any] = {  # Any: JSON
        "display_name": name,
        "scopes": [wire_scope(each) for each in scope or ["chat"]],
        "tenant": tenant,
    }
    if ttl is not None:
        body["ttl"] = f"{ttl}s"
    with KalaClient(find_target(url=url, key=key, state=state)) as client:
        reply = client.call("POST", KEYS_PATH, body=body)
    if as_json:
        show_json(reply)
    else:
        note(f"made {reply['key']['name']}; this secret is not shown again:")
        show(str(reply["secret"]))


@group.command("list")
def list_keys(
    *,
    ended: Annotated[bool, typer.Option("--all", help="Show revoked and expired keys too.")] = False,
    as_json: JsonOption = False,
    state: StateOption = None,
    url: UrlOption = None,
    key: KeyOption = None,
) -> None:
    """List keys, newest first, without their secrets."""
    from kala.client import KalaClient
    from kala.target import find_target

    params = {"page_size": _PAGE_SIZE, "include_ended": "true" if ended else "false"}
    with KalaClient(find_target(url=url, key=key, state=state)) as client:
        reply = client.call("GET", KEYS_PATH, params=params)
    if as_json:
        show_json(reply)
        return
    table(
        None,
        ("id", "for", "scopes", "tenant", "begins with", "made", "ends"),
        map(_row, reply.get("keys") or ()),
    )


@group.command()
def revoke(
    key_id: Annotated[str, typer.Argument(metavar="ID", help="As `kala keys list` shows it.")],
    *,
    state: StateOption = None,
    url: UrlOption = None,
    key: KeyOption = None,
) -> None:
    """End a key at once."""
    from kala.client import KalaClient
    from kala.target import find_target

    identifier = key_id.removeprefix("keys/")
    if not identifier or not identifier.replace("-", "").replace("_", "").isalnum():
        raise InvalidArgumentError("ID", "must be a key id as `kala keys list` shows it")
    with KalaClient(find_target(url=url, key=key, state=state)) as client:
        client.call("POST", f"{KEYS_PATH}/{identifier}:revoke", body={})
    note(f"revoked keys/{identifier}")


@group.command()
def init(
    *,
    out: Annotated[Path, typer.Option(help="Folder to make the keys in.")],
    log_name: Annotated[
        str, typer.Option(help="Name of the audit log in its signatures, such as audit.example.org/kala.")
    ] = "kala.local/audit",
) -> None:
    """Make every service key of a suite: secrets in OUT/private, public halves in OUT/public. Keeps what exists."""
    from kala.suite.keyring import make_keyring

    keyring, made = make_keyring(out / "private", out / "public", log_name=log_name)
    for path in made:
        show(str(path))
    note(f"{len(made)} files made" if made else f"nothing to make: {out} has every key")
    note(
        f"mount each secret only into its owner; pin what {keyring.public} holds outside the places it protects"
    )


def wire_scope(name: str) -> str:
    """A scope as the contract spells it: `audit.read` becomes SCOPE_AUDIT_READ."""
    if name not in SCOPES:
        raise InvalidArgumentError("--scope", f"{name!r} is not one of {', '.join(SCOPES)}")
    return f"SCOPE_{name.replace('.', '_').upper()}"


def _row(key: dict[str, Any]) -> tuple[str, ...]:  # Any: JSON
    scopes = [
        scope.removeprefix("SCOPE_").lower().replace("audit_", "audit.") for scope in key.get("scopes") or ()
    ]
    end = key.get("revoked_at")
    ends = f"revoked {end}" if end else key.get("expires_at") or "never"
    return (
        key["name"].removeprefix("keys/"),
        key.get("display_name", ""),
        " ".join(scopes),
        key.get("tenant", ""),
        key.get("prefix", ""),
        key.get("created_at") or "",
        ends,
    )
