"""OCSF, CEF and OTLP of every shape of entry that the log holds."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from kala.audit.v1 import audit_pb2
from services.audit.entries import build
from services.audit.export.formats import FORMATS
from services.audit.export.ocsf import event_of
from services.audit.export.otlp import MAX_LINE_LEAF_BYTES
from services.audit.payloads import KeyEncryptionKey, PayloadSealer
from services.audit.records import entry_of
from services.audit.storage.store import StoredEntry
from tests.fakes.audit_log import KEK, NOW, ORIGIN, record

Change = Callable[[audit_pb2.Record], object]


def stored(change: Change = lambda _: None, index: int = 7) -> StoredEntry:
    made = record(index)
    change(made)
    sealer = PayloadSealer(KeyEncryptionKey(KEK), lambda _: None)
    built = build(entry_of(made, "local:gateway"), index, NOW + 5_000, sealer)
    return StoredEntry(index, built.row.leaf, built.row.leaf_hash, b"", b"")


def bare(made: audit_pb2.Record) -> None:
    """A service's own event, of which nothing but its name is known."""
    kept = audit_pb2.Record(type="service.event", idempotency_key=made.idempotency_key, tenant="kala")
    kept.producer.CopyFrom(made.producer)
    kept.occurred_at.CopyFrom(made.occurred_at)
    made.CopyFrom(kept)


def rpc(name: str) -> Change:
    def change(made: audit_pb2.Record) -> None:
        made.action.rpc = name

    return change


@pytest.mark.parametrize(
    ("name", "activity"),
    [
        ("/kala.trainer.v1.TrainerService/CreateTrainingJob", (1, "Create")),
        ("/kala.audit.v1.AuditReadService/Query", (2, "Read")),
        ("/kala.audit.v1.AuditReadService/WatchEntries", (2, "Read")),
        ("/kala.gateway.v1.SettingsService/UpdateSettings", (3, "Update")),
        ("/kala.audit.v1.AuditPrivacyService/EraseSubject", (4, "Delete")),
        ("/kala.inference.v1.InferenceService/Chat", (99, "Chat")),
        ("/kala.inference.v1.InferenceService/GetterOfThings", (99, "GetterOfThings")),
        ("HTTP GET /v1/models", (2, "Read")),
        ("HTTP DELETE /v1/keys/x", (4, "Delete")),
        ("HTTP POST /v1/chat/completions", (99, "HTTP POST /v1/chat/completions")),
        ("HTTP", (99, "HTTP")),
        ("HTTP ", (99, "HTTP ")),
        ("/audit/start", (99, "start")),
    ],
)
def test_an_event_is_named_after_what_its_rpc_does(name: str, activity: tuple[int, str]) -> None:
    event = event_of(stored(rpc(name)), ORIGIN)
    assert (event["activity_id"], event["activity_name"]) == activity
    assert event["type_uid"] == 600_300 + activity[0]


@pytest.mark.parametrize(
    ("status", "code", "found"),
    [
        ("ok", "", (1, "Success", 1, None)),
        ("refused", "NO_KEY", (2, "Failure", 2, "NO_KEY")),
        ("error", "TIMEOUT", (2, "Failure", 2, "TIMEOUT")),
        ("cancelled", "", (99, "Other", 1, None)),
    ],
)
def test_an_event_says_how_it_ended(status: str, code: str, found: tuple[Any, ...]) -> None:
    def change(made: audit_pb2.Record) -> None:
        made.ClearField("decision")
        made.result.status, made.result.code, made.result.duration_ms = status, code, 12

    event = event_of(stored(change), ORIGIN)
    seen = (event["status_id"], event["status"], event["severity_id"], event.get("status_code"))
    assert seen == found
    assert event["duration"] == 12
    assert event["api"].get("response") == ({"error": code} if code else None)


def test_an_event_of_which_little_is_known_has_all_that_its_class_requires() -> None:
    event = event_of(stored(bare), ORIGIN)
    assert event["actor"]["user"] == {"name": "gateway-0", "type_id": 3, "type": "System"}
    assert event["api"]["operation"] == "service.event"
    assert (event["status_id"], event["severity_id"]) == (0, 1)
    assert "ai_model" not in event
    assert "message_context" not in event
    assert "correlation_uid" not in event["metadata"]
    assert "service" not in event["api"]


