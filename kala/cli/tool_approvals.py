"""`kala tools approvals`: the calls that wait for a person, and that person's word."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from kala.cli.options import JsonOption, KeyOption, StateOption, UrlOption
from kala.cli.output import note, show, show_json
from kala.cli.tool_words import call_words, printable, short
from kala.errors import InvalidArgumentError

if TYPE_CHECKING:
    from kala.client import KalaClient

group = typer.Typer(help="See the calls that wait for a person, and decide them.", no_args_is_help=True)

PATH: Final = "/kala/v1/tools/approvals"
STATES: Final = ("pending", "approved", "denied", "expired", "used")
SHOWN_CHARS: Final = 2_000
"""Enough to decide by; `--json` has all of it."""

NameArgument = Annotated[str, typer.Argument(help="approvals/…, as `kala tools approvals list` names it.")]
CommentOption = Annotated[str, typer.Option(help="What you say about it; kept with the approval.")]


@group.command("list")
def list_approvals(
    *,
    only: Annotated[
        str | None,
        typer.Option("--only", help=f"One of {', '.join(STATES)}. Default: all.", show_default=False),
    ] = None,
    as_json: JsonOption = False,
    state: StateOption = None,
    url: UrlOption = None,
    key: KeyOption = None,
) -> None:
    """List the calls that wait for a person, or did, the newest first."""
    if only is not None and only not in STATES:
        raise InvalidArgumentError("--only", f"must be one of {', '.join(STATES)}")
    params = {"state": f"APPROVAL_STATE_{only.upper()}"} if only else None
    with _client(url, key, state) as client:
        approvals = client.pages(PATH, "approvals", params=params)
    if as_json:
        show_json({"approvals": approvals})
        return
    for approval in approvals:
        _explain(approval)
    if not approvals:
        note("no calls")


@group.command()
def approve(
    name: NameArgument,
    *,
    comment: CommentOption = "",
    as_json: JsonOption = False,
    state: StateOption = None,
    url: UrlOption = None,
    key: KeyOption = None,
) -> None:
    """Let a call run once. It runs nothing by itself: the call is sent again with the approval."""
    _decide(name, comment, (url, key, state), is_approved=True, as_json=as_json)


@group.command()
def deny(
    name: NameArgument,
    *,
    comment: CommentOption = "",
    as_json: JsonOption = False,
    state: StateOption = None,
    url: UrlOption = None,
    key: KeyOption = None,
) -> None:
    """Refuse a call."""
    _decide(name, comment, (url, key, state), is_approved=False, as_json=as_json)


def _decide(
    name: str,
    comment: str,
    at: tuple[str | None, str | None, Path | None],
    *,
    is_approved: bool,
    as_json: bool,
) -> None:
    full = f"approvals/{name.removeprefix('approvals/')}"
    with _client(*at) as client:
        reply = client.call(
            "POST", f"/kala/v1/tools/{full}:decide", body={"approve": is_approved, "comment": comment}
        )
    if as_json:
        show_json(reply)
        return
    decided: Mapping[str, Any] = reply.get("approval") or {}  # Any: JSON of the gateway
    show(f"{full} is {short(decided.get('state'), 'APPROVAL_STATE_')}")


def _explain(approval: Mapping[str, Any]) -> None:  # Any: JSON of the gateway
    """Write one approval with its whole name, to be copied, and what would run."""
    call = call_words(str(approval.get("arguments_json") or ""))
    words = (
        str(approval.get("name")),
        short(approval.get("state"), "APPROVAL_STATE_"),
        str(approval.get("tool")),
        f"{short(approval.get('risk'), 'RISK_')} risk",
        f"until {approval.get('expires_at') or '?'}",
    )
    show("  ".join(words))
    show(f"  why   {printable(str(approval.get('reason') or ''))}")
    shown = call
    if len(call) > SHOWN_CHARS:
        shown = f"{call[:SHOWN_CHARS]}… ({len(call)} characters; --json shows all of them)"
    show(f"  call  {shown}")
    if size := int(approval.get("stdin_bytes") or 0):
        begins = base64.b64decode(approval.get("stdin") or "")[:SHOWN_CHARS]
        shown = printable(begins.decode(errors="replace"))
        show(f"  stdin {shown if len(begins) == size else f'{shown}… ({size} bytes)'}")
    for file in approval.get("files") or ():
        show(f"  file  {printable(str(file.get('name')))}  {file.get('bytes') or 0} bytes")


def _client(url: str | None, key: str | None, state: Path | None) -> KalaClient:
    from kala.client import KalaClient
    from kala.target import find_target

    return KalaClient(find_target(url=url, key=key, state=state))
