"""What a run of one of KALA's tools came to, as values: its output, how it ended, and the receipt that proves it."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

# `Any` below: the values of parsed JSON from another process.
Json = Mapping[str, Any]

OK: Final = "OK"
APPROVAL_REQUIRED: Final = "APPROVAL_REQUIRED"
_STATUS_PREFIX: Final = "RUN_STATUS_"
_STDOUT: Final = "OUTPUT_STREAM_STDOUT"


@dataclass(frozen=True, slots=True)
class ToolResult:
    """One call of a tool."""

    success: bool
    """Whether it ran to its end by itself with exit code 0."""
    output: str
    """What a person wants to read: the program's standard output, or what the tool found."""
    error: str | None = None
    """Why not, or what the program wrote to standard error when it failed."""
    ethics_approved: bool = True
    """Whether the Five Laws let the call happen and its result out."""
    status: str = ""
    """OK, ERROR, TIMEOUT, REFUSED (by the policy), APPROVAL_REQUIRED, …; empty when the laws refused it."""
    exit_code: int | None = None
    stdout: str = ""
    stderr: str = ""
    data: Any = None
    """The tool's own result, parsed; its shape is in the tool's definition."""
    run: str = ""
    """`runs/…`; names its artifacts too."""
    isolation: str = ""
    """`bubblewrap/standard`; empty when it never began."""
    approval: str = ""
    """`approvals/…` that a person must give first; pass it with the same call then."""
    artifacts: tuple[Json, ...] = ()
    receipt: str = ""
    """Id of the outcome's record in the log."""

    @classmethod
    def of(cls, events: Iterable[Json], *, receipt: str = "") -> ToolResult:
        """Read the events of a run, as the REST bridge sends them."""
        stdout, stderr, ended = b"", b"", dict[str, Any]()
        for event in events:
            if output := event.get("output"):
                piece = _bytes(output.get("data"))
                if output.get("stream") == _STDOUT:
                    stdout += piece
                else:
                    stderr += piece
            ended = event.get("exit") or ended
        status = str(ended.get("status", "")).removeprefix(_STATUS_PREFIX)
        data = _parsed(ended.get("result_json"))
        out, err = stdout.decode("utf-8", "replace"), stderr.decode("utf-8", "replace")
        reason = str(ended.get("reason") or "")
        return cls(
            success=status == OK,
            output=out or _in_words(data),
            error=None if status == OK else reason or err or status.lower().replace("_", " "),
            status=status,
            exit_code=ended.get("exit_code"),
            stdout=out,
            stderr=err,
            data=data,
            run=str(ended.get("run") or ""),
            isolation=_isolation(ended.get("isolation") or {}),
            approval=str(ended.get("approval") or ""),
            artifacts=tuple(ended.get("artifacts") or ()),
            receipt=receipt,
        )

    @classmethod
    def refused(cls, words: str) -> ToolResult:
        """Give what a call came to that the Five Laws did not let happen, or whose result they kept back."""
        return cls(success=False, output="", error=words, ethics_approved=False)


def _in_words(data: Any) -> str:  # Any: JSON
    """Write the result of a tool that printed nothing: the text that it gives for people, else all of it as JSON."""
    if isinstance(data, Mapping) and isinstance(data.get("output"), str):
        return str(data["output"])
    return "" if data is None else json.dumps(data, ensure_ascii=False)


def _isolation(raw: Json) -> str:
    tier = str(raw.get("tier") or "").removeprefix("ISOLATION_TIER_")
    strength = str(raw.get("strength") or "").removeprefix("ISOLATION_STRENGTH_")
    return f"{tier}/{strength}".lower() if tier and tier != "UNSPECIFIED" else ""


def _bytes(text: Any) -> bytes:  # Any: JSON
    try:
        return base64.b64decode(str(text or ""))
    except binascii.Error:
        return b""


def _parsed(text: Any) -> Any:  # Any: JSON
    if not isinstance(text, str) or not text:
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text
