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
- `intent`: for an outcome, the idempotency key of its intent.
- `action`, `decision`, `model`, `result`, `gate`: what was asked, judged, answered, how it ended, what was measured.
- `execution_id`: the one execution that claims a clearance's nonce.
- `commitments`: per payload {kind, hmac = HMAC-SHA256(salt, plaintext), ciphertext_sha256, bytes of plaintext}.
- `references` {name, sha256, bytes}; `attributes` [key, value], sorted by key, keys unique.
- `record_digest`: SHA-256 of the producer's record, payloads left out; equal digests make a repeat harmless.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from kala.audit import canonical
from kala.audit.merkle import leaf_hash
from kala.errors import VerificationError

SCHEMA: Final = "kala.audit.leaf.v1"
# c2sp.org/tlog-tiles: an entry's length is a uint16.
MAX_LEAF_BYTES: Final = 65_535
MAX_SKEW: Final = timedelta(seconds=5)
OUTCOMES: Final = frozenset({"ALLOW", "REFUSE", "REDIRECT", "ASK_CLARIFICATION"})
STATUSES: Final = frozenset({"ok", "refused", "cancelled", "error"})
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)

# A check says whether a value is allowed. `Any`: values are parsed JSON of any kind.
Check = Callable[[Any], bool]


def _matches(pattern: str) -> Check:
    compiled = re.compile(pattern)
    return lambda value: isinstance(value, str) and compiled.fullmatch(value) is not None


def _optional(check: Check) -> Check:
    return lambda value: value is None or check(value)


def _one_of(values: frozenset[str]) -> Check:
    return lambda value: isinstance(value, str) and value in values


def _integer(top: int = canonical.MAX_INTEGER) -> Check:
    return lambda value: type(value) is int and 0 <= value <= top


def _list_of(check: Check) -> Check:
    return lambda value: isinstance(value, list) and all(map(check, value))


def _object(fields: Mapping[str, Check]) -> Check:
    return lambda value: (
        isinstance(value, dict) and value.keys() == fields.keys() and all(fields[k](v) for k, v in value.items())
    )


def _text(value: Any) -> bool:  # noqa: ANN401 - parsed JSON of any kind
    return isinstance(value, str)


def _is_bool(value: Any) -> bool:  # noqa: ANN401 - parsed JSON of any kind
    return isinstance(value, bool)


def _attributes(value: Any) -> bool:  # noqa: ANN401 - parsed JSON of any kind
    if not isinstance(value, list) or not all(isinstance(p, list) and len(p) == 2 and all(map(_text, p)) for p in value):
        return False
    keys = [pair[0] for pair in value]
    return keys == sorted(set(keys))


_hex8: Final = _matches("[0-9a-f]{16}")
_hex16: Final = _matches("[0-9a-f]{32}")
_hex32: Final = _matches("[0-9a-f]{64}")
_base64: Final = _matches("[A-Za-z0-9+/]+={0,2}")
_name: Final = _matches(r"[a-z0-9_.]{1,64}")
_filled: Final = _matches(r"(?s).+")
_time: Final = _matches(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z")
_law: Final = _optional(_integer(4))
_maybe_text: Final = _optional(_filled)

_ATTEMPT: Final = _object({"backend": _filled, "model": _maybe_text, "outcome": _filled, "reason": _maybe_text})
_JUDGE: Final = _object(
    {"name": _filled, "version": _filled, "outcome": _one_of(OUTCOMES), "law": _law,
     "score": _optional(_integer(1_000_000))}
)
_MEASUREMENT: Final = _object({"service": _filled, "claims": _base64, "signature": _base64, "key_id": _filled})
FIELDS: Final[Mapping[str, Check]] = {
    "schema": _one_of(frozenset({SCHEMA})),
    "type": _name,
    "idempotency_key": _hex16,
    "producer": _object({"id": _filled, "boot": _hex8, "seq": _integer()}),
    "recorded_by": _filled,
    "occurred_at": _time,
    "recorded_at": _time,
    "skew_flag": _is_bool,
    "tenant": _filled,
    "actor": _optional(_hex32),
    "subject_key_id": _maybe_text,
    "trace_id": _optional(_hex16),
    "intent": _optional(_hex16),
    "action": _optional(_object({"rpc": _filled, "digest": _optional(_hex32), "tool": _maybe_text})),
    "decision": _optional(_object(
        {"id": _filled, "outcome": _one_of(OUTCOMES), "law": _law, "category": _maybe_text,
         "constitution_digest": _optional(_hex32), "judges": _list_of(_JUDGE)}
    )),
    "model": _optional(_object(
        {"requested": _maybe_text, "served": _maybe_text, "backend": _maybe_text, "base_digest": _optional(_hex32),
         "adapter": _optional(_hex32)}
    )),
    "result": _optional(_object(
        {"status": _one_of(STATUSES), "code": _maybe_text, "finish_reason": _maybe_text,
         "attempts": _list_of(_ATTEMPT), "input_tokens": _optional(_integer()),
         "output_tokens": _optional(_integer()), "duration_ms": _optional(_integer())}
    )),
    "commitments": _list_of(_object(
        {"kind": _name, "hmac": _hex32, "ciphertext_sha256": _optional(_hex32), "bytes": _integer()}
    )),
    "execution_id": _optional(_hex16),
    "gate": _optional(_object(
        {"profile": _filled, "passed": _is_bool, "adapter_digest": _hex32, "base_digest": _hex32,
         "gate_set_digest": _hex32, "constitution_digest": _hex32, "measurements": _list_of(_MEASUREMENT)}
    )),
    "references": _list_of(_object({"name": _filled, "sha256": _hex32, "bytes": _integer()})),
    "attributes": _attributes,
    "record_digest": _hex32,
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


def require_fields(value: Any) -> Mapping[str, Any]:  # noqa: ANN401 - parsed JSON of any kind
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


def format_time(microseconds: int) -> str:
    """A time in microseconds since 1970 as the leaf spells it."""
    return (_EPOCH + timedelta(microseconds=microseconds)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def parse_time(text: str) -> int:
    """The microseconds since 1970 that the leaf's spelling stands for."""
    try:
        return (datetime.fromisoformat(text) - _EPOCH) // _MICROSECOND
    except (ValueError, TypeError) as error:
        raise VerificationError(f"{text!r} is not a time of a leaf") from error
