"""Leaf v1: every record makes a valid leaf, and nothing else passes for one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kala.audit import canonical
from kala.audit.columns import DERIVED, derived
from kala.audit.leaf import FIELDS, MAX_LEAF_BYTES, build_leaf, parse_leaf
from kala.audit.times import format_time, parse_time
from kala.audit.v1 import audit_pb2
from kala.errors import InvalidArgumentError, VerificationError
from services.audit.entries import BuiltEntry, build, time_text
from services.audit.payloads import KeyEncryptionKey, PayloadSealer
from services.audit.records import entry_of
from tests.fakes.audit_log import KEK, NOW, record

GOLDEN = Path(__file__).parents[2] / "vectors" / "audit" / "kala" / "leaf_v1.json"


def built(made: audit_pb2.Record, recorded_at: int = NOW) -> BuiltEntry:
    sealer = PayloadSealer(KeyEncryptionKey(KEK, random=bytes), lambda _: None, random=bytes)
    return build(entry_of(made, "local:gateway"), 0, recorded_at, sealer)


def full_record() -> audit_pb2.Record:
    """A record with every field set."""
    made = record(3, payloads=3)
    made.execution_id, made.subject_key_id, made.action.tool = b"e" * 16, "ab" * 32, "shell"
    made.model.base_digest, made.model.adapter_digest = b"b" * 32, b"a" * 32
    made.result.code, made.result.input_tokens, made.result.duration_ms = "TOO_SLOW", 5, 6
    made.result.attempts.add(backend="backends/a", model="m", outcome="failed", reason="timeout")
    made.decision.category = "weapons"
    made.references.add(name="datasets/1", sha256=b"d" * 32, bytes=9)
    gate = made.gate
    gate.profile, gate.passed = "embedded", True
    gate.adapter_digest = gate.base_digest = gate.gate_set_digest = gate.constitution_digest = b"g" * 32
    gate.measurements.add(service="ethics", claims=b"claims", signature=b"s" * 64, key_id="key")
    return made


@pytest.mark.parametrize(
    "made", [record(0), record(1, payloads=3), full_record(), audit_pb2.Record()], ids=str
)
def test_a_record_that_is_accepted_makes_a_valid_leaf(made: audit_pb2.Record) -> None:
    if not made.type:  # the smallest record there is
        made = audit_pb2.Record(type="service.event", idempotency_key=b"k" * 16, tenant="t")
        made.producer.id, made.producer.boot, made.producer.sequence = "audit", b"12345678", 1
        made.occurred_at.seconds = 1
    row = built(made).row
    leaf = parse_leaf(row.leaf)
    assert leaf.hash == row.leaf_hash
    assert build_leaf(leaf.value).data == row.leaf
    assert row.columns == derived(leaf.value)
    assert len(row.columns) == len(DERIVED)


def test_the_leaf_of_a_full_record_is_the_committed_one() -> None:
    """Leaf v1 cannot change: a log written today must verify for ever."""
    leaf = built(full_record()).row.leaf
    assert json.loads(leaf) == json.loads(GOLDEN.read_text())
    assert canonical.encode(json.loads(GOLDEN.read_text())) == leaf


def test_a_leaf_holds_no_content() -> None:
    leaf = built(record(5, payloads=3)).row.leaf
    assert b"canary" not in leaf


@pytest.mark.parametrize("name", sorted(FIELDS))
def test_a_field_that_is_missing_or_of_another_kind_is_named(name: str) -> None:
    value: dict[str, Any] = dict(parse_leaf(built(full_record()).row.leaf).value)
    without = {key: item for key, item in value.items() if key != name}
    with pytest.raises(VerificationError, match="schema is not" if name == "schema" else name):
        parse_leaf(canonical.encode(without))
    for wrong in (7, [["b", "x"], ["a", "y"]], {"rpc": 1}):
        with pytest.raises(VerificationError, match="schema is not" if name == "schema" else name):
            parse_leaf(canonical.encode({**value, name: wrong}))


@pytest.mark.parametrize(
    "change",
    [
        {"extra": 1},
        {"schema": "kala.audit.leaf.v2"},
        {"actor": "AB" * 32},
        {"recorded_at": "2026-01-01T00:00:00Z"},
        {"attributes": [["a", "1"], ["a", "2"]]},
        {"producer": {"id": "a", "boot": "00" * 8, "seq": True}},
        {"decision": {}},
        # One instant, one spelling: no other digits, no day that is not, no hour 24.
        {"recorded_at": "\u0662\u0660\u0662\u0666-01-01T00:00:00.000000Z"},
        {"recorded_at": "2026-13-41T00:00:00.000000Z"},
        {"occurred_at": "2026-01-01T24:00:00.000000Z"},
        {"producer": {"id": "a", "boot": "00" * 8, "seq": 0}},
    ],
    ids=ascii,
)
def test_a_leaf_with_a_wrong_value_is_rejected(change: dict[str, object]) -> None:
    value = dict(parse_leaf(built(full_record()).row.leaf).value)
    with pytest.raises(VerificationError):
        parse_leaf(canonical.encode({**value, **change}))


def test_a_leaf_commits_to_each_payload_once() -> None:
    """Two commitments of one kind would let the log's owner open whichever suits."""
    value = dict(parse_leaf(built(full_record()).row.leaf).value)
    value["commitments"] = [*value["commitments"], {**value["commitments"][0], "hmac": "0" * 64}]
    with pytest.raises(VerificationError, match="commitments"):
        parse_leaf(canonical.encode(value))


