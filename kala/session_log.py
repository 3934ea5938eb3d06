"""A session's own log: one JSON line per request, each with the receipt that proves it.

It holds no prompts and no answers, only their SHA-256: the words stay with the caller. `kala audit receipt` checks a
whole file offline. Files are private, and a session's stay bounded: past `MAX_FILE_BYTES` a file makes room for the next,
and the oldest of `MAX_FILES` goes. What the suite did stays in its own log whatever becomes of these files.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
from collections import deque
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from kala.errors import InvalidArgumentError, KalaError, UnavailableError

if TYPE_CHECKING:
    from kala.client import KalaClient
    from kala.replies import ChatReply
    from kala.tool_replies import ToolResult

MAX_FILE_BYTES: Final = 16 * 1024 * 1024
"""Some thousand requests: a line with its receipt has two to four kilobytes."""

MAX_FILES: Final = 8
MAX_WAITING: Final = 256
"""Receipts that may wait for their record to leave the gateway's spool; the oldest of more are given up."""

VKEY_FILE: Final = "audit.vkey"
CHECKPOINT_PATH: Final = "/kala/v1/audit/checkpoint"

_SESSION_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


class SessionLog:
    """Writes `<directory>/session_<id>.jsonl`, and beside it the public keys that the receipts name."""

    def __init__(
        self,
        directory: Path,
        session_id: str,
        *,
        max_file_bytes: int = MAX_FILE_BYTES,
        max_files: int = MAX_FILES,
    ) -> None:
        """`session_id` becomes part of a file's name: InvalidArgumentError for one that cannot."""
        if not _SESSION_ID.fullmatch(session_id):
            raise InvalidArgumentError(
                "session_id",
                "must be 1 to 128 letters, digits, dots, dashes and underscores where a log is written",
            )
        self.directory = directory
        self.session_id = session_id
        self._max_file_bytes = max_file_bytes
        self._max_files = max_files
        self._waiting: deque[str] = deque(maxlen=MAX_WAITING)
        self._vkey = ""  # of the log that gave the newest receipts
        self._is_key_kept = False

    @property
    def path(self) -> Path:
        """The file that is written now; older ones are `session_<id>.1.jsonl`, the newest first."""
        return self._numbered(0)

    def write(self, client: KalaClient, message: str, reply: ChatReply, *, latency_ms: float) -> None:
        """Append one request with its decision and receipt; UnavailableError where the file cannot be written."""
        decision, receipt = reply.decision, reply.receipt
        facts = {
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
            # With the answer's text it opens the commitment in the receipt: `kala audit receipt --opening`.
            "opening": (receipt.openings or {}).get("released") if receipt is not None else None,
        }
        self._write(client, facts, "" if receipt is None else receipt.id)

    def write_tool(
        self, client: KalaClient, name: str, arguments: Mapping[str, Any], result: ToolResult
    ) -> None:
        """Append one call of a tool with how it ended and its receipt; raises as `write`."""
        facts = {
            "tool": name,
            "arguments_sha256": _digest(_canonical(arguments)),
            "output_sha256": _digest(result.output),
            "success": result.success,
            "ethics_approved": result.ethics_approved,
            "status": result.status,
            "exit_code": result.exit_code,
            "isolation": result.isolation,
            "run": result.run,
        }
        self._write(client, facts, result.receipt)

    def settle(self, client: KalaClient) -> None:
        """Append the proofs of records that were only spooled when their lines were written, as far as they are there."""
        while self._waiting:
            proof = self._proof(client, self._waiting[0])
            if proof is None:
                return
            self._append({"receipt": self._waiting.popleft(), "proof": proof})

    def _write(self, client: KalaClient, facts: Mapping[str, Any], receipt: str) -> None:
        proof = self._proof(client, receipt) if receipt else None
        self._append({**facts, "receipt": receipt or None, "proof": proof})
        if receipt and proof is None:
            self._waiting.append(receipt)
        elif self._waiting:
            self.settle(client)

    def _append(self, facts: Mapping[str, Any]) -> None:
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        line = json.dumps({"time": now, "session_id": self.session_id, **facts}).encode() + b"\n"
        try:
            self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._keep_key()
            self._make_room(len(line))
            _append_private(self.path, line)
        except OSError as error:
            raise UnavailableError(
                f"the session's log {self.path} cannot be written: {error.strerror}; what was asked was carried out",
                reason="SESSION_LOG_UNWRITABLE",
            ) from error

    def _make_room(self, size: int) -> None:
        try:
            is_full = 0 < self.path.stat().st_size > self._max_file_bytes - size
        except FileNotFoundError:
            return
        if not is_full:
            return
        self._numbered(self._max_files - 1).unlink(missing_ok=True)
        for number in range(self._max_files - 2, -1, -1):
            if (older := self._numbered(number)).exists():
                older.replace(self._numbered(number + 1))

    def _numbered(self, number: int) -> Path:
        suffix = f".{number}" if number else ""
        return self.directory / f"session_{self.session_id}{suffix}.jsonl"

    def _proof(self, client: KalaClient, receipt: str) -> str | None:
        """The receipt's text; None while its record is only spooled, or the log cannot be asked."""
        try:
            proof = client.receipt(receipt)
            self._vkey = self._vkey or str(client.call("GET", CHECKPOINT_PATH)["verifier_key"]).strip()
        except KalaError:
            return None
        return proof

    def _keep_key(self) -> None:
        """Add the log's public key to those seen in this directory: each private suite has a log of its own."""
        if self._is_key_kept or not self._vkey:
            return
        path = self.directory / VKEY_FILE
        known = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        if self._vkey not in known:
            _append_private(path, f"{self._vkey}\n".encode())
        self._is_key_kept = True


def _append_private(path: Path, data: bytes) -> None:
    """Append in one write, so that two writers' lines never mix; only its owner may read a file made here."""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        size = os.fstat(descriptor).st_size
        if os.write(descriptor, data) < len(data):
            # A full disk took half of a line, which would spoil the next one too.
            os.ftruncate(descriptor, size)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    finally:
        os.close(descriptor)


def _canonical(arguments: Mapping[str, Any]) -> str:  # Any: each tool has its own
    """Write arguments in one order; keys become text first, as in the call itself."""
    return json.dumps(json.loads(json.dumps(arguments, default=str)), sort_keys=True)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
