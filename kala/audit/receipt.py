"""Receipts: C2SP tlog-proof texts that carry their leaf, so that one file and the log's key prove one entry offline.

See c2sp.org/tlog-proof. The `extra` line holds the leaf; it is trusted only because its hash is what is proved.
"""

from __future__ import annotations

import binascii
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from kala.audit.checkpoint import Checkpoint, open_checkpoint
from kala.audit.leaf import Leaf, parse_leaf
from kala.audit.note import Verifier, decode_base64, parse_decimal
from kala.audit.proof import verify_inclusion
from kala.errors import VerificationError

HEADER: Final = "c2sp.org/tlog-proof@v1"
# A proof in a tree of 2^63 leaves has 63 hashes.
MAX_PROOF_HASHES: Final = 63
# The largest leaf in base64, the longest proof and 64 witnesses' signatures fit several times.
MAX_RECEIPT_CHARS: Final = 1 << 20
# After the header, the extra line and the index line.
_FIRST_HASH_LINE: Final = 3


@dataclass(frozen=True, slots=True)
class Receipt:
    """A receipt as read: nothing in it is verified yet."""

    leaf: bytes
    index: int
    proof: tuple[bytes, ...]
    checkpoint: str

    def text(self) -> str:
        """The tlog-proof text."""
        return receipt_text(self.leaf, self.index, self.proof, self.checkpoint)

    @classmethod
    def parse(cls, text: str) -> Receipt:
        """Reads a tlog-proof text strictly, or raises `VerificationError`."""
        if len(text) > MAX_RECEIPT_CHARS:
            raise VerificationError(f"a receipt has at most {MAX_RECEIPT_CHARS} characters")
        head, separator, checkpoint = text.partition("\n\n")
        lines = head.split("\n")
        if not separator or lines[0] != HEADER or len(lines) < _FIRST_HASH_LINE:
            raise VerificationError(
                f"this is not a receipt: it does not begin with {HEADER} and an extra line"
            )
        if len(lines) - _FIRST_HASH_LINE > MAX_PROOF_HASHES:
            raise VerificationError("the receipt's proof is too long")
        leaf = decode_base64(_field(lines[1], "extra"), "the receipt's leaf")
        index = parse_decimal(_field(lines[2], "index"), "the receipt's index")
        return cls(
            leaf,
            index,
            tuple(decode_base64(line, "the receipt's proof") for line in lines[_FIRST_HASH_LINE:]),
            checkpoint,
        )


@dataclass(frozen=True, slots=True)
class VerifiedReceipt:
    """What a receipt proves: this leaf is at this index of the log with this checkpoint."""

    leaf: Leaf
    index: int
    checkpoint: Checkpoint


def receipt_text(leaf: bytes, index: int, proof: Sequence[bytes], checkpoint: str) -> str:
    """The tlog-proof text of a leaf, its inclusion proof and the signed checkpoint that it leads to."""
    # b2a_base64 ends its line itself; it is what b64encode wraps.
    hashes = b"".join(map(binascii.b2a_base64, proof)).decode()
    return f"{HEADER}\nextra {binascii.b2a_base64(leaf).decode()}index {index}\n{hashes}\n{checkpoint}"


def verify_receipt(text: str, trusted: Sequence[Verifier]) -> VerifiedReceipt:
    """Returns what the receipt proves under the trusted keys, or raises `VerificationError`; reads no log."""
    receipt = Receipt.parse(text)
    checkpoint = open_checkpoint(receipt.checkpoint, trusted)
    leaf = parse_leaf(receipt.leaf)
    verify_inclusion(leaf.hash, receipt.index, checkpoint.size, receipt.proof, checkpoint.root)
    return VerifiedReceipt(leaf, receipt.index, checkpoint)


def _field(line: str, name: str) -> str:
    prefix, space, value = line.partition(" ")
    if prefix != name or not space:
        raise VerificationError(f"the receipt has no {name} line where one belongs")
    return value
