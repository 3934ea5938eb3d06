"""A session's log, checked offline: each line against the receipt that it carries (`kala/session_log.py` writes them).

A line that was removed leaves no trace here; the log itself has its record.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from kala.audit.note import Verifier
from kala.audit.receipt import VerifiedReceipt, verify_receipt
from kala.errors import VerificationError

MAX_LINE_CHARS: Final = 1 << 21
"""A receipt's largest text, in JSON, fits."""


@dataclass(frozen=True, slots=True)
class SessionReport:
    """What holds of a session's log: `unproved` are the ids of receipts whose proof no line carries."""

    lines: int
    proved: int
    unproved: Sequence[str]


def verify_session(lines: Iterable[str], trusted: Sequence[Verifier]) -> SessionReport:
    """Check every line that carries a proof; VerificationError names the first line that does not hold."""
    count = proved = 0
    waiting: dict[str, None] = {}
    for count, text in enumerate(lines, start=1):
        try:
            line = _line(text)
            named = line.get("receipt")
            if named is None:
                continue
            if line.get("proof") is None:
                waiting[str(named)] = None
                continue
            _require_same(line, verify_receipt(str(line["proof"]), trusted))
        except VerificationError as error:
            raise VerificationError(f"line {count}: {error.message}") from error
        proved += 1
        waiting.pop(str(named), None)
    return SessionReport(count, proved, tuple(waiting))


def _line(text: str) -> dict[str, Any]:  # Any: parsed JSON
    if len(text) > MAX_LINE_CHARS:
        raise VerificationError(f"a line has at most {MAX_LINE_CHARS} characters")
    try:
        line = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise VerificationError("is not JSON") from error
    if not isinstance(line, dict):
        raise VerificationError("is no JSON object")
    return line


def _require_same(line: dict[str, Any], verified: VerifiedReceipt) -> None:
    """Compare what the line says besides with what the log says."""
    if line["receipt"] != verified.leaf.receipt_id:
        raise VerificationError(f"the proof is of {verified.leaf.receipt_id}, not of {line['receipt']}")
    decision = verified.leaf.value["decision"]
    if line.get("outcome") is None or decision is None:
        return
    for name in ("outcome", "law"):
        if line.get(name) != decision[name]:
            raise VerificationError(
                f"the line's {name} is {line.get(name)!r}, and the log's {decision[name]!r}"
            )
