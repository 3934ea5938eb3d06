"""What goes into the log's writer and what comes out of it."""

from __future__ import annotations

import enum
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

KEY_BYTES: Final = 16


class AuditPolicy(enum.Enum):
    """What happens to a record while the log is away."""

    FAIL_CLOSED = "fail_closed"
    SPOOL = "spool"


class AppendStatus(enum.Enum):
    """Where a record is durable: in the log, or in the spool on its way there."""

    LOGGED = "logged"
    SPOOLED = "spooled"


@dataclass(frozen=True, slots=True)
class Payload:
    """Content that belongs to a record; with `store` false only its salted commitment is kept."""

    kind: str
    data: bytes
    store: bool = True


@dataclass(frozen=True, slots=True)
class Appended:
    """An acknowledged record. Index, receipt and openings (salts by payload kind) are known once it is logged.

    `created` is true only for the call that put the key in the log: whoever claims something by a key acts only then.
    """

    key: bytes
    status: AppendStatus
    created: bool = False
    index: int | None = None
    receipt: str | None = None
    openings: Mapping[str, bytes] = field(default_factory=dict)
    leaf_hash: bytes = b""

    @property
    def receipt_id(self) -> str:
        """The id under which a client finds the receipt."""
        return receipt_id(self.key)


def new_key(random: Callable[[int], bytes] = secrets.token_bytes) -> bytes:
    """A fresh idempotency key, for callers that must name the record before it is appended."""
    return random(KEY_BYTES)


def receipt_id(key: bytes) -> str:
    """The id of the receipt of the record with this key."""
    return f"rcpt_{key.hex()}"
