"""The log's signing key as a file: one line in the private form of C2SP notes, so that it carries the log's name.

A key is replaced in three steps, so that no reader ever meets a checkpoint without a signature that it trusts: both keys
sign for a time, readers pin the new one beside the old one, then the old one is taken away.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from kala.audit.checkpoint import open_checkpoint
from kala.audit.note import SIGNATURE_MARK, Signer, Verifier, decode_base64
from kala.errors import FailedPreconditionError, VerificationError
from services.common.secret_keys import read_private_file


def load_signer(path: Path, following: Path | None = None) -> Signer:
    """The log's signer, with the key that is to follow it if there is one; `FailedPreconditionError` names the file."""
    signer = _load(path)
    if following is None:
        return signer
    try:
        return signer.followed_by(_load(following))
    except VerificationError as error:
        raise FailedPreconditionError(f"{following}: {error.message}") from error


def _load(path: Path) -> Signer:
    try:
        return Signer.parse(read_private_file(path).decode("ascii").strip())
    except (VerificationError, UnicodeDecodeError, ValueError) as error:
        raise FailedPreconditionError(f"the log's signing key {path} is malformed") from error


def require_successor(vkey: str, *, stored: str, newest: str | None) -> None:
    """Raises `FailedPreconditionError` unless `vkey` may replace the `stored` key of a log with this newest checkpoint.

    It may when both signed that checkpoint: whoever has only the database, or only one of the keys, cannot bring it about.
    """
    try:
        for key in (stored, vkey):
            open_checkpoint(newest or "", [Verifier.parse(key)])
    except VerificationError as error:
        raise FailedPreconditionError(
            f"this log is signed by {stored!r}, and the key file holds {vkey!r}; to replace the key, let both sign first:"
            " start with the old key in KALA_AUDIT_LOG_KEY_FILE and the new one in KALA_AUDIT_NEXT_LOG_KEY_FILE"
        ) from error


@dataclass(frozen=True, slots=True)
class KeyChange:
    """Something to say in the log about its own key."""

    rpc: str
    facts: Mapping[str, str]


def key_change(signer: Signer, newest: str | None) -> KeyChange | None:
    """What changed about the log's key since its newest checkpoint was signed; None when nothing did."""
    if newest is None:
        return None
    name = signer.verifier.name
    before = _key_ids(newest, name)
    following = signer.following
    if following is not None and following.verifier.key_id not in before:
        facts = {"current": str(signer.verifier), "next": str(following.verifier)}
        return KeyChange("/audit/key-announced", facts)
    ours = {signer.verifier.key_id} | (set() if following is None else {following.verifier.key_id})
    if retired := before - ours:
        ids = ",".join(sorted(key_id.hex() for key_id in retired))
        return KeyChange("/audit/key-retired", {"current": str(signer.verifier), "retired": ids})
    return None


def _key_ids(note: str, name: str) -> set[bytes]:
    """The ids of the keys of this name that a note of our own carries signatures of."""
    prefix = f"{SIGNATURE_MARK}{name} "
    lines = note.rpartition("\n\n")[2].splitlines()
    return {
        decode_base64(line.removeprefix(prefix), "a signature")[:4]
        for line in lines
        if line.startswith(prefix)
    }
