"""Entries as events of OCSF 1.9: class API Activity (6003) with the profiles ai_operation and record_integrity.

`raw_data` is the leaf, verbatim, so that whoever has the event can still prove it. `attestation.fingerprint` is the
SHA-256 of the event's own canonical JSON (RFC 8785) without the fingerprint.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from typing import Any, Final

import orjson

from kala.audit.times import parse_time
from services.audit.storage.store import StoredEntry

VERSION: Final = "1.9.0"
CATEGORY: Final = 6
CLASS: Final = 6003
OTHER: Final = 99
_CREATE, _READ, _UPDATE, _DELETE = 1, 2, 3, 4
_ACTIVITIES: Final = {_CREATE: "Create", _READ: "Read", _UPDATE: "Update", _DELETE: "Delete"}
# By the first word of an RPC's name; what is none of these is Other, named after the RPC.
_VERBS: Final = {
    **dict.fromkeys(("Append", "Build", "Create", "Place", "Pull", "Upload", "Write"), _CREATE),
    **dict.fromkeys(
        ("Check", "Count", "Export", "Find", "Get", "List", "Query", "Read", "Summary", "Watch"), _READ
    ),
    **dict.fromkeys(("Decide", "Load", "Patch", "Promote", "Put", "Rotate", "Set", "Update"), _UPDATE),
    **dict.fromkeys(("Cancel", "Delete", "Erase", "Release", "Revoke", "Unload"), _DELETE),
}
_INFORMATIONAL, _LOW, _MEDIUM = (1, "Informational"), (2, "Low"), (3, "Medium")
_STATUSES: Final = {"ok": (1, "Success"), "refused": (2, "Failure"), "error": (2, "Failure")}
_UNKNOWN_STATUS: Final = (0, "Unknown")
_OTHER_STATUS: Final = (OTHER, "Other")
_SHA256: Final = 3
_ASSISTANT, _TOOL = 2, 3
_USER, _SYSTEM = 1, 3

# `Any` in this module: the values of a leaf, as `kala.audit.leaf` describes them, and JSON made of them.
Json = dict[str, Any]


def ocsf_lines(entries: Sequence[StoredEntry], origin: str) -> list[bytes]:
    """One event per entry."""
    return [orjson.dumps(event_of(entry, origin), option=orjson.OPT_SORT_KEYS) for entry in entries]


def event_of(entry: StoredEntry, origin: str) -> Json:
    """The event of an entry."""
    leaf = orjson.loads(entry.leaf)
    rpc = _rpc_of(leaf)
    activity, activity_name = _activity(rpc)
    severity, severity_name = _severity(leaf)
    status, status_name = _status(leaf)
    event: Json = {
        "activity_id": activity,
        "activity_name": activity_name,
        "category_uid": CATEGORY,
        "category_name": "Application Activity",
        "class_uid": CLASS,
        "class_name": "API Activity",
        "type_uid": CLASS * 100 + activity,
        "type_name": f"API Activity: {activity_name}",
        "time": parse_time(leaf["occurred_at"]) // 1_000,
        "severity_id": severity,
        "severity": severity_name,
        "status_id": status,
        "status": status_name,
        "message": leaf["type"],
        "metadata": _metadata(entry, leaf, origin),
        "actor": {"user": _user(leaf)},
        "api": _api(leaf, rpc),
        "src_endpoint": {"svc_name": leaf["producer"]["id"]},
        "raw_data": entry.leaf.decode(),
        "raw_data_size": len(entry.leaf),
        "attestation": {"uid": entry.leaf_hash.hex(), "authority_uid": origin, "chain_uid": origin},
    }
    _add_result(event, leaf)
    _add_model(event, leaf)
    if leaf["references"]:
        event["resources"] = [
            {"name": one["name"], "uid": one["sha256"], "type": "content"} for one in leaf["references"]
        ]
    digest = sha256(orjson.dumps(event, option=orjson.OPT_SORT_KEYS)).hexdigest()
    event["attestation"]["fingerprint"] = {"algorithm": "SHA-256", "algorithm_id": _SHA256, "value": digest}
    return event


def _metadata(entry: StoredEntry, leaf: Json, origin: str) -> Json:
    metadata: Json = {
        "version": VERSION,
        "profiles": ["ai_operation", "record_integrity"],
        "product": {"name": "KALA", "vendor_name": "KALA", "feature": {"name": "audit"}},
        "uid": f"rcpt_{leaf['idempotency_key']}",
        "event_code": leaf["type"],
        "sequence": entry.index,
        "log_name": origin,
        "log_provider": leaf["recorded_by"],
        "log_version": leaf["schema"],
        "original_time": leaf["occurred_at"],
        "logged_time": parse_time(leaf["recorded_at"]) // 1_000,
        "tenant_uid": leaf["tenant"],
    }
    if leaf["trace_id"]:
        metadata["correlation_uid"] = leaf["trace_id"]
    return metadata


def _user(leaf: Json) -> Json:
    if leaf["actor"]:
        return {"uid": leaf["actor"], "type_id": _USER, "type": "User"}
    return {"name": leaf["producer"]["id"], "type_id": _SYSTEM, "type": "System"}


def _api(leaf: Json, rpc: str) -> Json:
    service, _, operation = rpc.lstrip("/").rpartition("/")
    api: Json = {
        "operation": operation or rpc,
        # The intent that an outcome answers, else the record itself: both halves of an act carry the same id.
        "request": {"uid": f"rcpt_{leaf['intent'] or leaf['idempotency_key']}"},
    }
    if service:
        api["service"] = {"name": service}
    if leaf["result"] and leaf["result"]["code"]:
        api["response"] = {"error": leaf["result"]["code"]}
    return api


def _add_result(event: Json, leaf: Json) -> None:
    result, decision = leaf["result"], leaf["decision"]
    if result:
        if result["code"]:
            event["status_code"] = result["code"]
        if result["duration_ms"] is not None:
            event["duration"] = result["duration_ms"]
    if decision:
        law = "" if decision["law"] is None else f" by law {decision['law']}"
        event["status_detail"] = f"{decision['outcome']}{law}"


def _add_model(event: Json, leaf: Json) -> None:
    """What the profile ai_operation asks for: the model that answered, and what it counted."""
    model, result = leaf["model"], leaf["result"] or {}
    tool = leaf["action"]["tool"] if leaf["action"] else None
    if not tool and not (model and (model["served"] or model["requested"])):
        return
    context: Json = {
        "ai_role_id": _TOOL if tool else _ASSISTANT,
        "service": {"name": tool or leaf["producer"]["id"]},
    }
    used, made = result.get("input_tokens"), result.get("output_tokens")
    if used is not None:
        context["prompt_tokens"] = used
    if made is not None:
        context["completion_tokens"] = made
    if used is not None and made is not None:
        context["total_tokens"] = used + made
    event["message_context"] = context
    if model and (model["served"] or model["requested"]):
        described: Json = {
            "name": model["served"] or model["requested"],
            "ai_provider": (model["backend"] or "backends/unknown").removeprefix("backends/"),
        }
        if model["base_digest"]:
            described["uid"] = model["base_digest"]
        if model["adapter"]:
            described["version"] = model["adapter"]
        event["ai_model"] = described


def _rpc_of(leaf: Json) -> str:
    return str(leaf["action"]["rpc"] if leaf["action"] else leaf["type"])


def _activity(rpc: str) -> tuple[int, str]:
    if rpc.startswith("HTTP "):
        verb = {"GET": _READ, "DELETE": _DELETE, "PATCH": _UPDATE, "PUT": _UPDATE}.get(rpc.split(" ")[1])
        return (verb, _ACTIVITIES[verb]) if verb else (OTHER, rpc)
    name = rpc.rpartition("/")[2]
    word = name[:1] + "".join(c if c.islower() else " " for c in name[1:]).partition(" ")[0]
    known = _VERBS.get(word)
    return (known, _ACTIVITIES[known]) if known else (OTHER, name)


def _severity(leaf: Json) -> tuple[int, str]:
    if leaf["decision"] and leaf["decision"]["outcome"] == "REFUSE":
        return _MEDIUM
    if leaf["result"] and leaf["result"]["status"] in {"refused", "error"}:
        return _LOW
    return _INFORMATIONAL


def _status(leaf: Json) -> tuple[int, str]:
    if not leaf["result"]:
        return _UNKNOWN_STATUS
    return _STATUSES.get(leaf["result"]["status"], _OTHER_STATUS)
