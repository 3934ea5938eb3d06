"""The log's signing key as a file: one line in the private form of C2SP notes, so that it carries the log's name."""

from __future__ import annotations

from pathlib import Path

from kala.audit.note import Signer
from kala.errors import FailedPreconditionError, VerificationError
from services.common.secret_keys import read_private_file


def load_signer(path: Path) -> Signer:
    """The log's signer; raises `FailedPreconditionError` naming the file."""
    try:
        return Signer.parse(read_private_file(path).decode("ascii").strip())
    except (VerificationError, UnicodeDecodeError, ValueError) as error:
        raise FailedPreconditionError(f"the log's signing key {path} is malformed") from error
