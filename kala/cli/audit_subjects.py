"""`kala audit erase`, `certificate` and `hold`: a person's content, and what forbids or proves its end."""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from kala.cli.audit_gateway import AUDIT, decoded, gateway
from kala.cli.audit_inputs import EXIT_TAMPERED, VkeyOption, judged, read_text, say_bad, trusted_of
from kala.cli.audit_reading import ReasonOption
from kala.cli.options import JsonOption, KeyOption, StateOption, UrlOption, layout_of
from kala.cli.output import note, show, show_json
from kala.errors import FailedPreconditionError, InvalidArgumentError, VerificationError

if TYPE_CHECKING:
    from kala.client import KalaClient

holds = typer.Typer(
    help="Keep a person's content from erasure and expiry, and let it go.", no_args_is_help=True
)

REQUEST_BYTES: Final = 16
SIGNATURE_SUFFIX: Final = ".sig"
_SUBJECT: Final = re.compile(r"(?:subjects/)?([0-9a-f]{64})")

SubjectArgument = Annotated[
    str | None,
    typer.Argument(help="subjects/<64 hex>. Or name a person by an option.", show_default=False),
]
PersonOption = Annotated[
    str | None,
    typer.Option(
        "--person", help="As requests name it in `safety_identifier` or `user`.", show_default=False
    ),
]
HolderOption = Annotated[
    str | None,
    typer.Option(
        "--of-key", help="keys/<id>: who used this key without naming a person.", show_default=False
    ),
]


