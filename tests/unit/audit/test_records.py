"""Records from the wire: each wrong field is named, and the digest sees every difference."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from kala.audit.v1 import audit_pb2
from kala.errors import InvalidArgumentError
from services.audit.records import entry_of
from tests.fakes.audit_log import record

Change = Callable[[audit_pb2.Record], object]


def set_field(path: str, value: object) -> Change:
    def change(made: audit_pb2.Record) -> None:
        *parents, last = path.split(".")
        target: object = made
        for parent in parents:
            target = getattr(target, parent)
        setattr(target, last, value)

    return change


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("type", set_field("type", "Chat Intent")),
        ("type", set_field("type", "")),
        ("idempotency_key", set_field("idempotency_key", b"short")),
        ("producer.id", set_field("producer.id", "")),
        ("producer.id", set_field("producer.id", "x" * 129)),
        ("producer.boot", set_field("producer.boot", b"")),
        ("producer.sequence", set_field("producer.sequence", 0)),
        ("producer.sequence", set_field("producer.sequence", 2**53)),
        ("occurred_at", lambda made: made.ClearField("occurred_at")),
        ("occurred_at", set_field("occurred_at.seconds", -1)),
        ("occurred_at", set_field("occurred_at.nanos", 1_000_000_000)),
        ("tenant", set_field("tenant", "")),
        ("tenant", set_field("tenant", "x" * 65)),
        ("actor", set_field("actor", "me@example.com")),
        ("subject_key_id", set_field("subject_key_id", "me")),
        ("trace_id", set_field("trace_id", "xyz")),
        ("intent", set_field("intent", b"12")),
        ("execution_id", set_field("execution_id", b"12")),
        ("action.rpc", set_field("action.rpc", "")),
        ("action.digest", set_field("action.digest", b"12")),
        ("decision.id", set_field("decision.id", "1")),
        ("decision.outcome", set_field("decision.outcome", 0)),
        ("decision.outcome", set_field("decision.outcome", 9)),
        ("decision.law", set_field("decision.law", 5)),
        ("decision.constitution_digest", set_field("decision.constitution_digest", b"1")),
        (r"decision.judges\[1\].name", lambda made: made.decision.judges.add(outcome=1)),
        (
            r"decision.judges\[1\].score_millionths",
            lambda made: made.decision.judges.add(
                name="n", version="1", outcome=1, score_millionths=1_000_001
            ),
        ),
        ("model.served", set_field("model.served", "x" * 1_025)),
        ("model.adapter_digest", set_field("model.adapter_digest", b"1")),
        ("result.status", set_field("result.status", "great")),
        ("result.output_tokens", set_field("result.output_tokens", 2**60)),
        (r"result.attempts\[0\].backend", lambda made: made.result.attempts.add(outcome="ok")),
        (r"references\[0\].sha256", lambda made: made.references.add(name="a", sha256=b"1")),
        (r"references\[0\].name", lambda made: made.references.add(sha256=b"1" * 32)),
        ("gate.profile", set_field("gate.passed", True)),
        (r"gate.measurements\[0\]", lambda made: _gate(made).measurements.add(service="ethics")),
        ("attributes.key", lambda made: made.attributes.add(key="Bad Key")),
        ("attributes.key", lambda made: made.attributes.add(key="note")),
        ("attributes.value", lambda made: made.attributes.add(key="long", value="x" * 1_025)),
        ("attributes: at most", lambda made: [made.attributes.add(key=f"k{n}") for n in range(65)]),
        ("payloads.kind", lambda made: made.payloads.add(kind="")),
        ("payloads.kind", lambda made: [made.payloads.add(kind="request") for _ in range(2)]),
        ("payloads.kind", lambda made: made.payloads.add(kind="request.redacted")),
        ("payloads: at most", lambda made: [made.payloads.add(kind=f"k{n}") for n in range(9)]),
    ],
)
def test_a_wrong_field_is_named(field: str, change: Change) -> None:
    made = record(0)
    change(made)
    with pytest.raises(InvalidArgumentError, match=field):
        entry_of(made, "local:gateway")


def _gate(made: audit_pb2.Record) -> audit_pb2.RecordGate:
    gate = made.gate
    gate.profile = "embedded"
    gate.adapter_digest = gate.base_digest = gate.gate_set_digest = gate.constitution_digest = b"g" * 32
    return gate


@pytest.mark.parametrize(
    "change",
    [
        set_field("tenant", "other"),
        set_field("result.output_tokens", 99),
        lambda made: made.payloads.add(kind="request", data=b"x", store=True),
        lambda made: made.attributes.add(key="more"),
    ],
)
def test_records_that_differ_have_different_digests(change: Change) -> None:
    first, second = record(0), record(0)
    change(second)
    assert entry_of(first, "a").record_digest != entry_of(second, "a").record_digest


@pytest.mark.parametrize(
    ("payload", "other"),
    [
        ({"kind": "a", "data": b"12", "store": True}, {"kind": "b", "data": b"12", "store": True}),
        ({"kind": "a", "data": b"12", "store": True}, {"kind": "a", "data": b"1", "store": True}),
        ({"kind": "a", "data": b"12", "store": True}, {"kind": "a", "data": b"12", "store": False}),
    ],
)
def test_the_digest_covers_the_shape_of_payloads(
    payload: dict[str, object], other: dict[str, object]
) -> None:
    first, second = record(0), record(0)
    first.payloads.add(**payload)  # type: ignore[arg-type] # keyword arguments of a message
    second.payloads.add(**other)  # type: ignore[arg-type]
    assert entry_of(first, "a").record_digest != entry_of(second, "a").record_digest


def test_the_digest_of_a_record_says_nothing_about_its_words() -> None:
    """An unsalted digest of a short prompt could be guessed; the commitments are salted for that reason."""
    first, second = record(0), record(0)
    first.payloads.add(kind="request", data=b"yes", store=True)
    second.payloads.add(kind="request", data=b"nah", store=True)
    assert entry_of(first, "a").record_digest == entry_of(second, "a").record_digest
