"""C2SP log checkpoints: the signed size and root of a log (c2sp.org/tlog-checkpoint).

A checkpoint carries no time: time is in the entries and in witnesses' cosignatures.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from kala.audit.merkle import HASH_BYTES
from kala.audit.note import Verifier, decode_base64, open_note, parse_decimal
from kala.errors import VerificationError

# Origin, size and root.
MIN_LINES: Final = 3


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A log's head: its origin, its size in leaves and the root over them."""

    origin: str
    size: int
    root: bytes

    def text(self) -> str:
        """The note text; extension lines are never written."""
        return f"{self.origin}\n{self.size}\n{base64.b64encode(self.root).decode()}\n"

    @classmethod
    def parse(cls, text: str) -> Checkpoint:
        """Reads a note text; extension lines are tolerated and dropped."""
        *lines, end = text.split("\n")
        if len(lines) < MIN_LINES or end or not all(lines):
            raise VerificationError("a checkpoint has an origin, a size and a root, one line each")
        root = decode_base64(lines[2], "the checkpoint's root")
        if len(root) != HASH_BYTES:
            raise VerificationError("the checkpoint's root is not 32 bytes long")
        return cls(lines[0], parse_decimal(lines[1], "the checkpoint's size"), root)


def open_checkpoint(note: str, trusted: Sequence[Verifier]) -> Checkpoint:
    """Returns the checkpoint of a note that the log itself signed: the trusted key named as the origin."""
    origin = note.partition("\n")[0]
    return Checkpoint.parse(open_note(note, trusted, signed_by=origin))
