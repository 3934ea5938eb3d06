"""`kala audit`: what anyone can verify with files, hashes and public keys, and what the log tells through the gateway.

Exit codes of the offline commands: 0 it holds, 1 it was tampered with, 2 there is nothing to verify with or against.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from kala.cli import audit_follow, audit_reading, audit_subjects
from kala.cli.audit_inputs import EXIT_TAMPERED, EXIT_UNVERIFIABLE, VkeyOption, read_text, say_bad, trusted_of
from kala.cli.audit_verify import verify
from kala.cli.options import JsonOption, StateOption, layout_of
from kala.cli.output import show, show_json
from kala.errors import VerificationError

if TYPE_CHECKING:
    from kala.audit.receipt import VerifiedReceipt

group = typer.Typer(
    help="Verify the transparency log and its receipts, offline; read, export and erase through the gateway.",
    no_args_is_help=True,
)

_SALT_BYTES: Final = 32

group.command()(verify)


@group.command()
def receipt(
    file: Annotated[
        Path,
        typer.Argument(
            help="The receipt, as `kala chat --save-receipt` or the API gives it, or a session's log (.jsonl)."
        ),
    ],
    *,
    vkey: VkeyOption = None,
    released: Annotated[
        Path | None,
        typer.Option(help="The text that was released, to check it is the one logged.", show_default=False),
    ] = None,
    opening: Annotated[
        str | None,
        typer.Option(help="The salt of the released text, in hex, from the answer.", show_default=False),
    ] = None,
    as_json: JsonOption = False,
    state: StateOption = None,
) -> int:
    """Check one receipt: that its record is in the log that the key signed, and on request what was released.

    Of a session's log every line is checked; exit code 2 says that some lines carry no proof yet.
    """
    from kala.audit.receipt import verify_receipt
    from kala.audit.verify import UnverifiableError
    from kala.cli.audit_session import is_session, verify_session_file

    try:
        trusted = trusted_of(vkey, layout_of(state))
        if is_session(file) and released is None and opening is None:
            return 0 if verify_session_file(file, trusted, as_json=as_json) else EXIT_UNVERIFIABLE
        text = read_text(file)
        verified = verify_receipt(text, trusted)
        if released is not None or opening is not None:
            _check_released(verified, released, opening)
    except UnverifiableError as error:
        say_bad("unverifiable", error, as_json=as_json)
        return EXIT_UNVERIFIABLE
    except VerificationError as error:
        say_bad("does not hold", error, as_json=as_json)
        return EXIT_TAMPERED
    _show_receipt(verified, released_checked=released is not None, as_json=as_json)
    return 0


def _check_released(verified: VerifiedReceipt, released: Path | None, opening: str | None) -> None:
    """Compare a text with the salted commitment in the leaf; raises VerificationError when it is another text."""
    import hashlib
    import hmac

    from kala.audit.verify import UnverifiableError

    if released is None or opening is None:
        raise UnverifiableError(
            "--released and --opening belong together: the text, and the salt that opens it"
        )
    try:
        salt = bytes.fromhex(opening)
    except ValueError:
        salt = b""
    if len(salt) != _SALT_BYTES:
        raise UnverifiableError(f"--opening must be {_SALT_BYTES * 2} hex characters")
    committed = {item["kind"]: item["hmac"] for item in verified.leaf.value["commitments"]}
    if "released" not in committed:
        raise VerificationError("the record commits to no released text")
    try:
        text = released.read_bytes()
    except OSError as error:
        raise UnverifiableError(f"{released} cannot be read: {error.strerror}") from error
    found = hmac.new(salt, text, hashlib.sha256).hexdigest()
    if not hmac.compare_digest(found, committed["released"]):
        raise VerificationError(f"{released} is not the text that was released, or --opening is not its salt")


def _show_receipt(verified: VerifiedReceipt, *, released_checked: bool, as_json: bool) -> None:
    leaf = verified.leaf.value
    if as_json:
        show_json(
            {
                "result": "good",
                "receipt": verified.leaf.receipt_id,
                "index": verified.index,
                "size": verified.checkpoint.size,
                "origin": verified.checkpoint.origin,
                "released_checked": released_checked,
                "leaf": dict(leaf),
            }
        )
        return
    decision = leaf["decision"] or {}
    show(f"good: {verified.leaf.receipt_id} is entry {verified.index} of {verified.checkpoint.origin}")
    show(f"type {leaf['type']}, recorded {leaf['recorded_at']}, decision {decision.get('outcome', 'none')}")
    if released_checked:
        show("the released text is the one that was logged")


group.command()(audit_follow.diff)
group.command()(audit_follow.monitor)
group.command()(audit_reading.export)
group.command()(audit_reading.read)
group.command()(audit_reading.gaps)
group.command()(audit_subjects.erase)
group.command()(audit_subjects.certificate)
group.add_typer(audit_subjects.holds, name="hold")
