"""Clearances for tests: a key pair as files, and actions sealed with it as ethics would."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from google.protobuf.message import Message

from kala.common.v1.clearance_pb2 import PURPOSE_UNSPECIFIED, Principal, SealedAction
from services.common.clearance import ClearanceSigner
from services.common.keys import write_public_key
from services.common.sealing import pack


@dataclass(slots=True)
class MovingClock:
    """The wall clock, which a test may move."""

    ahead_seconds: float = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead_seconds


class FakeEthics:
    """Signs whatever it is asked to."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self.signer = ClearanceSigner(Ed25519PrivateKey.generate(), clock=clock)

    def public_key_file(self, directory: Path) -> Path:
        """Write the public key as ethics would publish it."""
        path = directory / f"ethics-{secrets.token_hex(4)}.pub"
        write_public_key(path, self.signer.public_key)
        return path

    def seal(
        self,
        action: Message,
        *,
        audience: str,
        presenter: str = "local:gateway",
        tenant: str = "",
        constitution_digest: bytes = bytes(32),
    ) -> SealedAction:
        """Clear an action for one RPC."""
        packed = pack(action)
        clearance = self.signer.mint(
            decision_id="test",
            audience=audience,
            action=packed,
            constitution_digest=constitution_digest,
            presenter=presenter,
            principal=Principal(tenant=tenant),
            purpose=PURPOSE_UNSPECIFIED,
        )
        return SealedAction(action=packed, clearance=clearance)
