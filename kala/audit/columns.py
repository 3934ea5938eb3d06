"""The columns that a store derives from a leaf, so that store and verifier derive them by the same code."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from kala.audit.times import parse_time
from kala.errors import VerificationError

# In the order in which `derived` returns them. Times are microseconds since 1970, UTC.
DERIVED: Final = (
    "idem",
    "type",
    "tenant",
    "actor",
    "subject_key_id",
    "trace_id",
    "intent",
    "rpc",
    "tool",
    "outcome",
    "law",
    "model",
    "backend",
    "status",
    "producer",
    "boot",
    "sequence",
    "occurred_at",
    "recorded_at",
    "record_digest",
)

_NOTHING: Final[Mapping[str, None]] = {}


def derived(
    leaf: Mapping[str, Any], times: tuple[int, int] | None = None
) -> tuple[int | str | bytes | None, ...]:
    """The values of `DERIVED` for the fields of one leaf; raises `VerificationError` when a field is missing.

    `times` are those that the leaf was just made with, for a writer that need not read them back.
    """
    try:
        action, decision = leaf["action"] or _NOTHING, leaf["decision"] or _NOTHING
        model, result = leaf["model"] or _NOTHING, leaf["result"] or _NOTHING
        producer = leaf["producer"]
        return (
            bytes.fromhex(leaf["idempotency_key"]),
            leaf["type"],
            leaf["tenant"],
            leaf["actor"],
            leaf["subject_key_id"],
            leaf["trace_id"],
            None if leaf["intent"] is None else bytes.fromhex(leaf["intent"]),
            action.get("rpc"),
            action.get("tool"),
            decision.get("outcome"),
            decision.get("law"),
            model.get("served"),
            model.get("backend"),
            result.get("status"),
            producer["id"],
            bytes.fromhex(producer["boot"]),
            producer["seq"],
            *(times or (parse_time(leaf["occurred_at"]), parse_time(leaf["recorded_at"]))),
            bytes.fromhex(leaf["record_digest"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise VerificationError(f"the leaf has no usable field {error}") from error