@pytest.mark.parametrize("claims", ["", "A", "A=", "QR==", "QUI", "QU\nI=", "QUI=\n"])
def test_a_measurement_has_one_spelling(claims: str) -> None:
    value = dict(parse_leaf(built(full_record()).row.leaf).value)
    measurement = {**value["gate"]["measurements"][0], "claims": claims}
    value["gate"] = {**value["gate"], "measurements": [measurement]}
    with pytest.raises(VerificationError, match="gate"):
        parse_leaf(canonical.encode(value))


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b"1", b"{" + b" " * MAX_LEAF_BYTES + b"}"])
def test_what_is_no_leaf_is_rejected(data: bytes) -> None:
    with pytest.raises(VerificationError):
        parse_leaf(data)


def test_a_leaf_that_would_be_too_long_is_refused_before_it_is_logged() -> None:
    made = record(0)
    for number in range(62):
        made.attributes.add(key=f"k{number}", value="\u00e9" * 1_024)
    with pytest.raises(InvalidArgumentError, match="at most 65535 fit"):
        built(made)


@pytest.mark.parametrize("microseconds", [0, 1, 999_999, NOW, NOW + 999_999, 253_402_300_799_999_999])
def test_times_survive_to_the_microsecond(microseconds: int) -> None:
    text = format_time(microseconds)
    assert (parse_time(text), time_text(microseconds)) == (microseconds, text)


@pytest.mark.parametrize("text", ["", "yesterday", "2026-13-01T00:00:00.000000Z"])
def test_what_is_no_time_is_rejected(text: str) -> None:
    with pytest.raises(VerificationError):
        parse_time(text)


@pytest.mark.parametrize(
    ("recorded_at", "is_skewed"), [(NOW + 5_000_000, False), (NOW + 5_000_001, True), (NOW - 6_000_000, True)]
)
def test_a_skewed_clock_is_flagged(recorded_at: int, is_skewed: bool) -> None:
    assert parse_leaf(built(record(0), recorded_at).row.leaf).value["skew_flag"] is is_skewed


def test_columns_of_a_value_that_is_no_leaf_are_refused() -> None:
    with pytest.raises(VerificationError, match="no usable field"):
        derived({"action": None})
