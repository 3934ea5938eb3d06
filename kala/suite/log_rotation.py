"""Replaces the key of a suite's log: both keys sign for a time, then the new one stands alone.

The audit service itself refuses a key that did not sign beside the one before it; here are only the files.
"""

from __future__ import annotations

import secrets
from pathlib import Path

from kala.audit.note import Signer, Verifier
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
    published = keyring.audit_vkey.read_text(encoding="ascii").split()
    if str(verifier) not in published:
        lines = "".join(f"{line}\n" for line in (*published, verifier))
        write_private_file(keyring.audit_vkey, lines.encode(), mode=0o644)
    return verifier


def finish(keyring: Keyring) -> Path:
    """Puts the key that follows in the place of the log's own; gives the file where the old one now lies."""
    if not keyring.next_audit_log_key.exists():
        raise FailedPreconditionError(
            "no key of the log is being replaced; begin with `kala keys rotate-log`"
        )
    current = _signer(keyring.audit_log_key)
    former = keyring.private / f"audit-log-{current.verifier.key_id.hex()}.key"
    # A link first: at no moment is there no key, and none is lost.
    former.unlink(missing_ok=True)
    former.hardlink_to(keyring.audit_log_key)
    keyring.next_audit_log_key.replace(keyring.audit_log_key)
    return former


def _signer(path: Path) -> Signer:
    try:
        return Signer.parse(path.read_text(encoding="ascii").strip())
    except (OSError, UnicodeDecodeError, VerificationError) as error:
        raise FailedPreconditionError(f"{path} holds no signing key of a log") from error
