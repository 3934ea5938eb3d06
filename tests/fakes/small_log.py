"""A log in memory that signs what a test tells it to: honest growth, or another history of the same size."""

from __future__ import annotations

import base64
from collections.abc import Sequence

from kala.audit.checkpoint import Checkpoint
from kala.audit.merkle import consistency_proof, leaf_hash, root_of
from kala.audit.note import Signer


class SmallLog:
    """A log of numbered leaves; `salt` makes another history."""

    def __init__(self, signer: Signer, *, salt: str = "") -> None:
        self.signer = signer
        self.salt = salt

    def hashes(self, size: int) -> Sequence[bytes]:
        return [leaf_hash(f"{self.salt}{number}".encode()) for number in range(size)]

    def root(self, size: int) -> bytes:
        return root_of(self.hashes(size))

    def note(self, size: int) -> str:
        return self.signer.sign(Checkpoint(self.signer.verifier.name, size, self.root(size)).text())

    def proof(self, old: int, new: int) -> Sequence[bytes]:
        hashes = self.hashes(new)
        return consistency_proof(
            old, new, lambda level, index: root_of(hashes[index << level : index + 1 << level])
        )

    def request(
        self, old: int, new: int, *, note: str | None = None, proof: Sequence[bytes] | None = None
    ) -> bytes:
        """The body of add-checkpoint."""
        steps = (self.proof(old, new) if 0 < old <= new else []) if proof is None else proof
        lines = "".join(f"{base64.b64encode(step).decode()}\n" for step in steps)
        return f"old {old}\n{lines}\n{self.note(new) if note is None else note}".encode()
