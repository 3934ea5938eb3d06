"""`kala audit`: verify a log or a receipt offline, with nothing but files, hashes and public keys.

Exit codes: 0 it holds, 1 it was tampered with, 2 there is nothing to verify with or against.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from kala.cli.options import JsonOption, StateOption, layout_of
from kala.cli.output import note, show, show_json
from kala.errors import KalaError, VerificationError

if TYPE_CHECKING:
    from kala.audit.note import Verifier
    from kala.audit.receipt import VerifiedReceipt
    from kala.audit.verify import LogReport
    from kala.suite.layout import StateLayout

group = typer.Typer(help="Verify the transparency log and its receipts, offline.", no_args_is_help=True)

EXIT_TAMPERED: Final = 1
EXIT_UNVERIFIABLE: Final = 2
_SALT_BYTES: Final = 32

VkeyOption = Annotated[
    list[str] | None,
    typer.Option(
        "--vkey",
        help="The log's public key, as text or as a file. Default: trust/audit.vkey of --state.",
        show_default=False,
    ),
]


@group.command()
def verify(
    *,
    state: StateOption = None,
    database: Annotated[
        Path | None,
        typer.Option("--db", help="The log itself. Default: data/audit.db of --state.", show_default=False),
    ] = None,
    vkey: VkeyOption = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            help="A checkpoint kept from before. Default: trust/last_checkpoint of --state.",
            show_default=False,
        ),
    ] = None,
    as_json: JsonOption = False,
) -> int:
    """Check every entry of a log; names the first bad one. A log in use may be checked too."""
    from kala.audit.verify import TamperedError, UnverifiableError

    layout = layout_of(state)
    started = time.process_time()
    try:
        path = database or layout.audit_database
        report = _verify_log(path, _trusted(vkey, layout), _pinned(checkpoint, layout, ours=database is None))
    except TamperedError as error:
        _say_bad("tampered", error, as_json=as_json, first_bad_index=error.first_bad_index)
        return EXIT_TAMPERED
    except UnverifiableError as error:
        _say_bad("unverifiable", error, as_json=as_json)
        return EXIT_UNVERIFIABLE
    cpu_seconds = time.process_time() - started
    if database is None:
        _remember(layout, report.checkpoint_note)
    _show_report(report, cpu_seconds, as_json=as_json)
    return 0


@group.command()
def receipt(
    file: Annotated[
        Path, typer.Argument(help="The receipt, as `kala chat --save-receipt` or the API gives it.")
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
    """Check one receipt: that its record is in the log that the key signed, and on request what was released."""
    from kala.audit.receipt import verify_receipt
    from kala.audit.verify import UnverifiableError

    try:
        trusted = _trusted(vkey, layout_of(state))
        text = _read_text(file)
        verified = verify_receipt(text, trusted)
        if released is not None or opening is not None:
            _check_released(verified, released, opening)
    except UnverifiableError as error:
        _say_bad("unverifiable", error, as_json=as_json)
        return EXIT_UNVERIFIABLE
    except VerificationError as error:
        _say_bad("does not hold", error, as_json=as_json)
        return EXIT_TAMPERED
    _show_receipt(verified, released_checked=released is not None, as_json=as_json)
    return 0


def _verify_log(path: Path, trusted: list[Verifier], pinned: str | None) -> LogReport:
    from rich.progress import Progress

    from kala.audit.database import verify_database
    from kala.cli.output import console

    with Progress(console=console(to_stderr=True), transient=True) as progress:
        task = progress.add_task("entries", total=None)
        return verify_database(
            path,
            trusted,
            pinned=pinned,
            on_progress=lambda done, total: progress.update(task, completed=done, total=total),
        )


def _trusted(vkeys: list[str] | None, layout: StateLayout) -> list[Verifier]:
    from kala.audit.note import Verifier
    from kala.audit.verify import UnverifiableError

    try:
        lines = [_vkey_text(given) for given in vkeys or [str(layout.vkey_file)]]
        return [Verifier.parse(line) for text in lines for line in text.splitlines() if line.strip()]
    except VerificationError as error:
        raise UnverifiableError(f"--vkey: {error.message}") from error


def _vkey_text(given: str) -> str:
    """A vkey holds at least two plus signs and no slash-separated file of that name exists; all else is a file."""
    if given.count("+") >= 2 and not os.path.exists(given):  # noqa: PLR2004, PTH110 - name+id+key; Path.exists raises for a name that is too long
        return given
    return _read_text(Path(given))


def _read_text(path: Path) -> str:
    from kala.audit.verify import UnverifiableError

    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise UnverifiableError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UnverifiableError(f"{path} is not text") from error


def _pinned(given: Path | None, layout: StateLayout, *, ours: bool) -> str | None:
    if given is not None:
        return _read_text(given)
    remembered = layout.last_checkpoint
    return _read_text(remembered) if ours and remembered.exists() else None


def _remember(layout: StateLayout, checkpoint_note: str) -> None:
    """Pin what was just verified, so that the next run notices a log that was cut or rewritten in between."""
    from kala.suite.layout import write_private_file

    try:
        write_private_file(layout.last_checkpoint, checkpoint_note.encode())
    except OSError as error:
        note(f"the checkpoint could not be remembered: {error.strerror}")


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


def _show_report(report: LogReport, cpu_seconds: float, *, as_json: bool) -> None:
    if as_json:
        show_json(
            {
                "result": "good",
                "entries": report.entries,
                "checkpoints": report.checkpoints,
                "payloads": report.payloads,
                "payloads_erased": report.payloads_erased,
                "root": report.checkpoint.root.hex(),
                "origin": report.checkpoint.origin,
                "cpu_seconds": round(cpu_seconds, 3),
            }
        )
        return
    show(
        f"good: {report.entries} entries of {report.checkpoint.origin}, {report.checkpoints} signed checkpoints"
    )
    show(f"root {report.checkpoint.root.hex()}, {cpu_seconds:.2f} s of CPU time")


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


def _say_bad(result: str, error: KalaError, *, as_json: bool, first_bad_index: int | None = None) -> None:
    if as_json:
        show_json({"result": result, "first_bad_index": first_bad_index, "problem": error.message})
    else:
        note(f"{result}: {error.message}")
