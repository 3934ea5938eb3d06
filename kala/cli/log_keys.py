"""`kala keys rotate-log` and `kala keys cosigner`: the keys of logs and witnesses, as files."""

from __future__ import annotations

import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Final

import typer

from kala.cli.options import StateOption, layout_of
from kala.cli.output import note, show
from kala.errors import FailedPreconditionError

_SEED_BYTES: Final = 32


class Kind(StrEnum):
    """The kinds of cosignature."""

    ED25519 = "ed25519"
    ML_DSA_44 = "ml-dsa-44"
    BOTH = "both"


def rotate_log(
    *,
    finish: Annotated[
        bool, typer.Option("--finish", help="Let the new key stand alone, after everybody pinned it.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of `kala keys init`. Default: the suite of --state.", show_default=False),
    ] = None,
    state: StateOption = None,
) -> None:
    """Replace the signing key of the audit log: both keys sign until --finish. Restart the log after each step."""
    from kala.suite import log_rotation
    from kala.suite.keyring import Keyring

    layout = layout_of(state)
    keyring = Keyring(layout.keys, layout.trust) if out is None else Keyring(out / "private", out / "public")
    if finish:
        # Elsewhere the log's database is not ours to open; the service refuses what this would refuse.
        former = log_rotation.finish(keyring, layout.audit_database if out is None else None)
        note(f"the new key stands alone; the old one lies in {former}: delete it once the log has started")
        note(f"{keyring.audit_vkey} still names both: what the old key signed is verified with it")
        return
    show(str(log_rotation.begin(keyring)))
    note(
        f"pin this key beside the old one wherever {keyring.audit_vkey.name} is trusted, and restart the log;"
    )
    note("both keys then sign every checkpoint. End with `kala keys rotate-log --finish`")


def cosigner(
    name: Annotated[
        str, typer.Argument(help="Name of the witness, such as witness.example.org/w1; of a log, its origin.")
    ],
    *,
    out: Annotated[
        Path,
        typer.Option(
            help="File for the secret keys; the public ones go beside it, .vkey. Its folder is made."
        ),
    ],
    kind: Annotated[
        Kind, typer.Option(help="Ed25519, ML-DSA-44 (good against quantum computers), or one key of each.")
    ] = Kind.BOTH,
) -> None:
    """Make the keys of a witness, or a log's second key (ml-dsa-44); an existing file is never overwritten."""
    from kala.audit.cosignature import CosignatureKind, Cosigner

    kinds = {
        Kind.ED25519: [CosignatureKind.ED25519],
        Kind.ML_DSA_44: [CosignatureKind.ML_DSA_44],
        Kind.BOTH: list(CosignatureKind),
    }[kind]
    cosigners = [Cosigner.of(name, each, os.urandom(_SEED_BYTES)) for each in kinds]
    try:
        out.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.writelines(f"{each.private_text()}\n" for each in cosigners)
        out.with_name(f"{out.name}.vkey").write_text("".join(f"{each.witness}\n" for each in cosigners))
    except OSError as error:
        raise FailedPreconditionError(f"{error.filename} cannot be written: {error.strerror}") from error
    for each in cosigners:
        show(str(each.witness))
