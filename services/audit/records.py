"""Records from the wire, validated field by field and turned into entries; protobuf ends here."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, Final, Never

from kala.audit.canonical import MAX_INTEGER
from kala.audit.leaf import SCHEMA
from kala.audit.v1 import audit_pb2
from kala.common.v1 import decision_pb2, measurement_pb2
from kala.errors import InvalidArgumentError
from services.audit.entries import NewEntry, PlainPayload, digest_of_record, time_text
from services.audit.privacy.redaction import SUFFIX, is_redacted

MAX_ATTRIBUTES: Final = 64
MAX_PAYLOADS: Final = 8
MAX_TEXT_CHARS: Final = 1_024
KEY_BYTES: Final = 16
BOOT_BYTES: Final = 8
DIGEST_BYTES: Final = 32
MAX_SCORE: Final = 1_000_000
MAX_LAW: Final = 4
NANOS_PER_SECOND: Final = 1_000_000_000
OUTCOME_NAMES: Final[Mapping[int, str]] = {
    decision_pb2.OUTCOME_ALLOW: "ALLOW",
    decision_pb2.OUTCOME_REFUSE: "REFUSE",
    decision_pb2.OUTCOME_REDIRECT: "REDIRECT",
    decision_pb2.OUTCOME_ASK_CLARIFICATION: "ASK_CLARIFICATION",
}
STATUSES: Final = frozenset({"ok", "refused", "cancelled", "error"})
_NAME: Final = re.compile(r"[a-z0-9_.]{1,64}")
_HEX32: Final = re.compile(r"[0-9a-f]{32}")
_HEX64: Final = re.compile(r"[0-9a-f]{64}")
_is_name: Final = _NAME.fullmatch
_is_hex32: Final = _HEX32.fullmatch
_is_hex64: Final = _HEX64.fullmatch
# Timestamps outside these years (0001 to 9999 in protobuf) are a producer's fault, not history.
_FIRST_SECOND: Final = 0
_LAST_SECOND: Final = 253_402_300_799

# `Any`: the values of canonical JSON.
Fields = dict[str, Any]


def entry_of(record: audit_pb2.Record, recorded_by: str) -> NewEntry:
    """The entry that a record asks for; raises `InvalidArgumentError` naming the first wrong field.

    `record` is consumed: its payloads are moved out of it. This is the hot path: what is rare is looked at last, and
    what is unset costs no call.
    """
    has = record.HasField
    payloads: Sequence[PlainPayload] = ()
    if record.payloads:
        payloads = _payloads(record)
        del record.payloads[:]
    digest = digest_of_record(record.SerializeToString(deterministic=True), payloads)
    key, kind = record.idempotency_key, record.type
    actor, subject, trace_id = record.actor, record.subject_key_id, record.trace_id
    fields: Fields = {
        "schema": SCHEMA,
        "type": kind if _is_name(kind) else _mismatch("type", _NAME),
        "idempotency_key": _bytes("idempotency_key", key, KEY_BYTES).hex(),
        "producer": _producer(record.producer),
        "recorded_by": recorded_by,
        "occurred_at": time_text(occurred_at := _occurred_at(record)),
        "record_digest": digest.hex(),
        "tenant": _required("tenant", record.tenant, 64),
        "actor": (actor if _is_hex64(actor) else _mismatch("actor", _HEX64)) if actor else None,
        "subject_key_id": (subject if _is_hex64(subject) else _mismatch("subject_key_id", _HEX64))
        if subject
        else None,
        "trace_id": (trace_id if _is_hex32(trace_id) else _mismatch("trace_id", _HEX32))
        if trace_id
        else None,
        "intent": _maybe_bytes("intent", record.intent, KEY_BYTES),
        "action": _action(record.action) if has("action") else None,
        "decision": _decision(record.decision) if has("decision") else None,
        "model": _model(record.model) if has("model") else None,
        "result": _result(record.result) if has("result") else None,
        "execution_id": _maybe_bytes("execution_id", record.execution_id, KEY_BYTES),
        "gate": _gate(record.gate) if has("gate") else None,
        "references": _each("references", record.references, _reference),
        "attributes": _attributes(record),
    }
    return NewEntry(key, fields, occurred_at, digest, payloads)


def _payloads(record: audit_pb2.Record) -> list[PlainPayload]:
    if len(record.payloads) > MAX_PAYLOADS:
        raise InvalidArgumentError("payloads", f"at most {MAX_PAYLOADS}")
    payloads = [
        PlainPayload(_match("payloads.kind", p.kind, _NAME), p.data, p.store) for p in record.payloads
    ]
    if any(is_redacted(p.kind) for p in payloads):
        raise InvalidArgumentError("payloads.kind", f"must not end with {SUFFIX}: such copies the log makes")
    if len(payloads) > 1 and len({p.kind for p in payloads}) != len(payloads):
        raise InvalidArgumentError("payloads.kind", "must be unique in the record")
    return payloads


def _producer(producer: audit_pb2.Producer) -> Fields:
    sequence = producer.sequence
    if not 1 <= sequence <= MAX_INTEGER:
        raise InvalidArgumentError("producer.sequence", "starts at 1 and stays below 2^53")
    return {
        "id": _required("producer.id", producer.id, 128),
        "boot": _bytes("producer.boot", producer.boot, BOOT_BYTES).hex(),
        "seq": sequence,
    }


def _occurred_at(record: audit_pb2.Record) -> int:
    time = record.occurred_at
    seconds, nanos = time.seconds, time.nanos
    # Unset reads as zero.
    if not _FIRST_SECOND <= seconds <= _LAST_SECOND or not (seconds or record.HasField("occurred_at")):
        raise InvalidArgumentError("occurred_at", "must be set, between 1970 and 9999")
    if not 0 <= nanos < NANOS_PER_SECOND:
        raise InvalidArgumentError("occurred_at", "has nanoseconds outside 0 to 999,999,999")
    return seconds * 1_000_000 + nanos // 1_000


def _action(action: audit_pb2.RecordAction) -> Fields:
    return {
        "rpc": _required("action.rpc", action.rpc),
        "digest": _maybe_bytes("action.digest", action.digest),
        "tool": _optional("action.tool", action.tool),
    }


def _decision(decision: audit_pb2.RecordDecision) -> Fields:
    name = decision.id
    return {
        "id": name if _is_hex32(name) else _mismatch("decision.id", _HEX32),
        "outcome": OUTCOME_NAMES.get(decision.outcome) or _unset("decision.outcome"),
        "law": _bounded("decision.law", decision, "law", MAX_LAW),
        "category": _optional("decision.category", decision.category),
        "constitution_digest": _maybe_bytes("decision.constitution_digest", decision.constitution_digest),
        "judges": _each("decision.judges", decision.judges, _judge),
    }


def _judge(judge: audit_pb2.RecordJudge) -> Fields:
    return {
        "name": _required("name", judge.name),
        "version": _required("version", judge.version),
        "outcome": OUTCOME_NAMES.get(judge.outcome) or _unset("outcome"),
        "law": _bounded("law", judge, "law", MAX_LAW),
        "score": _bounded("score_millionths", judge, "score_millionths", MAX_SCORE),
    }


def _model(model: audit_pb2.RecordModel) -> Fields:
    return {
        "requested": _optional("model.requested", model.requested),
        "served": _optional("model.served", model.served),
        "backend": _optional("model.backend", model.backend),
        "base_digest": _maybe_bytes("model.base_digest", model.base_digest),
        "adapter": _maybe_bytes("model.adapter_digest", model.adapter_digest),
    }


def _result(result: audit_pb2.RecordResult) -> Fields:
    status = result.status
    if status not in STATUSES:
        raise InvalidArgumentError("result.status", f"must be one of {', '.join(sorted(STATUSES))}")
    return {
        "status": status,
        "code": _optional("result.code", result.code),
        "finish_reason": _optional("result.finish_reason", result.finish_reason),
        "attempts": _each("result.attempts", result.attempts, _attempt),
        "input_tokens": _bounded("result.input_tokens", result, "input_tokens"),
        "output_tokens": _bounded("result.output_tokens", result, "output_tokens"),
        "duration_ms": _bounded("result.duration_ms", result, "duration_ms"),
    }


def _attempt(attempt: audit_pb2.RecordAttempt) -> Fields:
    return {
        "backend": _required("backend", attempt.backend),
        "model": _optional("model", attempt.model),
        "outcome": _required("outcome", attempt.outcome),
        "reason": _optional("reason", attempt.reason),
    }


def _gate(gate: audit_pb2.RecordGate) -> Fields:
    return {
        "profile": _required("gate.profile", gate.profile),
        "passed": gate.passed,
        "adapter_digest": _bytes("gate.adapter_digest", gate.adapter_digest).hex(),
        "base_digest": _bytes("gate.base_digest", gate.base_digest).hex(),
        "gate_set_digest": _bytes("gate.gate_set_digest", gate.gate_set_digest).hex(),
        "constitution_digest": _bytes("gate.constitution_digest", gate.constitution_digest).hex(),
        "measurements": _each("gate.measurements", gate.measurements, _measurement),
    }


def _measurement(measurement: measurement_pb2.SignedMeasurement) -> Fields:
    if not measurement.claims or not measurement.signature:
        raise InvalidArgumentError("claims", "must be set, with their signature")
    return {
        "service": _required("service", measurement.service),
        "claims": base64.b64encode(measurement.claims).decode(),
        "signature": base64.b64encode(measurement.signature).decode(),
        "key_id": _required("key_id", measurement.key_id),
    }


# `Any` below: protobuf messages of several types that share a shape.
def _reference(reference: Any) -> Fields:
    return {
        "name": _required("name", reference.name),
        "sha256": _bytes("sha256", reference.sha256).hex(),
        "bytes": _within("bytes", reference.bytes, MAX_INTEGER),
    }


# `Any`: repeated messages of several types, each read by its own function.
def _each(field: str, messages: Any, convert: Callable[[Any], Fields]) -> list[Fields]:
    """Converts each message; an error names its place. Names are put together only then: this is the hot path."""
    if not messages:
        return []
    converted: list[Fields] = []
    try:
        for message in messages:
            converted.append(convert(message))  # noqa: PERF401 - its length is the place of the error
    except InvalidArgumentError as error:
        place = f"{field}[{len(converted)}].{error.field}"
        raise InvalidArgumentError(place, error.problem) from None
    return converted


def _attributes(record: audit_pb2.Record) -> list[list[str]]:
    attributes = record.attributes
    if not attributes:
        return []
    if len(attributes) > MAX_ATTRIBUTES:
        raise InvalidArgumentError("attributes", f"at most {MAX_ATTRIBUTES}")
    pairs: list[list[str]] = []
    for attribute in attributes:
        key, value = attribute.key, attribute.value
        if not _is_name(key):
            _mismatch("attributes.key", _NAME)
        if len(value) > MAX_TEXT_CHARS:
            _too_long("attributes.value")
        pairs.append([key, value])
    if len(pairs) > 1:
        pairs.sort()
        if any(one[0] == other[0] for one, other in pairwise(pairs)):
            raise InvalidArgumentError("attributes.key", "must be unique in the record")
    return pairs


def _bounded(field: str, message: Any, name: str, top: int = MAX_INTEGER) -> int | None:
    if not message.HasField(name):
        return None
    # `int`: the numbers of the contract that this is asked for.
    value: int = getattr(message, name)
    return value if value <= top else _within(field, value, top)


def _within(field: str, value: int, top: int) -> int:
    if value > top:
        raise InvalidArgumentError(field, f"must be at most {top}")
    return value


def _match(field: str, text: str, pattern: re.Pattern[str]) -> str:
    return text if pattern.fullmatch(text) is not None else _mismatch(field, pattern)


def _required(field: str, text: str, longest: int = MAX_TEXT_CHARS) -> str:
    if not 1 <= len(text) <= longest:
        raise InvalidArgumentError(field, f"must be 1 to {longest} characters")
    return text


def _optional(field: str, text: str) -> str | None:
    if not text:
        return None
    return text if len(text) <= MAX_TEXT_CHARS else _too_long(field)


def _bytes(field: str, data: bytes, length: int = DIGEST_BYTES) -> bytes:
    if len(data) != length:
        raise InvalidArgumentError(field, f"must be {length} bytes")
    return data


def _maybe_bytes(field: str, data: bytes, length: int = DIGEST_BYTES) -> str | None:
    if not data:
        return None
    return data.hex() if len(data) == length else _bytes(field, data, length).hex()


def _mismatch(field: str, pattern: re.Pattern[str]) -> Never:
    raise InvalidArgumentError(field, f"must match {pattern.pattern}")


def _too_long(field: str) -> Never:
    raise InvalidArgumentError(field, f"must be at most {MAX_TEXT_CHARS} characters")


def _unset(field: str) -> Never:
    raise InvalidArgumentError(field, "must be set")
