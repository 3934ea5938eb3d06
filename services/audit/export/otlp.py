"""Entries as OTLP logs in JSON: each line is one ExportLogsServiceRequest, as OTLP/HTTP takes it at /v1/logs.

A record's body is the leaf, verbatim. Attributes that the semantic conventions name have their names; the others begin
with `kala.`. OTLP's JSON spells ids in hex and 64-bit numbers as strings.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import orjson

from kala.audit.times import parse_time
from services.audit.storage.store import StoredEntry

# A line stays well below what collectors and exports take at once (1 MiB).
MAX_LINE_LEAF_BYTES: Final = 192 * 1024
MAX_LINE_RECORDS: Final = 512
_INFO, _WARN = (9, "INFO"), (13, "WARN")

# `Any` in this module: the values of a leaf, as `kala.audit.leaf` describes them, and JSON made of them.
Json = dict[str, Any]


def otlp_lines(entries: Sequence[StoredEntry], origin: str) -> list[bytes]:
    """As few requests as hold the entries, in their order."""
    lines: list[bytes] = []
    waiting: list[Json] = []
    size = 0
    for entry in entries:
        if waiting and (size + len(entry.leaf) > MAX_LINE_LEAF_BYTES or len(waiting) == MAX_LINE_RECORDS):
            lines.append(_request(waiting, origin))
            waiting, size = [], 0
        waiting.append(_record(entry))
        size += len(entry.leaf)
    if waiting:
        lines.append(_request(waiting, origin))
    return lines


def _request(records: Sequence[Json], origin: str) -> bytes:
    resource = {"attributes": [_text("service.name", "kala-audit"), _text("kala.log.origin", origin)]}
    scope = {"scope": {"name": "kala.audit"}, "logRecords": records}
    return orjson.dumps({"resourceLogs": [{"resource": resource, "scopeLogs": [scope]}]})


def _record(entry: StoredEntry) -> Json:
    leaf: Json = orjson.loads(entry.leaf)
    action, decision = leaf["action"] or {}, leaf["decision"] or {}
    model, result = leaf["model"] or {}, leaf["result"] or {}
    is_notable = decision.get("outcome") == "REFUSE" or result.get("status") in {"refused", "error"}
    number, severity = _WARN if is_notable else _INFO
    named = (
        ("kala.type", leaf["type"]),
        ("kala.receipt", f"rcpt_{leaf['idempotency_key']}"),
        ("kala.leaf_hash", entry.leaf_hash.hex()),
        ("kala.tenant", leaf["tenant"]),
        ("kala.actor", leaf["actor"]),
        ("kala.outcome", decision.get("outcome")),
        ("kala.status", result.get("status")),
        ("kala.tool", action.get("tool")),
        ("rpc.method", action.get("rpc")),
        ("gen_ai.request.model", model.get("requested")),
        ("gen_ai.response.model", model.get("served")),
    )
    counted = (
        ("kala.index", entry.index),
        ("kala.law", decision.get("law")),
        ("gen_ai.usage.input_tokens", result.get("input_tokens")),
        ("gen_ai.usage.output_tokens", result.get("output_tokens")),
    )
    record: Json = {
        "timeUnixNano": f"{parse_time(leaf['occurred_at'])}000",
        "observedTimeUnixNano": f"{parse_time(leaf['recorded_at'])}000",
        "severityNumber": number,
        "severityText": severity,
        "eventName": leaf["type"],
        "body": {"stringValue": entry.leaf.decode()},
        "attributes": [
            *(_text(key, value) for key, value in named if value),
            *({"key": key, "value": {"intValue": str(value)}} for key, value in counted if value is not None),
        ],
    }
    if leaf["trace_id"]:
        record["traceId"] = leaf["trace_id"]
    return record


def _text(key: str, value: str) -> Json:
    return {"key": key, "value": {"stringValue": value}}