def erase(
    subject: SubjectArgument = None,
    *,
    person: PersonOption = None,
    of_key: HolderOption = None,
    reason: ReasonOption,
    out: Annotated[
        Path,
        typer.Option("--out", help="Where the certificate goes; its signature goes beside it, as OUT.sig."),
    ] = Path("erasure.json"),
    request_id: Annotated[
        str | None,
        typer.Option(
            "--request-id", help="Of an erasure that was not finished, to go on with it.", show_default=False
        ),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: JsonOption = False,
    state: StateOption = None,
    url: UrlOption = None,
    key: KeyOption = None,
) -> None:
    """Destroy a person's content everywhere, for ever, and keep the signed certificate of it. All proofs stay valid."""
    identity = _request_id(request_id)
    _require_free(out)
    with gateway(url, key, state) as client:
        name = _subject(client, subject, person, of_key)
        if not yes:
            typer.confirm(f"Destroy all content of {name}, in every part, for ever?", abort=True, err=True)
        note(
            f"request {identity.hex()}: if this does not finish, repeat it with --request-id {identity.hex()}"
        )
        body = {"reason": reason, "request_id": base64.b64encode(identity).decode()}
        reply = client.call("POST", f"{AUDIT}/{name}:erase", body=body)
    _keep(reply, out)
    if as_json:
        show_json({**reply, "certificate_file": str(out)})
        return
    for store in reply.get("stores") or ():
        show(f"{store.get('store')}  {store.get('items') or 0} erased")
        for remaining in store.get("remaining") or ():
            show(f"  to decide: {remaining}")
    show(f"certificate {out}, signature {_signature_file(out)}")
    note(f"`kala audit certificate {out}` checks it with the log's public key alone")


def certificate(
    file: Annotated[
        Path, typer.Argument(help="The certificate of an erasure, with its signature beside it.")
    ],
    *,
    vkey: VkeyOption = None,
    as_json: JsonOption = False,
    state: StateOption = None,
) -> int:
    """Check the certificate of an erasure offline: that the log signed it, and what it names."""

    def check() -> int:
        from kala.audit.erasure import verify_certificate

        trusted = trusted_of(vkey, layout_of(state))
        written, signature = read_text(file), read_text(_signature_file(file))
        try:
            value = verify_certificate(written.encode(), signature, trusted)
        except VerificationError as error:
            say_bad("does not hold", error, as_json=as_json)
            return EXIT_TAMPERED
        _show_certificate(value, as_json=as_json)
        return 0

    return judged(check, as_json=as_json)


@holds.command("place")
def place_hold(
    subject: SubjectArgument = None,
    *,
    person: PersonOption = None,
    of_key: HolderOption = None,
    reason: ReasonOption,
    as_json: JsonOption = False,
    state: StateOption = None,
    url: UrlOption = None,
    key: KeyOption = None,
) -> None:
    """Forbid erasure and expiry of a person's content until the hold is released."""
    with gateway(url, key, state) as client:
        name = _subject(client, subject, person, of_key)
        reply = client.call("POST", f"{AUDIT}/{name}:hold", body={"reason": reason})
    _show_hold(reply, "placed", as_json=as_json)


@holds.command("release")
def release_hold(
    hold: Annotated[str, typer.Argument(help="holds/<id>, as it was placed.")],
    *,
    reason: ReasonOption,
    as_json: JsonOption = False,
    state: StateOption = None,
    url: UrlOption = None,
    key: KeyOption = None,
) -> None:
    """End a hold."""
    name = f"holds/{hold.removeprefix('holds/')}"
    with gateway(url, key, state) as client:
        reply = client.call("POST", f"{AUDIT}/{name}:release", body={"reason": reason})
    _show_hold(reply, "released", as_json=as_json)


def _require_free(out: Path) -> None:
    """Refuse before anything is erased where the certificate could not be kept."""
    if not out.parent.is_dir() or not os.access(out.parent, os.W_OK):
        raise FailedPreconditionError(f"{out.parent} is not a directory to write in; name another with --out")
    for path in (out, _signature_file(out)):
        if path.exists():
            raise FailedPreconditionError(f"{path} exists; name another file with --out")


def _request_id(given: str | None) -> bytes:
    if given is None:
        return os.urandom(REQUEST_BYTES)
    if not re.fullmatch("[0-9a-f]{32}", given):
        raise InvalidArgumentError(
            "--request-id", "must be 32 hex characters, as the unfinished erasure said"
        )
    return bytes.fromhex(given)


def _subject(client: KalaClient, subject: str | None, person: str | None, of_key: str | None) -> str:
    """The subject's name; of a person or a key, as the gateway gives it."""
    if sum(given is not None for given in (subject, person, of_key)) != 1:
        raise InvalidArgumentError("SUBJECT", "name exactly one: a subject, --person or --of-key")
    if subject is not None:
        found = _SUBJECT.fullmatch(subject)
        if found is None:
            raise InvalidArgumentError("SUBJECT", "must be subjects/<64 hex>")
        return f"subjects/{found[1]}"
    who = {"person": person} if person is not None else {"key": f"keys/{str(of_key).removeprefix('keys/')}"}
    return str(client.call("POST", "/kala/v1/gateway/subjects:name", body=who)["name"])


def _signature_file(certificate_file: Path) -> Path:
    return certificate_file.with_name(f"{certificate_file.name}{SIGNATURE_SUFFIX}")


def _keep(reply: Mapping[str, Any], out: Path) -> None:  # Any: JSON
    """Write certificate and signature; what cannot be written is printed, for it comes only once."""
    from kala.suite.layout import write_private_file

    written, signature = decoded(reply.get("certificate"), "certificate"), str(reply.get("signature") or "")
    try:
        write_private_file(out, written)
        write_private_file(_signature_file(out), signature.encode())
    except OSError as error:
        show(written.decode())
        show(signature)
        raise FailedPreconditionError(
            f"{out} cannot be written: {error.strerror}; both are printed"
        ) from error


def _show_certificate(value: Mapping[str, Any], *, as_json: bool) -> None:  # Any: JSON
    if as_json:
        show_json({"result": "good", "certificate": dict(value)})
        return
    show(f"good: {value['log']} certifies the erasure of subjects/{value['subject']} at {value['erased_at']}")
    show(f"receipt {value['receipt']}; it covers the entries before {value['covers_entries_below']}")
    for store in value["stores"]:
        remaining = f", to decide: {', '.join(store['remaining'])}" if store["remaining"] else ""
        show(f"{store['store']}  {store['items']} erased{remaining}")


def _show_hold(reply: Mapping[str, Any], done: str, *, as_json: bool) -> None:  # Any: JSON
    if as_json:
        show_json(reply)
        return
    receipt: Mapping[str, Any] = reply.get("receipt") or {}  # Any: JSON
    show(f"{reply.get('hold')} {done}, {receipt.get('name')}")
