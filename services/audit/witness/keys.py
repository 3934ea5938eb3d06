"""The witness's keys as files: its own, one private line each, and those of the logs that it cosigns."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from kala.audit.cosignature import Cosigner
from kala.audit.note import Verifier
from kala.errors import FailedPreconditionError, VerificationError
from services.common.secret_keys import read_private_file


def load_cosigners(path: Path) -> Sequence[Cosigner]:
    """The witness's keys; raises `FailedPreconditionError` naming the file."""
    if not path.exists():
        raise FailedPreconditionError(f"{path} cannot be read: make it with `kala keys cosigner`")
    try:
        lines = read_private_file(path).decode("ascii").split()
        cosigners = [Cosigner.parse(line) for line in lines]
    except (VerificationError, UnicodeDecodeError) as error:
        # Not its text, which could be part of a key.
        raise FailedPreconditionError(
            f"{path} holds no keys of a witness; `kala keys cosigner` makes them"
        ) from error
    if len({cosigner.witness.name for cosigner in cosigners}) != 1:
        raise FailedPreconditionError(f"{path} must hold the keys of one name, and at least one")
    return cosigners


def load_log_keys(paths: Iterable[Path]) -> Sequence[Verifier]:
    """The public keys of the logs; raises `FailedPreconditionError` naming the file."""
    keys: list[Verifier] = []
    for path in paths:
        try:
            keys += [Verifier.parse(line) for line in path.read_text(encoding="ascii").split()]
        except OSError as error:
            raise FailedPreconditionError(
                f"{path} cannot be read: {error.strerror}; put the public key of each log there, such as its audit.vkey"
            ) from error
        except (UnicodeDecodeError, VerificationError) as error:
            raise FailedPreconditionError(f"{path} holds no verifier keys of logs: {error}") from error
    if not keys:
        raise FailedPreconditionError(
            "KALA_WITNESS_LOG_VKEY_FILES: no log is named, so there is nothing to cosign"
        )
    return keys