def test_an_outcome_and_its_intent_carry_the_same_request() -> None:
    outcome = event_of(stored(), ORIGIN)
    assert outcome["api"]["request"]["uid"] == f"rcpt_{1_000_007:032x}"
    intent = event_of(stored(lambda made: made.ClearField("intent")), ORIGIN)
    assert intent["api"]["request"]["uid"] == intent["metadata"]["uid"]


def test_a_tool_s_run_names_the_tool_and_a_model_s_answer_its_weights() -> None:
    def run(made: audit_pb2.Record) -> None:
        made.ClearField("model")
        made.action.tool = "shell"

    event = event_of(stored(run), ORIGIN)
    assert event["message_context"]["ai_role_id"] == 3
    assert event["message_context"]["service"] == {"name": "shell"}
    assert "ai_model" not in event

    def answer(made: audit_pb2.Record) -> None:
        made.model.base_digest, made.model.adapter_digest = b"b" * 32, b"a" * 32
        made.model.ClearField("served")
        made.model.ClearField("backend")
        made.result.input_tokens = 5
        made.references.add(name="files/x", sha256=b"x" * 32, bytes=3)

    event = event_of(stored(answer), ORIGIN)
    assert event["ai_model"] == {
        "name": "auto",
        "ai_provider": "unknown",
        "uid": (b"b" * 32).hex(),
        "version": (b"a" * 32).hex(),
    }
    assert event["message_context"]["total_tokens"] == 12
    assert event["resources"] == [{"name": "files/x", "uid": (b"x" * 32).hex(), "type": "content"}]


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("change", [lambda _: None, bare], ids=["full", "bare"])
def test_every_format_writes_every_entry_in_one_line(name: str, change: Change) -> None:
    lines = FORMATS[name]([stored(change), stored(change, 8)], ORIGIN)
    assert len(lines) == (1 if name == "otlp" else 2)
    assert all(b"\n" not in line and b"\r" not in line for line in lines)


def test_no_name_makes_another_event_of_cef() -> None:
    """A model chooses the names of tools: what some readers take for the end of a line went out as it was."""

    def named(made: audit_pb2.Record) -> None:
        made.action.tool = "a\x85CEF:0|x\u2028CEF:0|\x0bCEF:0|\x0c\x1b[2J\x00\r\nCEF:0|x|act=allow|\\"

    (line,) = FORMATS["cef"]([stored(named)], ORIGIN)
    assert len(line.decode().splitlines()) == 1
    assert line.decode().isprintable()
    assert b" act=allow" not in line
    assert b"|act\\=allow|" in line


def test_cef_says_how_bad_it_is() -> None:
    def failed(made: audit_pb2.Record) -> None:
        made.ClearField("decision")
        made.result.status = "error"

    levels = [
        FORMATS["cef"]([stored(change, index)], ORIGIN)[0].split(b"|")[6]
        for change, index in ((lambda _: None, 1), (failed, 0), (lambda _: None, 0))
    ]
    assert levels == [b"7", b"5", b"2"]


def test_otlp_breaks_long_requests_and_keeps_their_order() -> None:
    def long(made: audit_pb2.Record) -> None:
        for number in range(40):
            made.attributes.add(key=f"k{number}", value="x" * 1_024)

    entries = [stored(long, index) for index in range(12)]
    assert sum(len(entry.leaf) for entry in entries) > 2 * MAX_LINE_LEAF_BYTES
    lines = FORMATS["otlp"](entries, ORIGIN)
    assert len(lines) == 3
    assert max(map(len, lines)) < 1024 * 1024
    seen = [
        one["body"]["stringValue"].encode()
        for line in lines
        for one in json.loads(line)["resourceLogs"][0]["scopeLogs"][0]["logRecords"]
    ]
    assert seen == [entry.leaf for entry in entries]
    assert FORMATS["otlp"]([], ORIGIN) == []


def test_otlp_marks_what_was_refused_and_leaves_out_what_is_not_known() -> None:
    (line,) = FORMATS["otlp"]([stored(index=1), stored(bare, 2)], ORIGIN)
    refused, event = json.loads(line)["resourceLogs"][0]["scopeLogs"][0]["logRecords"]
    assert (refused["severityText"], event["severityText"]) == ("WARN", "INFO")
    assert "traceId" not in event
    assert not [one for one in event["attributes"] if one["key"].startswith("gen_ai.")]
