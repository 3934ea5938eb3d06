"""Entries as ArcSight Common Event Format, one line each, for collectors that read syslog.

The extension's keys are those of CEF's dictionary; what it has no key for stands in labelled custom strings. CEF does
not hold a whole entry: `externalId` is its index, under which the log proves it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final

import orjson

from kala.audit.times import parse_time
from services.audit.storage.store import StoredEntry

_PREFIX: Final = "CEF:0|KALA|audit|1|"
_SEVERE, _NOTABLE, _ORDINARY = 7, 5, 2

_HEADER: Final = str.maketrans({"\\": "\\\\", "|": "\\|", "\n": " ", "\r": " "})
_EXTENSION: Final = str.maketrans({"\\": "\\\\", "=": "\\=", "\n": "\\n", "\r": "\\r"})
# A collector or a terminal may take one for the end of a line or for an order; a name that a model made up may hold any.
_CONTROLS: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


def cef_lines(entries: Sequence[StoredEntry], origin: str) -> list[bytes]:
    """One line per entry."""
    return [_line(entry, origin).encode() for entry in entries]


def _line(entry: StoredEntry, origin: str) -> str:
    # `Any`: the values of a leaf, as `kala.audit.leaf` describes them.
    leaf: dict[str, Any] = orjson.loads(entry.leaf)
    action, decision = leaf["action"] or {}, leaf["decision"] or {}
    model, result = leaf["model"] or {}, leaf["result"] or {}
    law = decision.get("law")
    fields: tuple[tuple[str, object], ...] = (
        ("rt", parse_time(leaf["recorded_at"]) // 1_000),
        ("start", parse_time(leaf["occurred_at"]) // 1_000),
        ("externalId", entry.index),
        ("dvchost", origin),
        ("deviceProcessName", leaf["producer"]["id"]),
        ("suid", leaf["actor"]),
        ("request", action.get("rpc")),
        ("act", decision.get("outcome")),
        ("cat", decision.get("category")),
        ("outcome", result.get("status")),
        ("reason", result.get("code")),
        *_labelled(1, "tenant", leaf["tenant"]),
        *_labelled(2, "receipt", f"rcpt_{leaf['idempotency_key']}"),
        *_labelled(3, "leafHash", entry.leaf_hash.hex()),
        *_labelled(4, "model", model.get("served")),
        *_labelled(5, "tool", action.get("tool")),
        *_labelled(6, "traceId", leaf["trace_id"]),
        *((("cn1", law), ("cn1Label", "law")) if law is not None else ()),
    )
    kind = leaf["type"].translate(_HEADER)
    written = " ".join(
        f"{key}={_CONTROLS.sub(' ', str(value).translate(_EXTENSION))}"
        for key, value in fields
        if value is not None
    )
    return f"{_PREFIX}{kind}|{kind}|{_severity(decision, result)}|{written}"


def _labelled(number: int, label: str, value: str | None) -> tuple[tuple[str, object], ...]:
    return () if value is None else ((f"cs{number}", value), (f"cs{number}Label", label))


def _severity(decision: dict[str, Any], result: dict[str, Any]) -> int:
    if decision.get("outcome") == "REFUSE":
        return _SEVERE
    return _NOTABLE if result.get("status") in {"refused", "error"} else _ORDINARY
