"""Replaces the key of a suite's log: both keys sign for a time, then the new one stands alone.

The audit service itself refuses a key that did not sign beside the one before it; here are only the files.
"""

from __future__ import annotations

import secrets
from contextlib import closing
from pathlib import Path

from kala.audit.checkpoint import open_checkpoint
from kala.audit.database_source import DatabaseSource
from kala.audit.note import Signer, Verifier
from kala.audit.tile_paths import CHECKPOINT_PATH
from kala.errors import FailedPreconditionError, VerificationError
from kala.suite.keyring import SYMMETRIC_KEY_BYTES, Keyring, Randomness
from kala.suite.layout import write_private_file


def begin(keyring: Keyring, *, randomness: Randomness = secrets.token_bytes) -> Verifier:
    """Makes the key that follows and publishes it beside the log's own; doing it again changes nothing."""
    current = _signer(keyring.audit_log_key)
    if not keyring.next_audit_log_key.exists():
        following = Signer.of(current.verifier.name, randomness(SYMMETRIC_KEY_BYTES))
        write_private_file(keyring.next_audit_log_key, f"{following.private_text()}\n".encode())
    verifier = _signer(keyring.next_audit_log_key).verifier
    try:
        published = keyring.audit_vkey.read_text(encoding="ascii").split()
    except (OSError, UnicodeDecodeError) as error:
        raise FailedPreconditionError(
            f"{keyring.audit_vkey} cannot be read; it holds {current.verifier}"
        ) from error
    if str(verifier) not in published:
        lines = "".join(f"{line}\n" for line in (*published, verifier))
        write_private_file(keyring.audit_vkey, lines.encode(), mode=0o644)
    return verifier


def finish(keyring: Keyring, database: Path | None) -> Path:
    """Puts the key that follows in the place of the log's own; gives the file where the old one now lies.

    Raises `FailedPreconditionError` while the log in `database`, if one is there, was not signed by both.
    """
    if not keyring.next_audit_log_key.exists():
        raise FailedPreconditionError(
            "no key of the log is being replaced; begin with `kala keys rotate-log`"
        )
    current = _signer(keyring.audit_log_key)
    if database is not None and database.exists():
        _require_both(database, (current, _signer(keyring.next_audit_log_key)))
    former = keyring.private / f"audit-log-{current.verifier.key_id.hex()}.key"
    # A link first: at no moment is there no key, and none is lost.
    former.unlink(missing_ok=True)
    former.hardlink_to(keyring.audit_log_key)
    keyring.next_audit_log_key.replace(keyring.audit_log_key)
    return former


def _require_both(database: Path, signers: tuple[Signer, Signer]) -> None:
    with closing(DatabaseSource(database)) as source:
        note = (source.read(CHECKPOINT_PATH) or b"").decode()
    try:
        for signer in signers:
            open_checkpoint(note, [signer.verifier])
    except VerificationError as error:
        raise FailedPreconditionError(
            "the log's newest checkpoint is not signed by both keys yet, and the log would refuse to start: restart it"
            f" first, and pin the new key wherever {signers[0].verifier.name} is trusted"
        ) from error


def _signer(path: Path) -> Signer:
    try:
        return Signer.parse(path.read_text(encoding="ascii").strip())
    except (OSError, UnicodeDecodeError, VerificationError) as error:
        raise FailedPreconditionError(f"{path} holds no signing key of a log") from error
