"""Leaf v1: the exact content of one log entry. This definition is final; a change is a new schema beside it.

A leaf is canonical JSON (`canonical.py`), at most 65,535 bytes, stored and hashed verbatim.
Every key below is always present; what does not apply is null. Content never stands in a leaf: payloads appear as
salted commitments and as digests of their ciphertext, principals and subjects as keyed pseudonyms, so that erasing
keys erases content while all proofs stay valid. `attributes` and `references` name administrative facts and
resources; a producer must not put a person's words or file names there.

- `schema`, `type`; `idempotency_key` (16 bytes, hex), which is also the id of the receipt.
- `producer` {id, boot, seq}: who wrote it, which start of that process, and its running number from 1.
- `recorded_by`: the peer identity that delivered it, as the log saw it.
- `occurred_at` by the producer's clock, `recorded_at` by the log's (never decreasing in one log); UTC, microseconds.
  `skew_flag` is true when they differ by more than 5 seconds. Order is the index, never time.
- `tenant`; `actor`: HMAC of the principal; `subject_key_id`: whose key encrypts the payloads; `trace_id`.
- `intent`: for an outcome (a `type` ending in `.outcome`), the idempotency key of its intent. For any other entry, an
  intent included, that of the act it is a step of: a tool's intent names the chat's, an approval the tool's.
- `action`, `decision`, `model`, `result`, `gate`: what was asked, judged, answered, how it ended, what was measured.
- `execution_id`: the one execution that claims a clearance's nonce.
- `commitments`: per payload, each `kind` once, {kind, hmac = HMAC-SHA256(salt, plaintext), ciphertext_sha256, bytes of plaintext}.
- `references` {name, sha256, bytes}; `attributes` [key, value], sorted by key, keys unique.
- `record_digest`: SHA-256 of the producer's record, payloads left out; equal digests make a repeat harmless.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

from kala.audit import canonical, shapes
from kala.audit.merkle import leaf_hash
from kala.errors import VerificationError

SCHEMA: Final = "kala.audit.leaf.v1"
# c2sp.org/tlog-tiles: an entry's length is a uint16.
MAX_LEAF_BYTES: Final = 65_535
MAX_SKEW: Final = timedelta(seconds=5)
OUTCOMES: Final = frozenset({"ALLOW", "REFUSE", "REDIRECT", "ASK_CLARIFICATION"})
STATUSES: Final = frozenset({"ok", "refused", "cancelled", "error"})

_ATTEMPT: Final = shapes.object_of(
    {
        "backend": shapes.filled,
        "model": shapes.maybe_text,
        "outcome": shapes.filled,
        "reason": shapes.maybe_text,
    }
)
_JUDGE: Final = shapes.object_of(
    {
        "name": shapes.filled,
        "version": shapes.filled,
        "outcome": shapes.one_of(OUTCOMES),
        "law": shapes.law,
        "score": shapes.optional(shapes.integer_up_to(1_000_000)),
    }
)
_MEASUREMENT: Final = shapes.object_of(
    {
        "service": shapes.filled,
        "claims": shapes.is_base64,
        "signature": shapes.is_base64,
        "key_id": shapes.filled,
    }
)
FIELDS: Final[Mapping[str, shapes.Check]] = {
    "schema": shapes.one_of(frozenset({SCHEMA})),
    "type": shapes.name,
    "idempotency_key": shapes.hex16,
    "producer": shapes.object_of(
        {"id": shapes.filled, "boot": shapes.hex8, "seq": shapes.integer_up_to(least=1)}
    ),
    "recorded_by": shapes.filled,
    "occurred_at": shapes.is_time,
    "recorded_at": shapes.is_time,
    "skew_flag": shapes.is_bool,
    "tenant": shapes.filled,
    "actor": shapes.optional(shapes.hex32),
    "subject_key_id": shapes.maybe_text,
    "trace_id": shapes.optional(shapes.hex16),
    "intent": shapes.optional(shapes.hex16),
    "action": shapes.optional(
        shapes.object_of(
            {"rpc": shapes.filled, "digest": shapes.optional(shapes.hex32), "tool": shapes.maybe_text}
        )
    ),
    "decision": shapes.optional(
        shapes.object_of(
            {
                "id": shapes.filled,
                "outcome": shapes.one_of(OUTCOMES),
                "law": shapes.law,
                "category": shapes.maybe_text,
                "constitution_digest": shapes.optional(shapes.hex32),
                "judges": shapes.list_of(_JUDGE),
            }
        )
    ),
    "model": shapes.optional(
        shapes.object_of(
            {
                "requested": shapes.maybe_text,
                "served": shapes.maybe_text,
                "backend": shapes.maybe_text,
                "base_digest": shapes.optional(shapes.hex32),
                "adapter": shapes.optional(shapes.hex32),
            }
        )
    ),
    "result": shapes.optional(
        shapes.object_of(
            {
                "status": shapes.one_of(STATUSES),
                "code": shapes.maybe_text,
                "finish_reason": shapes.maybe_text,
                "attempts": shapes.list_of(_ATTEMPT),
                "input_tokens": shapes.optional(shapes.integer_up_to()),
                "output_tokens": shapes.optional(shapes.integer_up_to()),
                "duration_ms": shapes.optional(shapes.integer_up_to()),
            }
        )
    ),
    "commitments": shapes.unique_by(
        "kind",
        shapes.object_of(
            {
                "kind": shapes.name,
                "hmac": shapes.hex32,
                "ciphertext_sha256": shapes.optional(shapes.hex32),
                "bytes": shapes.integer_up_to(),
            }
        ),
    ),
    "execution_id": shapes.optional(shapes.hex16),
    "gate": shapes.optional(
        shapes.object_of(
            {
                "profile": shapes.filled,
                "passed": shapes.is_bool,
                "adapter_digest": shapes.hex32,
                "base_digest": shapes.hex32,
                "gate_set_digest": shapes.hex32,
                "constitution_digest": shapes.hex32,
                "measurements": shapes.list_of(_MEASUREMENT),
            }
        )
    ),
    "references": shapes.list_of(
        shapes.object_of({"name": shapes.filled, "sha256": shapes.hex32, "bytes": shapes.integer_up_to()})
    ),
    "attributes": shapes.is_attributes,
    "record_digest": shapes.hex32,
}


@dataclass(frozen=True, slots=True)
class Leaf:
    """A valid leaf: its bytes as logged and the values they hold."""

    data: bytes
    # `Any`: the values of parsed JSON; FIELDS says which kind each key has.
    value: Mapping[str, Any]

    @property
    def hash(self) -> bytes:
        """The RFC 6962 leaf hash."""
        return leaf_hash(self.data)

    @property
    def receipt_id(self) -> str:
        """The id under which clients know this record."""
        return f"rcpt_{self.value['idempotency_key']}"


def parse_leaf(data: bytes) -> Leaf:
    """Returns the leaf that `data` spells canonically, or raises `VerificationError` naming the wrong field."""
    if len(data) > MAX_LEAF_BYTES:
        raise VerificationError(f"a leaf has at most {MAX_LEAF_BYTES} bytes")
    return Leaf(data, require_fields(canonical.decode(data)))


def build_leaf(value: Mapping[str, Any]) -> Leaf:
    """The leaf of these field values, validated; raises `VerificationError` naming the wrong field."""
    return parse_leaf(canonical.encode(dict(value)))


def require_fields(value: Any) -> Mapping[str, Any]:
    """Returns `value` when it is an object with exactly the fields of leaf v1, each of its kind."""
    if not isinstance(value, dict) or value.get("schema") != SCHEMA:
        raise VerificationError(f"the leaf's schema is not {SCHEMA}")
    if value.keys() != FIELDS.keys():
        names = ", ".join(sorted(map(str, value.keys() ^ FIELDS.keys())))
        raise VerificationError(f"the leaf has missing or unknown fields: {names}")
    for name, check in FIELDS.items():
        if not check(value[name]):
            raise VerificationError(f"the leaf's field {name} is malformed")
    return value
