"""A session's own log: one JSON line per request, and the receipts to verify it with.

It holds no prompts and no answers, only their SHA-256: the words stay with the caller.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from kala.client import KalaClient
from kala.errors import KalaError
from kala.replies import ChatReply
from kala.tool_replies import ToolResult


@dataclass(frozen=True, slots=True)
class SessionLog:
    """Writes `<directory>/session_<id>.jsonl` and one file per receipt beside it."""

    directory: Path
    session_id: str

    @property
    def path(self) -> Path:
        """The JSONL file."""
        return self.directory / f"session_{self.session_id}.jsonl"

    def write(self, client: KalaClient, message: str, reply: ChatReply, *, latency_ms: float) -> None:
        """Append one request with its decision and receipt."""
        decision, receipt = reply.decision, reply.receipt
        line = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "session_id": self.session_id,
            "message_sha256": _digest(message),
            "response_sha256": _digest(reply.text),
            "model": reply.model,
            "finish_reason": reply.finish_reason,
            "outcome": None if decision is None else decision.outcome,
            "law": None if decision is None else decision.law,
            "category": None if decision is None else decision.category,
            "decision_path": [] if decision is None else list(decision.path),
            "input_tokens": reply.input_tokens,
            "output_tokens": reply.output_tokens,
            "latency_ms": round(latency_ms, 1),
            "receipt": None if receipt is None else receipt.id,
            "receipt_file": self._save_receipt(client, "" if receipt is None else receipt.id),
        }
        self._append(line)

    def write_tool(
        self, client: KalaClient, name: str, arguments: Mapping[str, Any], result: ToolResult
    ) -> None:
        """Append one call of a tool with how it ended and its receipt."""
        self._append(
            {
                "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
                "session_id": self.session_id,
                "tool": name,
                "arguments_sha256": _digest(_canonical(arguments)),
                "output_sha256": _digest(result.output),
                "success": result.success,
                "ethics_approved": result.ethics_approved,
                "status": result.status,
                "exit_code": result.exit_code,
                "isolation": result.isolation,
                "run": result.run,
                "receipt": result.receipt or None,
                "receipt_file": self._save_receipt(client, result.receipt),
            }
        )

    def _append(self, line: Mapping[str, Any]) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def _save_receipt(self, client: KalaClient, receipt_id: str) -> str | None:
        """Keep the proof: a private suite's log is gone after the session, its receipts verify for ever."""
        if not receipt_id:
            return None
        folder = self.directory / "receipts"
        folder.mkdir(parents=True, exist_ok=True)
        try:
            proof = client.receipt(receipt_id)
            vkey = str(client.call("GET", "/kala/v1/audit/checkpoint")["verifier_key"])
        except KalaError:
            # A spooled record has no proof yet; its id in the log finds it later.
            return None
        path = folder / f"{receipt_id}.txt"
        path.write_text(proof, encoding="utf-8")
        (self.directory / "audit.vkey").write_text(f"{vkey.strip()}\n", encoding="utf-8")
        return str(path.relative_to(self.directory))


def _canonical(arguments: Mapping[str, Any]) -> str:  # Any: each tool has its own
    """Write arguments in one order; keys become text first, as in the call itself."""
    return json.dumps(json.loads(json.dumps(arguments, default=str)), sort_keys=True)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
